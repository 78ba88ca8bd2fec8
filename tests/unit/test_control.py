# SPDX-License-Identifier: Apache-2.0
"""The control socket over real sockets, with real clients and hostile ones."""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tierd import control
from tierd.control import (
    Client,
    ControlError,
    NotRunning,
    Peer,
    Request,
    Right,
    Server,
    Verb,
    allowed,
)


class Daemon:
    """A server with the loop that owns it."""

    def __init__(self, path: Path, handler: Callable[[Request], Any], timeout: float) -> None:
        self.path = path
        self.failures = 0
        listener = control.bind(path, None)
        self.server = Server(
            listener, handler, version="1.2", group=None, failed=self._count, timeout=timeout
        )
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _count(self) -> None:
        self.failures += 1

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.server.listener, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            while self._stopped not in {key.fileobj for key, _ in selector.select()}:
                self.server.accept()

    def close(self) -> None:
        self._stop.send(b"x")
        self._thread.join()
        self._stop.close()
        self._stopped.close()
        self.server.close()


def handler(request: Request) -> Any:
    match request.verb:
        case Verb.STATUS:
            return {"uid": request.peer.uid, "pid": request.peer.pid, "args": dict(request.args)}
        case Verb.TOP:
            return ["x" * 65536] * 200
        case Verb.PAUSE:
            raise ControlError("teapot", "no")
        case _:
            raise KeyError("a bug")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    running = Daemon(tmp_path / "control.sock", handler, 0.5)
    yield running
    running.close()


def test_requests_and_answers(daemon: Daemon) -> None:
    with Client(daemon.path) as client:
        assert client.version == "1.2"
        for number in range(3):
            answer = client.request(Verb.STATUS, number=number)
            assert answer == {"uid": os.getuid(), "pid": os.getpid(), "args": {"number": number}}
    assert daemon.failures == 0


def test_failures_are_answers_and_are_counted(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(daemon.path) as client:
        with pytest.raises(ControlError, match="no") as refused:
            client.request(Verb.PAUSE)
        assert refused.value.code == "teapot"
        with pytest.raises(ControlError, match="KeyError"):
            client.request(Verb.RELOAD)
        with pytest.raises(ControlError, match="more than"):
            client.request(Verb.TOP)
        assert client.request(Verb.STATUS)["args"] == {}
    assert daemon.failures == 3


def raw(daemon: Daemon) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX)
    channel.settimeout(5)
    channel.connect(str(daemon.path))
    hello = control.receive_message(channel, control.MAX_ANSWER, 5)
    assert hello == {"server": "tierd", "version": "1.2", "protocol": 1}
    return channel


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (struct.pack(">I", 2**31), "more than"),
        (struct.pack(">I", 4) + b"[1]]", "Extra data"),
        (struct.pack(">I", 3) + b"[1]", "not a JSON object"),
        (struct.pack(">I", 2) + b"\xff\xff", "utf-8"),
        (struct.pack(">I", 60000) + b"[" * 60000, ""),
    ],
)
def test_what_is_no_message_ends_the_talk(daemon: Daemon, data: bytes, expected: str) -> None:
    with raw(daemon) as channel:
        channel.sendall(data)
        answer = control.receive_message(channel, control.MAX_ANSWER, 5)
        assert answer is not None
        assert answer["error"]["code"] == "bad_request"
        assert expected in answer["error"]["message"]
        assert channel.recv(1) == b""


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"id": 1, "verb": "fly"}, "unknown_verb"),
        ({"id": 1}, "unknown_verb"),
        ({"id": 1, "verb": "status", "args": [1]}, "bad_request"),
    ],
)
def test_what_is_no_request_is_refused(daemon: Daemon, message: object, code: str) -> None:
    with raw(daemon) as channel:
        control.send_message(channel, message, control.MAX_REQUEST)
        answer = control.receive_message(channel, control.MAX_ANSWER, 5)
        assert answer is not None
        assert (answer["id"] in (1, None), answer["ok"], answer["error"]["code"]) == (
            True,
            False,
            code,
        )


def drip(client: socket.socket) -> None:
    """Half a minute of single bytes."""
    for _ in range(300):
        client.send(b"\0")
        time.sleep(0.1)


def test_idle_and_dripping_clients_lose_their_thread(daemon: Daemon) -> None:
    with raw(daemon) as idle, raw(daemon) as dripping:
        # A byte now and then does not extend the time.
        with pytest.raises(BrokenPipeError):
            drip(dripping)
        assert idle.recv(1) == b""


def test_too_many_clients_are_turned_away(daemon: Daemon) -> None:
    crowd = [raw(daemon) for _ in range(control.MAX_CLIENTS)]
    with pytest.raises(ControlError, match="too many") as refused:
        Client(daemon.path)
    assert refused.value.code == "busy"
    for channel in crowd:
        channel.close()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        Client(tmp_path / "absent")
    dead = control.bind(tmp_path / "dead", None)
    dead.close()
    with pytest.raises(NotRunning):
        Client(tmp_path / "dead")


def test_a_stale_socket_gives_way_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s"
    control.bind(path, None).close()
    with control.bind(path, None):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(FileExistsError, match="listens at"):
            control.bind(path, None)
    path.unlink()
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="no socket"):
        control.bind(path, None)
    assert path.read_text() == "precious"


def test_the_group_may_connect(tmp_path: Path) -> None:
    with control.bind(tmp_path / "s", os.getgid()):
        stat = (tmp_path / "s").stat()
        assert (stat.st_mode & 0o777, stat.st_gid) == (0o660, os.getgid())


def test_who_may_do_what() -> None:
    root, member, other = (
        Peer(1, 0, frozenset({0})),
        Peer(2, 1000, frozenset({1000, 70})),
        Peer(3, 1001, frozenset({1001})),
    )
    for peer, change, explain in ((root, 1, 1), (member, 1, 0), (other, 0, 0)):
        assert allowed(Right.CONNECT, peer, 70)
        assert allowed(Right.CHANGE, peer, 70) == bool(change)
        assert allowed(Right.ROOT, peer, 70) == bool(explain)
    assert not allowed(Right.CHANGE, member, None), "a group that does not exist has no members"
    assert allowed(Right.ROOT, other, None, owner=1001), "a daemon of one's own, simulated"
    assert set(control.RIGHTS) == set(Verb)


def test_the_kernel_says_who_is_there() -> None:
    here, there = socket.socketpair()
    with here, there:
        peer = control.peer_of(here)
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    assert peer.groups >= {os.getgid()}
    assert peer.groups >= set(os.getgroups())
