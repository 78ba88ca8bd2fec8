# SPDX-License-Identifier: Apache-2.0
"""The control socket: protocol, server and client.

A stream socket of the UNIX family. Each message is a length (4 bytes, big endian) and that many
bytes of JSON, one object. The server speaks first and names the protocol's version; then each
request ``{"id", "verb", "args"}`` gets one answer ``{"id", "ok": true, "data"}`` or
``{"id", "ok": false, "error": {"code", "message"}}``. docs/control.md describes it for others.

This module imports nothing but the standard library, so that `tierctl` starts at once.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Final

PROTOCOL: Final = 1
PATH: Final = Path("/run/tierd/control.sock")
GROUP: Final = "tierd"

MAX_REQUEST: Final = 64 * 2**10
MAX_ANSWER: Final = 4 * 2**20
CLIENT_TIMEOUT: Final = 10.0
"""Seconds within which a client must have sent its next request and taken its answer."""
MAX_CLIENTS: Final = 16

_LENGTH: Final = struct.Struct(">I")
_PEERCRED: Final = struct.Struct("3i")
_SO_PEERGROUPS: Final = 59  # Linux 4.13; not in Python's socket module
_SCARCE: Final = 0.05  # seconds to wait before another try to take a client, out of files
_GROUPS_BUFFER: Final = 1024  # bytes; the most that Python's getsockopt takes

_log = logging.getLogger(__name__)


class Right(Enum):
    """Who may use a verb, beyond who may connect (the socket's mode says that)."""

    CONNECT = "whoever may connect"
    CHANGE = f"root and members of group {GROUP}"
    ROOT = "root"


class Verb(StrEnum):
    STATUS = "status"
    TOP = "top"
    PAUSE = "pause"
    RESUME = "resume"
    RELOAD = "reload"
    EXPLAIN = "explain"


RIGHTS: Final[Mapping[Verb, Right]] = {
    Verb.STATUS: Right.CONNECT,
    Verb.TOP: Right.CONNECT,
    Verb.PAUSE: Right.CHANGE,
    Verb.RESUME: Right.CHANGE,
    Verb.RELOAD: Right.CHANGE,
    # Tells about a page frame, which the kernel itself shows to root only (pagemap).
    Verb.EXPLAIN: Right.ROOT,
}


class ControlError(Exception):
    """A request that was refused or failed. `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotRunning(Exception):
    """Nobody listens at the socket."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel says. Ids at the time of its connect()."""

    pid: int
    uid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class Request:
    verb: Verb
    args: Mapping[str, Any]
    peer: Peer


Handler = Callable[[Request], object]
"""Answers a request with something for JSON. Raises ControlError to refuse it."""


def send_message(channel: socket.socket, message: object, limit: int) -> None:
    """Send one message. Raises ValueError when it is longer than `limit` bytes."""
    data = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    if len(data) > limit:
        raise ValueError(f"a message of {len(data)} bytes, more than {limit}")
    channel.sendall(_LENGTH.pack(len(data)) + data)


def receive_message(channel: socket.socket, limit: int, timeout: float) -> dict[str, Any] | None:
    """The next message, None at the end of the stream.

    Raises TimeoutError after `timeout` seconds, ValueError for what is no message.
    """
    deadline = time.monotonic() + timeout
    head = _receive(channel, _LENGTH.size, deadline)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > limit:
        raise ValueError(f"a message of {length} bytes, more than {limit}")
    body = _receive(channel, length, deadline)
    try:
        message = json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message


def _receive(channel: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly `size` bytes, or none at the end of the stream. The deadline is for all of them:
    a client that sends a byte now and then does not keep its thread for ever."""
    parts = bytearray()
    while len(parts) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        channel.settimeout(left)
        part = channel.recv(min(size - len(parts), 65536))
        if not part:
            if parts:
                raise ValueError("the stream ended within a message")
            break
        parts += part
    return bytes(parts)


def peer_of(channel: socket.socket) -> Peer:
    """Credentials of the other end of a connected UNIX socket."""
    raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    pid, uid, gid = _PEERCRED.unpack(raw)
    groups = {gid}
    # Without its supplementary groups a peer has only its primary one: less, never more.
    with contextlib.suppress(OSError):
        more = channel.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BUFFER)
        groups.update(struct.unpack(f"{len(more) // 4}I", more))
    return Peer(pid, uid, frozenset(groups))


def group_id(name: str = GROUP) -> int | None:
    """The number of a group, None where it does not exist."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def allowed(right: Right, peer: Peer, group: int | None, owner: int = 0) -> bool:
    """Whether `peer` has `right`. `owner` is the user that the daemon runs as."""
    if right is Right.CONNECT or peer.uid in (0, owner):
        return True
    return right is Right.CHANGE and group is not None and group in peer.groups


def bind(path: Path, group: int | None) -> socket.socket:
    """Listen at `path`, mode 0660 and of `group` where that can be set, else 0600.

    Only to be called by who holds the lock on the directory. Raises OSError when somebody
    listens there or something other than a socket is in the way.
    """
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if group is not None:
            with contextlib.suppress(PermissionError):
                os.chown(path, -1, group)
                path.chmod(0o660)
        listener.listen(MAX_CLIENTS)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed daemon left. Anything else in the way stays."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{path} is there and is no socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise FileExistsError(f"somebody listens at {path} already")


class Server:
    """Answers clients of a listening socket, each in a thread of its own.

    The owner's loop waits for `listener` and calls `accept`.
    """

    def __init__(
        self,
        listener: socket.socket,
        handler: Handler,
        *,
        version: str,
        group: int | None,
        failed: Callable[[], None] = lambda: None,
        timeout: float = CLIENT_TIMEOUT,
    ) -> None:
        """`failed` is called for each request that was answered with an error."""
        self.listener = listener
        self._handler = handler
        self._version = version
        self._group = group
        self._failed = failed
        self._timeout = timeout
        self._slots = threading.BoundedSemaphore(MAX_CLIENTS)
        listener.setblocking(False)

    def accept(self) -> None:
        """Take a client that waits, if any. Does not block."""
        try:
            channel, _ = self.listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(_SCARCE)  # the client still waits: do not ask again at once, for ever
            return
        if not self._slots.acquire(blocking=False):
            channel.close()
            return
        thread = threading.Thread(target=self._serve, args=(channel,), name="control", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads: this client's bad luck, not the daemon's end
            self._slots.release()
            channel.close()

    def close(self) -> None:
        """Stop listening. Answers under way are finished."""
        self.listener.close()

    def _serve(self, channel: socket.socket) -> None:
        try:
            with channel, contextlib.suppress(OSError, ValueError):
                peer = peer_of(channel)
                channel.settimeout(self._timeout)
                hello = {"server": "tierd", "version": self._version, "protocol": PROTOCOL}
                send_message(channel, hello, MAX_ANSWER)
                while self._converse(channel, peer):
                    pass
        finally:
            self._slots.release()

    def _converse(self, channel: socket.socket, peer: Peer) -> bool:
        """Answer one request; False when there will be no more."""
        try:
            message = receive_message(channel, MAX_REQUEST, self._timeout)
        except ValueError as error:
            # What follows on the stream cannot be told from the middle of this message.
            send_message(channel, _error(None, "bad_request", str(error)), MAX_ANSWER)
            self._failed()
            return False
        if message is None:
            return False
        answer = self._answer(message, peer)
        if not answer["ok"]:
            self._failed()
        channel.settimeout(self._timeout)
        try:
            send_message(channel, answer, MAX_ANSWER)
        except ValueError as error:
            self._failed()
            send_message(channel, _error(message.get("id"), "failed", str(error)), MAX_ANSWER)
        return True

    def _answer(self, message: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
        number = message.get("id")
        args = message.get("args", {})
        if not isinstance(args, dict):
            return _error(number, "bad_request", "args is not an object")
        try:
            verb = Verb(str(message.get("verb")))
        except ValueError:
            known = ", ".join(Verb)
            return _error(number, "unknown_verb", f"the verbs are {known}")
        right = RIGHTS[verb]
        if not allowed(right, peer, self._group, os.geteuid()):
            return _error(number, "denied", f"{verb} is for {right.value}")
        try:
            return {"id": number, "ok": True, "data": self._handler(Request(verb, args, peer))}
        except ControlError as error:
            return _error(number, error.code, str(error))
        except Exception as error:  # one request must not end the daemon; it is counted
            _log.exception("control request %s failed", verb)
            return _error(number, "failed", f"{type(error).__name__}: {error}")


def _error(number: object, code: str, message: str) -> dict[str, Any]:
    return {"id": number, "ok": False, "error": {"code": code, "message": message}}


class Client:
    """One connection to a daemon. A context manager."""

    def __init__(self, path: Path = PATH, timeout: float = CLIENT_TIMEOUT) -> None:
        """Connect. Raises NotRunning, PermissionError, or ControlError for another protocol."""
        self._timeout = timeout
        self._last = 0
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._channel.settimeout(timeout)
        try:
            self._channel.connect(str(path))
            hello = receive_message(self._channel, MAX_ANSWER, timeout)
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
            self._channel.close()
            raise NotRunning(f"no daemon listens at {path}") from None
        except BaseException:
            self._channel.close()
            raise
        if hello is None:
            self._channel.close()
            raise ControlError("busy", "the daemon has too many clients; try again")
        if hello.get("protocol") != PROTOCOL:
            self._channel.close()
            theirs = hello.get("protocol")
            raise ControlError("protocol", f"the daemon speaks protocol {theirs}, not {PROTOCOL}")
        self.version = str(hello.get("version"))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def request(self, verb: Verb, **args: object) -> Any:
        """The data of the answer. Raises ControlError, or OSError when the daemon goes away."""
        self._last += 1
        message = {"id": self._last, "verb": verb, "args": args}
        self._channel.settimeout(self._timeout)
        send_message(self._channel, message, MAX_REQUEST)
        answer = receive_message(self._channel, MAX_ANSWER, self._timeout)
        if answer is None:
            raise ConnectionResetError("the daemon closed the connection")
        if not answer.get("ok"):
            error = answer.get("error", {})
            raise ControlError(str(error.get("code")), str(error.get("message")))
        return answer.get("data")
