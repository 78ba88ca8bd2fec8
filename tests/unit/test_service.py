# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: signals, reload, systemd's protocol, journal, refusals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tierd.control import Client, ControlError, Verb
from tierd.journal import Event
from tierd.service import Fatal, check_privileges
from unit.journald import Sink, decode

CHILD = Path(__file__).parent / "daemon_child.py"
GOOD = """\
version: 1
mode: tier
interval: 50ms
sampling: {cpu: 50%}
metrics: {listen: "127.0.0.1:0"}
"""
DEADLINE = 20.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a true value and return it."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


class Tierd:
    """One daemon, with stand-ins for the journal and the service manager."""

    def __init__(self, tmp_path: Path) -> None:
        self.policy = tmp_path / "tierd.yaml"
        self.runtime = tmp_path / "run"
        self.socket = self.runtime / "control.sock"
        self.journal = Sink(tmp_path / "journal")
        self.manager = Sink(tmp_path / "notify")
        self.process: subprocess.Popen[str] | None = None

    def spawn(
        self, policy: str, *absent: str, pass_fd: int | None = None, **environ: str
    ) -> subprocess.Popen[str]:
        if pass_fd is not None:
            environ["PASSED_FD"] = str(pass_fd)
        self.policy.write_text(policy)
        arguments = [self.policy, self.runtime, self.journal.path, *absent]
        self.process = subprocess.Popen(
            [sys.executable, CHILD, *arguments],
            env={
                "PYTHONPATH": os.pathsep.join(sys.path),
                "NOTIFY_SOCKET": str(self.manager.path),
                **environ,
            },
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=() if pass_fd is None else (pass_fd,),
        )
        return self.process

    def start(self, policy: str = GOOD, *absent: str, **environ: str) -> None:
        process = self.spawn(policy, *absent, **environ)
        until(lambda: self.told("READY=1") or process.poll() is not None, "READY=1")
        assert process.poll() is None, process.stderr and process.stderr.read()

    def refused(self, policy: str, *absent: str) -> tuple[int, str]:
        """Exit status and standard error of a daemon that does not start."""
        process = self.spawn(policy, *absent)
        _, errors = process.communicate(timeout=DEADLINE)
        assert not self.told("READY=1")
        assert not self.socket.exists(), "half-started"
        return process.returncode, errors

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=DEADLINE)
        return self.process.returncode

    def told(self, line: str) -> list[list[str]]:
        """Messages to the service manager with a line that begins so."""
        messages = [data.decode().split("\n") for data in list(self.manager.received)]
        return [each for each in messages if any(part.startswith(line) for part in each)]

    def records(self, event: Event) -> list[dict[str, str]]:
        every = [decode(data) for data in list(self.journal.received)]
        return [record for record in every if record.get("MESSAGE_ID") == event.value]

    def ask(self, verb: Verb, **args: object) -> Any:
        with Client(self.socket) as client:
            return client.request(verb, **args)

    def cycles(self, count: int) -> dict[str, Any]:
        """The status after that many more cycles."""
        target = self.ask(Verb.STATUS)["cycle"]["number"] + count

        def reached() -> Any:
            status = self.ask(Verb.STATUS)
            return status if status["cycle"]["number"] >= target else None

        found: dict[str, Any] = until(reached, f"cycle {target}")
        return found

    def metrics(self) -> str:
        with urllib.request.urlopen(self.ask(Verb.STATUS)["metrics"], timeout=5) as answer:
            return str(answer.read().decode())

    def tierctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; from tierd.cli import tierctl; sys.exit(tierctl())"
        return subprocess.run(
            [sys.executable, "-c", code, "--socket", str(self.socket), *arguments],
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.journal.close()
        self.manager.close()


@pytest.fixture
def tierd(tmp_path: Path) -> Iterator[Tierd]:
    running = Tierd(tmp_path)
    yield running
    running.close()


def test_a_life(tierd: Tierd) -> None:
    """Start, work, refuse a second, pause, resume, stop: with what systemd and users see."""
    tierd.start()
    (ready,) = tierd.told("READY=1")
    assert any(line.startswith("STATUS=") for line in ready)
    (started,) = tierd.records(Event.STARTED)
    assert started["TIERD_MODE"] == "tier"
    assert started["TIERD_SAMPLER"] == "page_idle"
    assert started["TIERD_MOVER"] == "move_phys_pages"
    assert started["TIERD_CONFIG"] == str(tierd.policy)
    assert started["SYSLOG_IDENTIFIER"] == "tierd"

    status = tierd.cycles(3)
    assert status["mode"] == "tier"
    assert status["degraded"] == []
    assert [tier["nodes"] for tier in status["tiers"]] == [[0], [1]]
    assert "tierd_cycles_total" in tierd.metrics()

    second = Path(tierd.runtime.parent, "second.yaml")
    second.write_text(GOOD)
    other = subprocess.run(
        [sys.executable, CHILD, second, tierd.runtime, tierd.journal.path],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert other.returncode == 1
    assert f"is running already (process {tierd.pid} " in other.stderr
    assert other.stderr.count("\n") == 1

    tierd.ask(Verb.PAUSE)
    assert tierd.cycles(2)["mode"] == "paused"
    assert tierd.ask(Verb.RESUME) == {"paused": False}
    assert tierd.cycles(2)["mode"] == "tier"
    assert tierd.records(Event.PAUSED)[0]["TIERD_UID"] == str(os.getuid())
    assert len(tierd.records(Event.RESUMED)) == 1
    with pytest.raises(ControlError, match="not a page frame number"):
        tierd.ask(Verb.EXPLAIN, pfn=-1)
    assert tierd.ask(Verb.EXPLAIN, pfn=5000)["pfn"] == 5000
    assert {entry["match"] for entry in tierd.ask(Verb.TOP)["classes"]} == set()

    assert tierd.stop() == 0  # within DEADLINE
    assert tierd.told("STOPPING=1")
    (stopped,) = tierd.records(Event.STOPPED)
    assert stopped["TIERD_REASON"] == "SIGTERM"
    assert int(stopped["TIERD_CYCLES"]) >= 7
    assert not tierd.socket.exists()
    assert not tierd.records(Event.CYCLE_FAILED)


def test_reload(tierd: Tierd) -> None:
    """A broken file keeps the old policy and says where; a good one counts from the next cycle."""
    tierd.start()
    tierd.policy.write_text(GOOD + "migration:\n  promot: 1MiB/s\n")
    tierd.signal(signal.SIGHUP)
    until(lambda: len(tierd.told("READY=1")) == 2, "the end of the reload")
    (reloading,) = tierd.told("RELOADING=1")
    assert reloading[1].startswith("MONOTONIC_USEC=")
    # systemd 253 and newer send the signal and run ExecReload= as well: one record is enough.
    again = tierd.tierctl("reload")
    assert again.returncode == 6
    assert f"{tierd.policy}:7: migration.promot: unknown key; did you mean promote?" in again.stderr
    (rejected,) = tierd.records(Event.CONFIG_REJECTED)
    assert rejected["TIERD_FILE"] == str(tierd.policy)
    assert rejected["TIERD_LINE"] == "7"
    assert rejected["TIERD_KEY"] == "migration.promot"
    assert rejected["PRIORITY"] == "3"
    status = tierd.cycles(1)
    assert status["mode"] == "tier"
    assert status["config"]["last_reload"]["ok"] is False
    assert f"{tierd.policy}:7: migration.promot" in json.dumps(status)
    assert "tierd_config_last_reload_successful 0.0" in tierd.metrics()
    shown = tierd.tierctl("status")
    assert shown.returncode == 0
    assert "refused" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80

    tierd.policy.write_text(GOOD.replace("mode: tier", "mode: observe"))
    assert tierd.tierctl("reload").stdout == f"policy loaded from {tierd.policy}\n"
    status = tierd.cycles(2)
    assert status["mode"] == "observe"
    assert status["config"]["last_reload"]["ok"] is True
    assert "tierd_config_last_reload_successful 1.0" in tierd.metrics()
    assert len(tierd.records(Event.CONFIG_LOADED)) == 2

    # Tiers that this host does not have are an error of the file's line, too.
    tiers = "tiers: [{name: a, nodes: [0]}, {name: b, nodes: [1, 9]}]\n"
    tierd.policy.write_text(GOOD + tiers)
    with pytest.raises(ControlError, match=r"tierd.yaml:6: tiers\[1\].nodes\[1\]: node 9 does not"):
        tierd.ask(Verb.RELOAD)
    # Others make a new engine.
    tierd.policy.write_text(GOOD + tiers.replace(", 9", ""))
    tierd.ask(Verb.RELOAD)
    assert [tier["name"] for tier in tierd.cycles(2)["tiers"]] == ["a", "b"]
    assert tierd.stop() == 0


def test_without_the_call_it_says_so_once_and_observes(tierd: Tierd) -> None:
    tierd.start(GOOD, "move_phys_pages")
    status = tierd.cycles(3)
    assert status["mode"] == "observe"
    assert any("move_phys_pages" in reason for reason in status["degraded"])
    absent = tierd.records(Event.CAPABILITY_ABSENT)
    (about,) = [each for each in absent if each["TIERD_CAPABILITY"] == "move_phys_pages"]
    assert about["TIERD_REASON"] == "this test takes it away"
    assert not tierd.records(Event.DEGRADED), "the same thing is not said twice"
    assert tierd.stop() == 0


@pytest.mark.parametrize(
    ("addition", "absent", "code", "expected"),
    [
        ("migration: {movers: {move_phys_pages: required}}", "move_phys_pages", 3, "migration."),
        ("tiers: [{name: a, nodes: [0]}, {name: b, nodes: [7]}]", "psi", 6, "tiers[1].nodes[0]"),
    ],
)
def test_refusals(tierd: Tierd, addition: str, absent: str, code: int, expected: str) -> None:
    status, errors = tierd.refused(GOOD + addition, absent)
    assert status == code
    assert errors.count("\n") == 1
    assert errors.startswith(f"{tierd.policy}:6: {expected}")
    assert tierd.told("STATUS=")


def test_a_metrics_address_in_use(tierd: Tierd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, errors = tierd.refused(GOOD.replace(":0", f":{port}"))
    assert status == 1
    assert errors.startswith(f"{tierd.policy}:5: metrics.listen: cannot listen on 127.0.0.1:{port}")
    assert tierd.told("ERRNO=98")


def test_systemd_hands_over_the_socket_and_watches(tierd: Tierd) -> None:
    """The watchdog is fed while cycles are far apart; the passed socket is not removed."""
    path = tierd.runtime.parent / "passed.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        tierd.spawn(
            GOOD.replace("50ms", "1h"),
            pass_fd=listener.fileno(),
            LISTEN_FDS="1",
            LISTEN_FDNAMES="control",
            WATCHDOG_USEC="300000",
        )
    until(lambda: tierd.told("READY=1"), "READY=1")
    with Client(path) as client:
        assert client.request(Verb.STATUS)["pid"] == tierd.pid
    assert not tierd.socket.exists()
    until(lambda: len(tierd.told("WATCHDOG=1")) >= 5, "the watchdog's food")
    # A shorter interval counts at once, not after the hour.
    tierd.policy.write_text(GOOD)
    tierd.signal(signal.SIGHUP)
    with Client(path) as client:
        until(lambda: client.request(Verb.STATUS)["cycle"]["number"] >= 3, "cycles")
    assert tierd.stop() == 0
    assert path.exists()


def test_privileges(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    for mask, good in (("0000000000200000", True), ("000001ffffdfffff", False)):
        (tmp_path / "self/status").write_text(f"Name:\tx\nCapEff:\t{mask}\n")
        if good:
            check_privileges(tmp_path)
        else:
            with pytest.raises(Fatal, match="not privileged") as refused:
                check_privileges(tmp_path)
            assert refused.value.code == 4
