# SPDX-License-Identifier: Apache-2.0
"""Traces in files: `Writer` appends whole records, `Reader` reads as many as are whole."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from tierd.trace import Cycle, Header, TraceError
from tierd.trace.codec import Malformed, decode_cycle, decode_header, encode_cycle, encode_header

MAGIC: Final = b"TIERDTRC"
VERSION: Final = 1
_START: Final = struct.Struct("<8sHHI")
"""Magic, version, two reserved zeros."""
_RECORD: Final = struct.Struct("<IIB7x")
"""Length and CRC-32 of the compressed payload, kind."""

HEADER: Final = 1
CYCLE: Final = 2
END: Final = 3
"""Kinds of records. A reader passes over kinds that it does not know."""

LEVEL: Final = 6
MOST: Final = 1 << 30
"""Bytes of a payload, compressed or not; a record that claims more is damaged."""


class Writer:
    """A new trace, for its owner's eyes only. Not thread-safe."""

    def __init__(self, path: Path, header: Header) -> None:
        """Creates the file. Raises TraceError, in particular where there is one already: its
        permissions and its owner would be somebody else's choice."""
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
            os.fchmod(fd, 0o600)  # whatever a default ACL of the directory says
        except FileExistsError:
            raise TraceError(f"{path}: exists already; remove it or name another file") from None
        except OSError as error:
            raise TraceError(f"{path}: cannot be created: {error.strerror}") from None
        self._file: BinaryIO = os.fdopen(fd, "wb", buffering=0)
        self.size = 0
        """Bytes of whole records in the file."""
        self.cycles = 0
        self._write(_START.pack(MAGIC, VERSION, 0, 0))
        self._record(HEADER, encode_header(header))

    def write(self, cycle: Cycle) -> None:
        """Append a cycle. Raises TraceError; the file ends with the last whole record then."""
        self._record(CYCLE, encode_cycle(cycle))
        self.cycles += 1

    def close(self) -> None:
        """Mark the end and close. Never raises: what is in the file stays readable."""
        if self._file.closed:
            return
        with contextlib.suppress(TraceError):
            self._record(END, b"")
        self._file.close()

    def abandon(self) -> None:
        """Close without the mark."""
        self._file.close()

    def _record(self, kind: int, payload: bytes) -> None:
        packed = zlib.compress(payload, LEVEL)
        self._write(_RECORD.pack(len(packed), zlib.crc32(packed), kind) + packed)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self.size)
            raise TraceError(f"{self.path}: cannot be written: {error.strerror}") from None
        self.size += len(data)


class Reader:
    """A trace that was written, perhaps not to its end."""

    def __init__(self, path: Path) -> None:
        """Opens the file and reads its header. Raises TraceError."""
        self.path = path
        self.complete = False
        """Whether the mark at the end has been read: nobody killed the recorder."""
        try:
            # Not to wait for a writer where somebody names a pipe.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._wrong("not a regular file")
        self._file: BinaryIO = os.fdopen(fd, "rb")
        try:
            self.header = self._begin()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def _wrong(self, what: str) -> TraceError:
        return TraceError(f"{self.path}: {what}")

    def _begin(self) -> Header:
        start = self._file.read(_START.size)
        if not MAGIC.startswith(start[: len(MAGIC)]) or not start:
            raise self._wrong("not a trace of tierd")
        if len(start) < _START.size:
            raise self._wrong("ends before its header: nothing was recorded")
        _, version, _, _ = _START.unpack(start)
        if version > VERSION:
            raise self._wrong(
                f"written in format {version}, this tierd reads up to {VERSION};"
                " replay it with the version of tierd that wrote it"
            )
        record = self._next()
        if record is None:
            raise self._wrong("ends before its header: nothing was recorded")
        kind, payload, at = record
        if kind != HEADER:
            raise self._damaged(at, "the first record is no header")
        try:
            return decode_header(payload)
        except Malformed as error:
            raise self._damaged(at, str(error)) from None

    def cycles(self) -> Iterator[Cycle]:
        """The cycles that are whole, in order; once. Raises TraceError where one is damaged."""
        while (record := self._next()) is not None:
            kind, payload, at = record
            if kind == END:
                self.complete = True
                return
            if kind == CYCLE:
                try:
                    yield decode_cycle(payload)
                except Malformed as error:
                    raise self._damaged(at, str(error)) from None

    def _damaged(self, at: int, what: str) -> TraceError:
        return self._wrong(f"damaged at byte {at}: {what}")

    def _next(self) -> tuple[int, bytes, int] | None:
        """Kind, payload and place of the next record; None where the file ends within it."""
        at = self._file.tell()
        head = self._file.read(_RECORD.size)
        # A machine that loses power may leave zeros for what was not written yet.
        if len(head) < _RECORD.size or not any(head):
            return None
        length, crc, kind = _RECORD.unpack(head)
        if length > MOST:
            raise self._damaged(at, "a record of an impossible length")
        packed = self._file.read(length)
        if len(packed) < length:
            return None
        if zlib.crc32(packed) != crc:
            raise self._damaged(at, "the checksum does not match")
        unpacker = zlib.decompressobj()
        try:
            payload = unpacker.decompress(packed, MOST)
        except zlib.error as error:
            raise self._damaged(at, str(error)) from None
        if not unpacker.eof:
            raise self._damaged(at, "a record that does not end")
        return kind, payload, at
