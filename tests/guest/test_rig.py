# SPDX-License-Identifier: Apache-2.0
"""The rig itself: what it boots, what it passes on, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import rig

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

GUEST = Path(rig.__file__).with_name("guest")


def test_two_nodes_in_two_tiers(guest: rig.Guest) -> None:
    nodes = "/sys/devices/system/node"
    assert guest.get(f"{nodes}/has_memory") == b"0-1\n"
    assert guest.get(f"{nodes}/has_cpu") == b"0\n"
    listing = guest.run(
        "cd /sys/devices/virtual/memory_tiering && for t in memory_tier*; do"
        " echo ${t#memory_tier} $(cat $t/nodelist); done"
    ).stdout
    tiers = {line.split()[1]: int(line.split()[0]) for line in listing.splitlines()}
    # A larger number is a slower tier.
    assert tiers["1"] > tiers["0"]
    latency = [
        int(guest.get(f"{nodes}/node{node}/access0/initiators/read_latency")) for node in (0, 1)
    ]
    assert latency[1] > latency[0]


def test_the_system_is_up_and_complete(guest: rig.Guest) -> None:
    state = guest.run("systemctl is-system-running", check=False).stdout.strip()
    assert state == "running", guest.run("systemctl --failed").stdout
    guest.run("python3 -c 'import numpy, pydantic, prometheus_client, yaml, systemd.journal'")


def test_status_and_output_pass_through(guest: rig.Guest) -> None:
    result = guest.run("echo to stdout; echo to stderr >&2; exit 7", check=False)
    assert (result.returncode, result.stdout, result.stderr) == (7, "to stdout\n", "to stderr\n")
    assert guest.run("kill -TERM $$", check=False).returncode == -signal.SIGTERM
    assert guest.run(["printf", "%s|", "a b", "$c"]).stdout == "a b|$c|"
    with pytest.raises(rig.CommandFailed, match="status 3"):
        guest.run("exit 3")
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        guest.run(["no-such-program"])


def test_large_data_both_ways(guest: rig.Guest) -> None:
    data = os.urandom(3 << 20)
    guest.put("/var/tmp/deep/data", data, 0o750)
    assert guest.get("/var/tmp/deep/data") == data
    assert guest.run("stat -c %a /var/tmp/deep/data").stdout == "750\n"


def test_commands_run_at_once(guest: rig.Guest) -> None:
    with guest.popen("while read line; do echo got $line; done; echo end") as echo:
        echo.write(b"one\n")
        assert echo.readline() == "got one"
        assert guest.run("echo meanwhile").stdout == "meanwhile\n"
        assert echo.poll() is None
        echo.write(b"two\n")
        echo.close_stdin()
        assert echo.readline() == "got two"
        assert echo.readline() == "end"
        with pytest.raises(EOFError):
            echo.readline()
        assert echo.wait().stdout == "got one\ngot two\nend\n"


def test_what_is_left_behind_does_not_hold_the_command(guest: rig.Guest) -> None:
    assert guest.run("sleep 300 & echo done", timeout=20).stdout == "done\n"
    guest.run("pkill sleep")


def test_timeout_leaves_the_guest_usable(guest: rig.Guest) -> None:
    with pytest.raises(rig.CommandTimeout, match="sleep 300"):
        guest.run("sleep 300", timeout=2)
    guest.wait_until(lambda: guest.run("pgrep sleep", check=False).returncode == 1)


def test_python_package_can_be_away(guest: rig.Guest) -> None:
    ask = "python3 -c 'from systemd import journal'"
    with guest.without_python_package("systemd"):
        assert "No module named 'systemd'" in guest.run(ask, check=False).stderr
    guest.run(ask)


def test_panic_is_told_with_the_console(boot: Callable[..., rig.Guest]) -> None:
    guest = boot()
    start = time.monotonic()
    with pytest.raises(rig.GuestPanicked, match="the guest panicked: Kernel panic") as caught:
        guest.run("echo c > /proc/sysrq-trigger", timeout=300)
    assert time.monotonic() - start < 60
    assert "sysrq triggered crash" in str(caught.value)
    assert "--- the last lines of the console" in str(caught.value)
    with pytest.raises(rig.GuestPanicked):
        guest.run("true")


def test_death_of_qemu_is_told(boot: Callable[..., rig.Guest]) -> None:
    guest = boot()
    threading.Timer(1, os.kill, (qemu_below(os.getpid(), guest), signal.SIGKILL)).start()
    with pytest.raises(rig.GuestDied, match="QEMU ended"):
        guest.run("sleep 300", timeout=200)


def test_hang_is_told(boot: Callable[..., rig.Guest], monkeypatch: pytest.MonkeyPatch) -> None:
    guest = boot()
    monkeypatch.setattr("rig.vm.SILENCE", 12.0)
    os.kill(qemu_below(os.getpid(), guest), signal.SIGSTOP)
    with pytest.raises(rig.GuestHung, match="no answer from its agent"):
        guest.run("true", timeout=200)


def test_no_qemu_outlives_its_starter(guest: rig.Guest) -> None:
    """`guest` also stands for: what it needs is built, so that the start below is quick."""
    starter = subprocess.Popen(
        [sys.executable, GUEST, "--", "echo up; sleep 300"], stdout=subprocess.PIPE
    )
    assert starter.stdout is not None
    with starter.stdout:
        assert starter.stdout.readline() == b"up\n"
    family = descendants(starter.pid)
    assert any("qemu-system" in command_line(pid) for pid in family)
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 10
    while any("qemu-system" in command_line(pid) for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_command_line_tool(guest: rig.Guest) -> None:
    """One boot of what `make guest CMD=...` runs."""
    done = subprocess.run(
        [GUEST], env=os.environ | {"CMD": "uname -r; echo oh >&2; exit 9"}, capture_output=True
    )
    assert done.returncode == 9
    assert done.stdout.decode() == f"{guest.release}\n"
    assert done.stderr.decode().endswith("oh\n")


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [below for child in children for below in descendants(child)]


def qemu_below(pid: int, guest: rig.Guest) -> int:
    """The process of that guest's QEMU."""
    (found,) = (
        child
        for child in descendants(pid)
        if "qemu-system" in command_line(child)
        and "supervise.py" not in command_line(child)
        and str(guest.console_path) in command_line(child)
    )
    return found
