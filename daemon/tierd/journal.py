# SPDX-License-Identifier: Apache-2.0
"""What tierd tells the journal: operator events with their ids, and the way there.

Log with the standard library. An operator event goes through `record`, which gives it its
MESSAGE_ID and TIERD_* fields; everything else is ``logging.getLogger(__name__).info(...)``.
Nothing but MESSAGE, MESSAGE_ID, PRIORITY, SYSLOG_IDENTIFIER, CODE_* and TIERD_* is sent.

Ways to the journal, best first: systemd-python; the native protocol of journald over its
datagram socket (https://systemd.io/JOURNAL_NATIVE_PROTOCOL); lines on standard error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import logging
import os
import re
import socket
import struct
import sys
import traceback
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Final, Protocol, TextIO

IDENTIFIER: Final = "tierd"
SOCKET: Final = Path("/run/systemd/journal/socket")
ROOT: Final = "tierd"
"""Name of the package's logger; handlers and levels are set there, not on the root logger."""

_SEND_TIMEOUT: Final = 1.0
"""Seconds to wait for a journald that does not read; then the line goes to standard error."""
_FIELD: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


class Event(Enum):
    """Operator events. The value is the MESSAGE_ID, the text is in systemd/tierd.catalog.

    The comment above each names its TIERD_* fields. An id is never reused.
    """

    # TIERD_VERSION, TIERD_MODE, TIERD_SAMPLER, TIERD_MOVER, TIERD_TIERS, TIERD_CONFIG
    STARTED = "3aca7e54fe8a411c9b2937965710182c"
    # TIERD_CYCLES, TIERD_REASON
    STOPPED = "335c1985443c44beac7d9526e3453c6f"
    # TIERD_CONFIG (files, or "built-in defaults"), TIERD_MODE
    CONFIG_LOADED = "9c47f55649ef4779805a02dadd380fc9"
    # One record per error: TIERD_FILE, TIERD_LINE, TIERD_KEY, TIERD_REASON
    CONFIG_REJECTED = "04ddc1984e4542a59cdcaa89f9664a9c"
    # TIERD_CAPABILITY, TIERD_REASON
    CAPABILITY_ABSENT = "fea4fa5c8ec74e4990e8d61244a102c8"
    # TIERD_REASON
    DEGRADED = "98421dc6bf9e49ab922108ea3561b0a2"
    # TIERD_REASON (what no longer holds)
    RECOVERED = "1030b1cb4f834c12b4e76013b72702f8"
    # TIERD_CYCLE, TIERD_REASON, TIERD_FAILURES (in a row)
    CYCLE_FAILED = "3708a20c97244c11818978308733ca49"
    # TIERD_CYCLE, TIERD_DURATION (seconds), TIERD_INTERVAL (seconds)
    OVERRUN = "eac5fce708364ae2a39e9514bd99772b"
    # TIERD_UID, TIERD_PID (who asked)
    PAUSED = "9c3d3f4f7be44369924aacfea926ba7b"
    # TIERD_UID, TIERD_PID (who asked)
    RESUMED = "67429aa420e44c4bbfb035fbb42f9c14"
    # TIERD_NAME, TIERD_REASON
    FOREIGN_TIERER = "e1530d7ec47542839f273fd67921283a"
    # TIERD_GENERATION (of the topology), TIERD_NODES
    HOTPLUG = "dab52fee7231412dac3da87a58534754"


def record(event: Event, level: int, message: str, *args: object, **fields: object) -> None:
    """Log an operator event. `fields` become TIERD_<NAME>; values are taken as text."""
    extra = {"tierd_event": event, "tierd_fields": fields}
    logging.getLogger(ROOT).log(level, message, *args, extra=extra, stacklevel=2)


class Transport(Protocol):
    """A way to the journal. Raises OSError when the record could not be handed over."""

    def send(self, fields: Sequence[tuple[str, str]]) -> None: ...


def encode(fields: Sequence[tuple[str, str]]) -> bytes:
    """One record in the native protocol. Raises ValueError for a name journald would drop."""
    parts: list[bytes] = []
    for name, value in fields:
        if not _FIELD.fullmatch(name):
            raise ValueError(f"not a journal field name: {name!r}")
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            # Values with a newline carry their length, as 64 bits little endian.
            parts += [name.encode(), b"\n", struct.pack("<Q", len(data)), data, b"\n"]
        else:
            parts += [name.encode(), b"=", data, b"\n"]
    return b"".join(parts)


