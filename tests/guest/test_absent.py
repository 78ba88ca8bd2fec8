# SPDX-License-Identifier: Apache-2.0
"""A kernel without the call: said once and plainly, and no number is ever guessed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guest import loads
from guest.service import Service, traced_calls
from guest.tiering import TIERS
from rig import Guest
from tierd.journal import Event

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1500)]

POLICY = TIERS + "sampling: {cpu: 40%}\n"


@pytest.fixture(scope="module")
def bare(guest_off: Guest) -> Service:
    loads.install(guest_off)
    return Service(guest_off)


@pytest.fixture(autouse=True)
def _stopped(bare: Service) -> Iterator[None]:
    yield
    bare.systemctl("stop", check=False)


def test_says_so_once_and_observes(bare: Service) -> None:
    guest = bare.guest
    bare.policy(POLICY)
    since = bare.cursor()
    load = loads.start(guest, "load-hot", 64, 32)
    load.migrate(0, 1)
    bare.start()
    scrape = bare.wait_cycles(8)
    load_share = load.share(1)
    load.stop()

    absent = [
        record
        for record in bare.journal(since)
        if record.get("MESSAGE_ID") == Event.CAPABILITY_ABSENT.value
        and record.get("TIERD_CAPABILITY") == "move_phys_pages"
    ]
    assert len(absent) == 1, absent
    assert "/sys/kernel/mm/move_phys_pages" in absent[0]["TIERD_REASON"]
    assert load_share > 0.99, "an observer moves nothing"
    assert scrape.total("tierd_degraded") >= 1
    assert scrape.total("tierd_capability_available", capability="move_phys_pages") == 0
    assert scrape.total("tierd_promoted_pages_total") == 0
    status = bare.status()
    assert status["mode"] == "observe"
    assert any("move_phys_pages" in reason for reason in status["degraded"])


def test_required_is_an_error(bare: Service) -> None:
    guest = bare.guest
    bare.policy(POLICY + "migration: {movers: {move_phys_pages: required}}\n")
    assert bare.systemctl("start", check=False) != 0
    shown = guest.run("systemctl show --value -p ExecMainStatus tierd.service", check=True)
    assert shown.stdout.strip() == "3"
    guest.run("systemctl reset-failed tierd.service", check=False)


def test_no_number_is_guessed(bare: Service) -> None:
    """That this look would find the number is shown where the kernel names it (test_service)."""
    calls = traced_calls(bare.guest, POLICY)
    assert {"openat", "pwrite64", "pread64"} & calls, calls
    assert not {call for call in calls if call.startswith("syscall_")}, calls
    # What the numbers of earlier proposals of the call, 454 and 462, name by now.
    assert not {"futex_wake", "mseal"} & calls, calls
