# SPDX-License-Identifier: Apache-2.0
"""What tests of tierd at work on two tiers share: the policy, a clean start and end, and what the
kernel says of memory and moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

from guest.loads import PAGE
from guest.service import Service
from rig import Guest

TIERS = """\
version: 1
mode: tier
tiers:
  - {name: dram, nodes: [0]}
  - {name: cxl, nodes: [1]}
"""

POLICY = TIERS + "sampling: {cpu: 80%}\n"
"""An emulated core is some fifty times slower than a real one."""


@contextmanager
def tidy(service: Service) -> Iterator[Service]:
    """tierd stopped, with the policy of these tests; afterwards no loads and clean caches."""
    service.policy(POLICY)
    try:
        yield service
    finally:
        service.systemctl("stop", check=False)
        service.guest.run("systemctl stop 'load-*.service'", timeout=120, check=False)
        service.guest.run("sync; echo 3 > /proc/sys/vm/drop_caches", timeout=120, check=False)


def vmstat(guest: Guest, name: str) -> int:
    lines = guest.run(f"grep '^{name} ' /proc/vmstat", check=True).stdout.split()
    return int(lines[1])


def free_mib(guest: Guest, node: int) -> int:
    path = f"/sys/devices/system/node/node{node}/meminfo"
    return int(guest.run(f"grep MemFree {path}", check=True).stdout.split()[3]) // 1024


class TooManyCycles(AssertionError):
    """The bar on cycles was missed."""


def cycles_until(
    service: Service, reached: Callable[[], float], share: float, limit: int, since: int = 0
) -> int:
    """Cycles that have ended since the count was `since` when `reached()` is at least `share`;
    fails past the limit. Cycles that end during the test's own look are counted."""
    while True:
        value = reached()
        cycle = service.cycles() - since
        if value >= share and cycle <= limit:
            return cycle
        if cycle > limit:
            raise TooManyCycles(f"{value:.1%} after {cycle} cycles")
        time.sleep(0.4)  # each look takes a good part of an emulated core away from tierd


@dataclass
class Watch:
    """Follows loads over tierd's cycles. `moved` are bytes since the watch began."""

    guest: Guest
    service: Service
    began: int = field(init=False)
    first_cycle: int = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count moves and cycles from here."""
        self.began = vmstat(self.guest, "pgmigrate_success")
        self.first_cycle = self.service.cycles()

    @property
    def moved(self) -> int:
        return (vmstat(self.guest, "pgmigrate_success") - self.began) * PAGE

    @property
    def cycles(self) -> int:
        return self.service.cycles() - self.first_cycle

    def until(self, reached: Callable[[], float], share: float, limit: int) -> int:
        """`cycles_until`, from the cycle on in which the watch began."""
        return cycles_until(self.service, reached, share, limit, self.first_cycle)

    def over(self, reached: Callable[[], float], cycles: int) -> tuple[float, float]:
        """Mean and least of `reached()` over that many cycles."""
        until = self.cycles + cycles
        seen = [reached()]
        while self.cycles < until:
            time.sleep(0.4)
            seen.append(reached())
        return fmean(seen), min(seen)
