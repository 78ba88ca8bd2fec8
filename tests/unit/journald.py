# SPDX-License-Identifier: Apache-2.0
"""The receiving end of the journal's and the service manager's datagrams."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path


def decode(data: bytes) -> dict[str, str]:
    """The receiver's half of the native protocol."""
    fields: dict[str, str] = {}
    while data:
        line, _, data = data.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
        else:
            name = line
            (length,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        fields[name.decode()] = value.decode()
    return fields


class Sink:
    """A datagram socket and all that arrived at it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.received: list[bytes] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while data := self._socket.recv(2**20):
            self.received.append(data)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()
