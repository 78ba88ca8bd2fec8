# SPDX-License-Identifier: Apache-2.0
"""Python objects over a stream socket. (`multiprocessing` has this too, at 2 MiB of memory.)"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any, Final

_LENGTH: Final = struct.Struct("!Q")


class Wire:
    """One end of a connected socket. Both ends are ours, so pickle is safe."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def send(self, message: Any) -> None:
        """Send one object. Raises OSError when the other end is gone."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._socket.sendall(_LENGTH.pack(len(data)))
        self._socket.sendall(data)

    def receive(self) -> Any:
        """The next object. Raises EOFError when the other end has closed."""
        length = _LENGTH.unpack(self._exactly(_LENGTH.size))[0]
        return pickle.loads(self._exactly(length))

    def _exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while len(view):
            got = self._socket.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return data
