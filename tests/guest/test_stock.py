# SPDX-License-Identifier: Apache-2.0
"""Debian's own kernel, unpatched: tierd says what is missing, does what is left, and harms nothing.

That kernel has no move_phys_pages, no idle page tracking, and automatic NUMA balancing is on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest

from guest import loads
from guest.service import Service, traced_calls
from guest.tiering import TIERS
from rig import Guest
from tierd.journal import Event

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1500), pytest.mark.kernel("stock")]

ABSENT = {
    "move_phys_pages": "/sys/kernel/mm/move_phys_pages",
    "page_idle": "/sys/kernel/mm/page_idle/bitmap",
}
"""What this kernel lacks, and the file that shows it."""

POLICY = TIERS + "sampling: {cpu: 40%}\n"


@pytest.fixture(scope="module")
def stock(guest: Guest) -> Service:
    loads.install(guest)
    return Service(guest)


@pytest.fixture(autouse=True)
def _stopped(stock: Service) -> Iterator[None]:
    yield
    stock.systemctl("stop", check=False)


def test_it_is_the_packaged_kernel(guest: Guest) -> None:
    assert "+deb13" in guest.release
    assert "tierd" not in guest.release
    for path in ABSENT.values():
        assert guest.run(["test", "-e", path], check=False).returncode == 1, path
    assert guest.get("/proc/sys/kernel/numa_balancing") != b"0\n"


def test_cxl_memory(boot: Callable[..., Guest]) -> None:
    """The device's memory comes online there, too, movable and in a tier of its own."""
    guest = boot("stock", "B")
    node = "/sys/devices/system/node"
    assert guest.get(f"{node}/has_memory") == b"0-1\n"
    assert guest.run(f"cat {node}/node1/memory*/valid_zones | sort -u").stdout == "Movable\n"
    document = json.loads(guest.run("tierd probe --json", timeout=120).stdout)
    assert [tier["nodes"] for tier in document["tiers"]] == [[0], [1]]
    assert not guest.complaints()


def test_probe_says_what_is_there_and_why_not_more(stock: Service) -> None:
    stock.policy(POLICY)
    document = json.loads(stock.guest.run("tierd probe --json", timeout=120).stdout)
    found = {each["name"]: each for each in document["capabilities"]}
    for name, path in ABSENT.items():
        assert not found[name]["available"], name
        assert path in found[name]["reason"]
    for name in ("damon", "kpageflags", "kpagecgroup", "cpuset", "psi", "numa", "move_pages"):
        assert found[name]["available"], found[name]
    # Every rung that is not taken has its reason, and what is missing is not taken.
    rungs = document["ladder"]
    assert {rung["kind"] for rung in rungs} == {"hot", "cold", "mover"}
    assert all(rung["reason"] for rung in rungs)
    taken = {rung["name"] for rung in rungs if rung["chosen"]}
    assert not taken & set(ABSENT)
    assert [tier["nodes"] for tier in document["tiers"]] == [[0], [1]]
    assert not document["problem"]
    assert any("numa_balancing" in text for text in document["foreign"]), document["foreign"]


def test_runs_and_says_what_is_missing_once(stock: Service) -> None:
    stock.policy(POLICY)
    since = stock.cursor()
    stock.start()
    scrape = stock.wait_cycles(8)

    records = list(stock.journal(since))
    for name, path in ABSENT.items():
        said = [
            record
            for record in records
            if record.get("MESSAGE_ID") == Event.CAPABILITY_ABSENT.value
            and record.get("TIERD_CAPABILITY") == name
        ]
        assert len(said) == 1, (name, said)
        assert path in said[0]["TIERD_REASON"]
        assert scrape.total("tierd_capability_available", capability=name) == 0
    foreign = [r for r in records if r.get("MESSAGE_ID") == Event.FOREIGN_TIERER.value]
    assert len(foreign) == 1, foreign
    assert not [r for r in records if r.get("MESSAGE_ID") == Event.CYCLE_FAILED.value]
    assert scrape.total("tierd_degraded") >= 1

    status = stock.status()
    chosen = {rung["name"] for rung in status["ladder"] if rung["chosen"]}
    if "move_pages" not in chosen:  # nothing to move with: an observer
        assert status["mode"] == "observe"
        assert any("move_phys_pages" in reason for reason in status["degraded"])
        assert scrape.total("tierd_promoted_pages_total") == 0
        assert scrape.total("tierd_demoted_pages_total") == 0
    # Nothing of it came as a surprise to the kernel or to systemd.
    shown = stock.guest.run("systemctl show --value -p NRestarts tierd.service").stdout
    assert shown.strip() == "0"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("move_phys_pages", "migration: {movers: {move_phys_pages: required}}\n"),
        ("page_idle", "sampling: {sources: {page_idle: required}}\n"),
    ],
    ids=["mover", "source"],
)
def test_required_is_an_error(stock: Service, name: str, rule: str) -> None:
    guest = stock.guest
    stock.policy(TIERS + rule)
    since = stock.cursor()
    assert stock.systemctl("start", check=False) != 0
    shown = guest.run("systemctl show --value -p ExecMainStatus tierd.service", check=True)
    assert shown.stdout.strip() == "3"
    messages = [record["MESSAGE"] for record in stock.journal(since)]
    expected = re.compile(rf"{name}: required, but not available here: {re.escape(ABSENT[name])}")
    assert any(expected.search(text) for text in messages), messages
    guest.run("systemctl reset-failed tierd.service", check=False)


def test_no_number_is_guessed(stock: Service) -> None:
    """That this look would find the number is shown where the kernel names it (test_service)."""
    calls = traced_calls(stock.guest, POLICY)
    assert {"openat", "pread64"} & calls, calls
    assert not {call for call in calls if call.startswith("syscall_")}, calls
    # What the numbers of earlier proposals of the call, 454 and 462, name by now.
    assert not {"futex_wake", "mseal"} & calls, calls
