# SPDX-License-Identifier: Apache-2.0
"""The service under a real systemd: verbs, reload, journal, hardening."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from guest import loads
from guest.loads import wait
from guest.service import POLICY, Service, traced_calls
from rig import Guest
from tierd.journal import Event

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1500)]

GOOD = """\
version: 1
mode: tier
tiers:
  - {name: dram, nodes: [0]}
  - {name: cxl, nodes: [1]}
"""


@pytest.fixture(scope="module")
def service(guest: Guest) -> Service:
    loads.install(guest)
    return Service(guest)


@pytest.fixture(autouse=True)
def _stopped(service: Service) -> Iterator[None]:
    service.policy(GOOD)
    yield
    service.systemctl("stop", check=False)


def show(guest: Guest, name: str) -> str:
    command = f"systemctl show --value -p {name} tierd.service"
    return guest.run(command, timeout=60, check=True).stdout.strip()


def records(service: Service, since: str, event: Event) -> list[dict[str, Any]]:
    return [record for record in service.journal(since) if record.get("MESSAGE_ID") == event.value]


def test_verbs(guest: Guest, service: Service) -> None:
    """start, reload, restart, stop; systemd 257 knows notify-reload and uses it."""
    since = service.cursor()
    service.start()
    assert show(guest, "ActiveState") == "active"
    assert show(guest, "Type") == "notify-reload"
    assert int(show(guest, "WatchdogUSec").replace("min", "")[:1]) > 0
    first = show(guest, "MainPID")

    service.policy(GOOD.replace("mode: tier", "mode: observe"))
    service.systemctl("reload")
    assert show(guest, "MainPID") == first
    service.wait_cycles(2)
    assert service.status()["mode"] == "observe"

    service.systemctl("restart")
    assert show(guest, "MainPID") != first
    service.stop()
    assert show(guest, "ActiveState") == "inactive"
    assert show(guest, "Result") == "success"
    assert records(service, since, Event.STARTED)
    assert len(records(service, since, Event.STOPPED)) == 2


@pytest.mark.parametrize("binding", ["systemd-python", "fallback"])
def test_broken_policy_keeps_the_old_one(guest: Guest, service: Service, binding: str) -> None:
    """A bad file is refused with file, line and key; the fields reach the journal by either way."""
    with ExitStack() as stack:
        if binding == "fallback":
            stack.enter_context(guest.without_python_package("systemd"))
        _break_and_mend(guest, service)
        service.stop()


def _break_and_mend(guest: Guest, service: Service) -> None:
    since = service.cursor()
    service.start()
    service.wait_cycles(1)
    service.policy(GOOD + "migration:\n  promot: 100MiB/s\n")
    assert service.systemctl("reload", check=False) != 0, "systemctl says that it was refused"
    wait(lambda: bool(records(service, since, Event.CONFIG_REJECTED)), 60, "no record of it")

    (rejected,) = records(service, since, Event.CONFIG_REJECTED)
    assert rejected["TIERD_FILE"] == POLICY
    assert rejected["TIERD_LINE"] == "7"
    assert rejected["TIERD_KEY"] == "migration.promot"
    assert "promote" in rejected["MESSAGE"], "what would be right"
    assert rejected["SYSLOG_IDENTIFIER"] == "tierd"
    assert rejected["PRIORITY"] in "34"
    (started,) = records(service, since, Event.STARTED)
    assert started["TIERD_MODE"] == "tier"
    assert started["TIERD_MOVER"] == "move_phys_pages"
    assert started["TIERD_SAMPLER"] == "page_idle"

    assert show(guest, "ActiveState") == "active"
    status = service.status()
    assert status["mode"] == "tier"
    text = json.dumps(status)
    assert f"{POLICY}:7" in text
    assert "migration.promot" in text
    scrape = service.wait_cycles(1)
    assert scrape.total("tierd_config_last_reload_successful") == 0
    assert scrape.total("tierd_config_reload_failures_total") >= 1

    service.policy(GOOD)
    service.systemctl("reload")
    assert service.wait_cycles(1).total("tierd_config_last_reload_successful") == 1


def test_catalog_explains_events(guest: Guest, service: Service) -> None:
    for event in Event:
        out = guest.run(f"journalctl --no-pager --list-catalog {event.value}", timeout=60)
        assert "tierd" in out.stdout, event


def test_control_socket_and_its_group(guest: Guest, service: Service) -> None:
    """Status is for the group; who is neither root nor in it is refused."""
    service.start()
    mode = guest.run("stat -c '%a %G' /run/tierd/control.sock", check=True).stdout.split()
    assert mode == ["660", "tierd"]
    guest.run("id outsider >/dev/null 2>&1 || useradd -M outsider", check=True)
    guest.run("id insider >/dev/null 2>&1 || useradd -M -G tierd insider", check=True)
    refused = guest.run("setpriv --reuid outsider --clear-groups tierctl pause", check=False)
    assert refused.returncode != 0
    insider = "setpriv --reuid insider --regid insider --init-groups"
    guest.run(f"{insider} tierctl pause", timeout=60, check=True)
    service.wait_cycles(2)
    assert service.status()["mode"] == "paused"
    guest.run(f"{insider} tierctl resume", timeout=60, check=True)
    service.wait_cycles(2)
    assert service.status()["mode"] == "tier"
    explain = guest.run(f"{insider} tierctl explain 4096", timeout=60, check=False)
    assert explain.returncode != 0, "a page frame number is for root only"


def test_hardened_unit_keeps_its_capabilities(guest: Guest, service: Service) -> None:
    """Inside its sandbox the daemon can do all that the same kernel gives to plain root."""
    service.start()
    scrape = service.wait_cycles(1)
    for name in ("page_idle", "move_phys_pages", "kpageflags", "kpagecgroup", "cpuset", "psi"):
        assert scrape.total("tierd_capability_available", capability=name) == 1, name


def test_metrics_pass_promtool(service: Service, tmp_path: Any) -> None:
    import shutil
    import subprocess

    from conftest import require

    promtool = shutil.which("promtool")
    if promtool is None:
        require("promtool", "promtool is not installed")
    assert promtool is not None
    service.start()
    service.wait_cycles(3)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=service.text(), capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stderr.strip() == ""


def test_a_named_number_is_used(guest: Guest, service: Service) -> None:
    """The look at the system calls that test_absent relies on does find the number here."""
    calls = traced_calls(guest, GOOD + "sampling:\n  cpu: 40%\n", until="syscall_0x224")
    assert "syscall_0x224" in calls, calls
