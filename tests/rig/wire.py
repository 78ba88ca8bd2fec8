# SPDX-License-Identifier: Apache-2.0
"""The frames that the rig and the agent in the guest exchange over a virtio-serial port.

A frame is a header (length of the payload, kind, channel) and the payload. A channel is one
command in the guest; the host numbers them. This file is used on both sides and needs nothing
but the standard library.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

PORT = "tierd.rig"
"""Name of the port in the guest."""

CHUNK = 1 << 16
"""Most bytes of payload that one frame carries."""

WINDOW = 4 * CHUNK
"""Most bytes of a command's stdin that may be under way without an acknowledgement."""

_HEADER = struct.Struct(">IBI")


class Kind(enum.IntEnum):
    # from the host
    SPAWN = 1  # JSON: argv, env, cwd
    STDIN = 2
    STDIN_END = 3
    SIGNAL = 4  # JSON: signal number, sent to the command's process group
    PING = 5
    # from the guest
    HELLO = 16
    STARTED = 17  # JSON: pid
    FAILED = 18  # text: why the command could not be started; ends the channel
    STDOUT = 19
    STDERR = 20
    TAKEN = 21  # JSON: how many bytes of stdin were written
    EXIT = 22  # JSON: return code as in subprocess; ends the channel
    PONG = 23


class Frame(NamedTuple):
    kind: Kind
    channel: int
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    return _HEADER.pack(len(frame.payload), frame.kind, frame.channel) + frame.payload


class Decoder:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        self._buffer += data
        frames: list[Frame] = []
        while len(self._buffer) >= _HEADER.size:
            length, kind, channel = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append(Frame(Kind(kind), channel, bytes(self._buffer[_HEADER.size : end])))
            del self._buffer[:end]
        return frames