class NativeTransport:
    """journald's own datagram protocol, without libsystemd."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_SEND_TIMEOUT)

    def send(self, fields: Sequence[tuple[str, str]]) -> None:
        data = encode(fields)
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(data)

    def _send_file(self, data: bytes) -> None:
        """Too large for a datagram: pass a sealed memory file, as the protocol asks."""
        fd = os.memfd_create("tierd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(fd, "wb", buffering=0) as file:
            file.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))
            self._socket.sendmsg([b""], [rights], 0, self._path)

    def close(self) -> None:
        self._socket.close()


class SystemdTransport:
    """systemd-python. The constructor raises ImportError where that is not installed."""

    def __init__(self) -> None:
        # `import systemd` alone may find any directory of that name; ask for the module.
        # sendv, because send() wants some fields as numbers and adds others of its own.
        self._sendv = importlib.import_module("systemd.journal").sendv

    def send(self, fields: Sequence[tuple[str, str]]) -> None:
        self._sendv(
            *(f"{name}={value}".encode("utf-8", "backslashreplace") for name, value in fields)
        )


def priority(level: int) -> int:
    """The syslog priority of a logging level."""
    for bound, value in (
        (logging.CRITICAL, 2),
        (logging.ERROR, 3),
        (logging.WARNING, 4),
        (logging.INFO, 6),
    ):
        if level >= bound:
            return value
    return 7


def _message(entry: logging.LogRecord) -> str:
    text = entry.getMessage()
    if entry.exc_info and entry.exc_info[0] is not None:
        text += "\n" + "".join(traceback.format_exception(*entry.exc_info)).rstrip()
    return text


def fields_of(entry: logging.LogRecord) -> list[tuple[str, str]]:
    """The journal fields of a log record, MESSAGE first."""
    fields = [
        ("MESSAGE", _message(entry)),
        ("PRIORITY", str(priority(entry.levelno))),
        ("SYSLOG_IDENTIFIER", IDENTIFIER),
        ("CODE_FILE", entry.pathname),
        ("CODE_LINE", str(entry.lineno)),
        ("CODE_FUNC", entry.funcName or "?"),
    ]
    event = getattr(entry, "tierd_event", None)
    if isinstance(event, Event):
        fields.append(("MESSAGE_ID", event.value))
    extra = getattr(entry, "tierd_fields", None)
    if isinstance(extra, Mapping):
        fields += [(f"TIERD_{name.upper()}", str(value)) for name, value in extra.items()]
    return fields


class JournalHandler(logging.Handler):
    """Hands records to a transport; what that cannot take goes to standard error."""

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        self.transport = transport
        self._fallback = StderrHandler(prefix=True)

    def emit(self, entry: logging.LogRecord) -> None:
        try:
            self.transport.send(fields_of(entry))
        except (OSError, ValueError):
            self._fallback.emit(entry)


class StderrHandler(logging.Handler):
    """Lines on standard error; with a <N> prefix where journald or systemd will read them."""

    def __init__(self, prefix: bool, stream: TextIO | None = None) -> None:
        super().__init__()
        self._prefix = prefix
        self._stream = stream

    def emit(self, entry: logging.LogRecord) -> None:
        start = f"<{priority(entry.levelno)}>" if self._prefix else f"{IDENTIFIER}: "
        text = "\n".join(start + line for line in _message(entry).splitlines() or [""])
        # A reader that went away (a closed terminal or pipe) must not end a cycle.
        with contextlib.suppress(OSError, ValueError):
            print(text, file=self._stream or sys.stderr, flush=True)


def under_journald(environ: Mapping[str, str], fd: int = 2) -> bool:
    """Whether `fd` is connected to the journal, as JOURNAL_STREAM (systemd.exec(5)) says."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stat = os.fstat(fd)
        return (int(device), int(inode)) == (stat.st_dev, stat.st_ino)
    except (OSError, ValueError):
        return False


def choose(environ: Mapping[str, str], path: Path = SOCKET) -> logging.Handler:
    """The best way to the journal from here.

    TIERD_JOURNAL=systemd|native|stderr|auto in `environ` overrides the choice. A way that does
    not exist here falls through to the next.
    """
    way = environ.get("TIERD_JOURNAL", "auto")
    journald = under_journald(environ)
    if way == "systemd" or (way == "auto" and journald):
        with contextlib.suppress(ImportError):
            return JournalHandler(SystemdTransport())
    if way in ("systemd", "native") or (way == "auto" and journald):
        with contextlib.suppress(OSError):
            return JournalHandler(NativeTransport(path))
    return StderrHandler(prefix=journald)


def install(handler: logging.Handler, level: int = logging.INFO) -> None:
    """Send the package's records to `handler`, and only there."""
    logger = logging.getLogger(ROOT)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
