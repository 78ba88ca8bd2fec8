# SPDX-License-Identifier: Apache-2.0
"""The systemd files: valid, tight enough, and open where tierd needs it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import require
from tierd.journal import Event

TOP = Path(__file__).resolve().parents[2]
SYSTEMD = TOP / "systemd"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        require(name, f"{name} is not installed (Debian: systemd)")
    return found


def settings(name: str, section: str) -> dict[str, list[str]]:
    """All values of every key in one section, in order."""
    text = (SYSTEMD / name).read_text()
    body = re.search(rf"^\[{section}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    assert body
    found: dict[str, list[str]] = {}
    for line in body[1].splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


SERVICE = settings("tierd.service", "Service")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units where they will be, with something at the path of each command."""
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for name in ("tierd.service", "tierd.socket"):
        shutil.copy(SYSTEMD / name, units)
    for command in ("tierd", "tierctl"):
        path = tmp_path / "usr/bin" / command
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    # Units that every system has and that default dependencies name.
    for name in ("sysinit.target", "basic.target", "shutdown.target", "sockets.target"):
        (units / name).write_text(f"[Unit]\nDescription={name}\n")
    for name in ("-.slice", "system.slice"):
        (units / name).write_text(f"[Unit]\nDescription={name}\n")
    return tmp_path


def test_systemd_accepts_the_units(installed: Path) -> None:
    """The one word that may be new to it is notify-reload, which systemd has since 253."""
    done = subprocess.run(
        [
            *(tool("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no"),
            *(f"--root={installed}", "tierd.service", "tierd.socket"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [
        line
        for line in done.stderr.splitlines()
        if "tierd" in line and "Failed to parse service type, ignoring: notify-reload" not in line
    ]
    assert complaints == []


def test_exposure_is_low() -> None:
    """At most 3.0 by the scale on which a root daemon without a sandbox has 9.6."""
    command = [tool("systemd-analyze"), "security", "--offline=true", "--threshold=30"]
    subprocess.run([*command, str(SYSTEMD / "tierd.service")], check=True, capture_output=True)


def test_unknown_system_calls_pass() -> None:
    """A list of allowed calls answers ENOSYS to every number that systemd does not know:
    move_phys_pages would seem to be missing."""
    for value in SERVICE["SystemCallFilter"]:
        assert value.startswith("~")
    denied = " ".join(SERVICE["SystemCallFilter"])
    # perf_event_open; move_pages and mbind; process_madvise
    for group in ("@debug", "@resources", "@ipc", "@default"):
        assert group not in denied


def test_what_tierd_reads_stays_visible() -> None:
    assert not {"ProcSubset", "ProtectProc", "PrivateUsers", "DynamicUser"} & set(SERVICE)


def test_every_capability_has_its_reason() -> None:
    text = (SYSTEMD / "tierd.service").read_text()
    granted = SERVICE["CapabilityBoundingSet"][0].split()
    explained = re.findall(r"^# (CAP_\w+) {2,}\w", text, re.MULTILINE)
    assert sorted(granted) == sorted(explained)


def test_notify_reload_is_taken_where_it_is_known() -> None:
    assert SERVICE["Type"] == ["notify", "notify-reload"]
    assert "/tierctl reload" in SERVICE["ExecReload"][0]


def test_errors_that_stay_are_not_retried() -> None:
    assert set(SERVICE["RestartPreventExitStatus"][0].split()) == {"2", "3", "4", "6"}


def test_the_socket_is_for_the_group() -> None:
    socket = settings("tierd.socket", "Socket")
    assert socket["ListenStream"] == ["/run/tierd/control.sock"]
    assert socket["SocketMode"] == ["0660"]
    assert socket["SocketGroup"] == ["tierd"]
    lines = (SYSTEMD / "tierd.sysusers").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["g tierd -"]


def catalog() -> dict[str, str]:
    """Texts by message id."""
    text = (SYSTEMD / "tierd.catalog").read_text()
    parts = re.split(r"^-- ([0-9a-f]{32})\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_catalog_has_every_event_and_no_other() -> None:
    assert set(catalog()) == {event.value for event in Event}


@pytest.mark.parametrize("event", list(Event), ids=lambda event: event.name)
def test_the_catalog_names_fields_that_are_sent(event: Event) -> None:
    """The comment above each event in tierd.journal says which fields it has."""
    source = (TOP / "daemon/tierd/journal.py").read_text()
    comment = re.search(rf"((?:^ *#.*\n)+) *{event.name} = ", source, re.MULTILINE)
    assert comment
    sent = set(re.findall(r"TIERD_[A-Z]+", comment[1]))
    text = catalog()[event.value]
    assert set(re.findall(r"@(\w+)@", text)) <= sent
    for header in ("Subject", "Defined-By", "Support", "Documentation"):
        assert re.search(rf"^{header}: \S", text, re.MULTILINE)


def test_journalctl_reads_the_catalog(tmp_path: Path) -> None:
    directory = tmp_path / "usr/lib/systemd/catalog"
    directory.mkdir(parents=True)
    shutil.copy(SYSTEMD / "tierd.catalog", directory)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    journalctl = [tool("journalctl"), f"--root={tmp_path}"]
    subprocess.run([*journalctl, "--update-catalog"], check=True, capture_output=True)
    done = subprocess.run(
        [*journalctl, "--list-catalog"], check=True, capture_output=True, text=True
    )
    assert set(catalog()) == {line.split()[0] for line in done.stdout.splitlines()}
