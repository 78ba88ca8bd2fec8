# SPDX-License-Identifier: Apache-2.0
"""Policies run side by side over one trace, and what comes of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tierd import topology
from tierd.config import Config, Mode
from tierd.engine import CycleReport, Engine
from tierd.movers.move_phys_pages import MovePhysPages
from tierd.pages import OwnerTable
from tierd.planner import Direction, Reason
from tierd.replay.host import TracedHost
from tierd.samplers.replay import ReplaySampler
from tierd.topology import Topology
from tierd.trace import Cycle, Header

OTHERS = ""
"""Name of the pages that belong to none of a policy's classes."""


@dataclass(frozen=True, slots=True)
class Point:
    """One cycle of a replay. Bytes; `resident` by tier and class, in base pages seen."""

    time: float
    hit_ratio: float | None
    recorded: float | None
    """The hit ratio with the pages where the recording had them."""
    promoted: int
    demoted: int
    wasted: int
    resident: Mapping[str, Mapping[str, int]]


@dataclass(slots=True)
class Outcome:
    """What one policy does to a trace."""

    tiers: tuple[str, ...]
    page_size: int
    points: list[Point] = field(default_factory=list)
    skipped: Counter[tuple[Direction, Reason]] = field(default_factory=Counter)
    stopped: int = 0
    """Cycles in which promotion was stopped for some class."""

    def total(self, name: str) -> int:
        """Sum of promoted, demoted or wasted bytes."""
        return sum(int(getattr(point, name)) for point in self.points)

    def mean(self, name: str = "hit_ratio") -> float | None:
        """Mean over the cycles for which it is known."""
        known = [value for p in self.points if (value := getattr(p, name)) is not None]
        return float(np.mean(known)) if known else None

    def last(self, name: str = "hit_ratio") -> float | None:
        """The last known value."""
        known = [value for p in self.points if (value := getattr(p, name)) is not None]
        return known[-1] if known else None


@dataclass(frozen=True, slots=True)
class Forecast:
    """All outcomes, in the order of the policies, over so many cycles and seconds."""

    outcomes: tuple[Outcome, ...]
    cycles: int
    seconds: float
    frames: int
    """Base pages in use that were seen in the trace, at its end."""


class _Run:
    """One policy at work on a machine of its own."""

    def __init__(self, header: Header, config: Config) -> None:
        self._host = TracedHost(header)
        self._topology: Topology = topology.build(self._host.nodes(), config.tiers, 1)
        self._fast = self._topology.tiers[0].nodes
        self._classes = config.classes
        # What a policy would do is the question, also of one that observes.
        config = config.model_copy(update={"mode": Mode.TIER})
        rules = config.migration
        self._sampler = ReplaySampler(self._host.see, lambda: self._host.fast_share(self._fast))
        mover = MovePhysPages(
            self._host,
            respect_mempolicy=rules.respect_mempolicy,
            unmapped_page_cache=rules.unmapped_page_cache,
        )
        self._engine = Engine(self._host, config, self._topology, [self._sampler], mover)
        self.outcome = Outcome(tuple(tier.name for tier in self._topology.tiers), header.page_size)

    def step(self, cycle: Cycle) -> None:
        self._host.begin(cycle)
        self._sampler.feed(cycle)
        report = self._engine.cycle()
        recorded = self._host.recorded_share(self._fast)
        # The share that counts is the one after the moves: the next accesses find them done.
        hit_ratio = self._host.fast_share(self._fast)
        self._host.end(cycle)
        self._add(report, hit_ratio, recorded)

    def _add(self, report: CycleReport, hit_ratio: float | None, recorded: float | None) -> None:
        page = self.outcome.page_size
        moved = Counter[Direction]()
        for flow in report.flows:
            moved[flow.direction] += flow.moved * page
        self.outcome.points.append(
            Point(
                report.started,
                hit_ratio,
                recorded,
                moved[Direction.PROMOTE],
                moved[Direction.DEMOTE],
                report.wasted_pages * page,
                self._resident(),
            )
        )
        self.outcome.skipped.update(report.skipped)
        self.outcome.stopped += any(each.stopped for each in report.classes)

    def _resident(self) -> dict[str, dict[str, int]]:
        """Base pages by tier and class, in the order of the policy."""
        host = self._host
        known = tuple(host.cgroups_seen.values())
        owner = OwnerTable.build(known, self._classes).classes(host.inodes)
        names = [each.match for each in self._classes]
        result: dict[str, dict[str, int]] = {}
        for tier in self._topology.tiers:
            rows = [host.node_ids.index(node) for node in tier.nodes]
            pages = host.placement.count[rows].sum(axis=0)
            here = dict.fromkeys([*names, OTHERS], 0)
            for index, count in enumerate(pages.tolist()):
                cls = int(owner[index]) if index < len(owner) else -1
                here[names[cls] if cls >= 0 else OTHERS] += count
            result[tier.name] = here
        return result

    @property
    def frames(self) -> int:
        return int(self._host.placement.count.sum())


def replay(header: Header, cycles: Iterable[Cycle], policies: Sequence[Config]) -> Forecast:
    """Run every policy over the cycles, which are read once.

    Raises TopologyError for a policy whose tiers the recorded host does not have.
    """
    runs = [_Run(header, config) for config in policies]
    first = last = 0.0
    count = 0
    for cycle in cycles:
        first = first if count else cycle.time
        last = cycle.time
        count += 1
        for run in runs:
            run.step(cycle)
    frames = runs[0].frames if runs else 0
    return Forecast(tuple(run.outcome for run in runs), count, last - first, frames)
