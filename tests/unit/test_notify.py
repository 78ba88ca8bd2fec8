# SPDX-License-Identifier: Apache-2.0
"""sd_notify over a real datagram socket, and passed sockets in a real child."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierd.notify import Notifier, passed_socket


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield listener


def lines(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_the_life_of_a_service(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    assert notifier.present
    notifier.ready("one\ntwo")
    assert lines(manager) == ["READY=1", "STATUS=one two"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    first, second = lines(manager)
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) >= before
    notifier.stopping("bye")
    assert lines(manager) == ["STOPPING=1", "STATUS=bye"]
    notifier.failed(98, "in use")
    assert lines(manager) == ["STATUS=in use", "ERRNO=98"]


def test_abstract_names() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = f"tierd-test-{os.getpid()}"
        listener.bind(f"\0{name}")
        listener.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).status("x")
        assert lines(listener) == ["STATUS=x"]


def test_watchdog_only_where_one_waits(manager: socket.socket) -> None:
    base = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "3000000"}
    notifier = Notifier(base | {"WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_period == 3.0
    notifier.watchdog()
    assert lines(manager) == ["WATCHDOG=1"]
    assert Notifier(base | {"WATCHDOG_PID": "1"}).watchdog_period is None
    assert Notifier(base | {"WATCHDOG_USEC": "soon"}).watchdog_period is None


def test_the_watchdog_is_told_ten_times_in_its_period_at_most(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "120000000"})
    manager.setblocking(False)
    told = 0
    for _ in range(240):
        notifier.watchdog()
        with contextlib.suppress(BlockingIOError):
            assert lines(manager) == ["WATCHDOG=1"]
            told += 1
        now[0] += 1.0
    assert told == 20


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    notifier = Notifier({})
    assert not notifier.present
    notifier.ready("x")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")


def test_sockets_are_taken_from_systemd_only(tmp_path: Path) -> None:
    assert passed_socket({}, "control") is None
    assert passed_socket({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, "control") is None
    assert passed_socket({"LISTEN_PID": "x", "LISTEN_FDS": "1"}, "control") is None


def test_a_passed_socket_is_found_by_name(tmp_path: Path) -> None:
    code = """
import os, sys
from tierd.notify import passed_socket
os.dup2(int(sys.argv[1]), 4); os.dup2(int(sys.argv[1]), 3)
environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "other:control"}
found = passed_socket(environ, "control")
print(found.fileno(), found.getsockname(), os.get_inheritable(4))
"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        out = subprocess.run(
            [sys.executable, "-c", code, str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert out.split() == ["4", str(tmp_path / "s"), "False"]
