# SPDX-License-Identifier: Apache-2.0
"""What moves cost and how long they last, measured as the engine works."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean

from tierd.benefit import PageCost, Residency, Worth, gap_between, worth
from tierd.config import Migration
from tierd.host import Host
from tierd.planner import Direction
from tierd.topology import Topology


class Appraiser:
    """Says for each boundary between tiers what a move must win. Not thread-safe."""

    def __init__(self, host: Host, topology: Topology, rules: Migration) -> None:
        self.rules = rules
        """Those of the policy in force."""
        self._costs = {direction: PageCost() for direction in Direction}
        self._residency = Residency()
        self._last: float | None = None
        latency = {node.id: node.read_latency for node in host.nodes()}
        speeds: list[float | None] = []
        for tier in topology.tiers:
            known = [each for node in tier.nodes if (each := latency.get(node)) is not None]
            speeds.append(fmean(known) if known else None)
        self._gaps = [gap_between(fast, slow) for fast, slow in pairwise(speeds)]

    def moved(self, direction: Direction, pages: int, cpu: float) -> None:
        """So many base pages moved, in so many CPU seconds."""
        self._costs[direction].learn(pages, cpu)

    def settle(self, now: float, promoted: int, left: int) -> None:
        """The cycle that began at `now` is over: recent promotions that are still in place, and
        those that were undone in it, in base pages."""
        if self._last is not None:
            self._residency.learn(now - self._last, promoted, left)
        self._last = now

    def begin(self) -> None:
        """What was learned of residency is about a pattern that is over."""
        self._residency.begin()

    def worth(self, boundary: int, window: float) -> Worth:
        """What a move across a boundary must win, in accesses per window of so many seconds."""
        promote, demote = (self._costs[each].seconds for each in Direction)
        gap, times = self._gaps[boundary], self.rules.benefit
        return worth(promote, demote, self.residency(window), window, gap, times)

    @property
    def costs(self) -> Mapping[Direction, float]:
        """CPU seconds per base page."""
        return {direction: cost.seconds for direction, cost in self._costs.items()}

    def residency(self, window: float) -> float:
        """Seconds that a promotion is expected to last."""
        return self._residency.expected(window, self.rules.min_residency)
