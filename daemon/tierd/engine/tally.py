# SPDX-License-Identifier: Apache-2.0
"""What a cycle counts on its way, and the report that this becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.engine.report import ClassReport, FlowReport, SamplerReport, TierReport
from tierd.host import CpuTimes
from tierd.hotness import LEVELS, Seen, level_rate
from tierd.planner import Direction, Moves, Reason
from tierd.policy import TierHeat
from tierd.samplers import SamplerStatus
from tierd.topology import TierInfo

HEAT_BUCKETS: Final = 16

_RATES: Final = np.array([0.0, *(level_rate(level) for level in range(1, LEVELS))])

Flow = tuple[Direction, int, int]
"""Direction, source node, target node."""


@dataclass(slots=True)
class Waste:
    """Per class (the last: none): base pages whose promotion was undone, and the sum over them
    of the seconds that it lasted."""

    pages: NDArray[np.int64]
    lasted: NDArray[np.float64]

    @property
    def life(self) -> NDArray[np.float64]:
        """Mean seconds between promotion and demotion, 0 without waste."""
        mean: NDArray[np.float64] = self.lasted / np.maximum(self.pages, 1)
        return mean


class Tally:
    """Counts of one cycle. Pages are base pages."""

    def __init__(self, classes: int) -> None:
        """For `classes` configured classes; arrays have one entry more, for pages in none."""
        self.seen: list[Seen] = []
        self.samplers: list[SamplerReport] = []
        self.fast_share: float | None = None
        """The sampler's own estimate of the hit ratio, where it has one."""
        self.confirmed = 0
        """Blocks that have become hot and are known for it since this cycle."""
        self.attempted: Counter[Flow] = Counter()
        self.flows: Counter[Flow] = Counter()
        self.skipped: Counter[tuple[Direction, Reason]] = Counter()
        self.refused: Counter[tuple[Direction, Reason]] = Counter()
        self.seconds = dict.fromkeys(Direction, 0.0)
        self.cpu: dict[str, CpuTimes] = {}
        self.moved = {each: np.zeros(classes + 1, np.int64) for each in Direction}
        self.waste = Waste(np.zeros(classes + 1, np.int64), np.zeros(classes + 1))

    def sampled(self, status: SamplerStatus, seen: Sequence[Seen], lost: int) -> None:
        """One sampler is done for this cycle."""
        if status.fast_share is not None:
            self.fast_share = status.fast_share
        self.confirmed += status.confirmed
        self.seen += seen
        self.samplers.append(
            SamplerReport(
                name=status.name,
                looked=sum(each.looked for each in seen),
                accessed=sum(each.accessed for each in seen),
                lost=lost,
                window=status.window,
                coverage=status.coverage,
                round_time=status.round_time,
                find_time=status.find_time,
            )
        )

    def planned(self, direction: Direction, moves: Moves) -> None:
        """These are to be moved (or would be)."""
        _count(self.attempted, direction, moves, moves.target, np.ones(len(moves.pfn), np.bool_))

    def carried_out(
        self,
        direction: Direction,
        moves: Moves,
        landed: NDArray[np.int32],
        moved: NDArray[np.bool_],
    ) -> None:
        """Those that moved, by the node they landed on."""
        _count(self.flows, direction, moves, landed, moved)

    def flow_reports(self) -> tuple[FlowReport, ...]:
        """Sorted by direction, source and target."""
        return tuple(
            FlowReport(*flow, attempted=self.attempted[flow], moved=self.flows[flow])
            for flow in sorted(self.attempted | self.flows)
        )

    @property
    def window(self) -> float:
        """Seconds of the longest sampling window."""
        return max((each.window for each in self.samplers), default=0.0)

    def tier_reports(
        self, tiers: Sequence[TierInfo], heats: Sequence[TierHeat], level: int, page: int
    ) -> tuple[TierReport, ...]:
        """The tiers as they are now; `level` is the first level above the threshold."""
        edges = np.arange(HEAT_BUCKETS) * (LEVELS - 1) // HEAT_BUCKETS
        reports = []
        for tier, heat in zip(tiers, heats, strict=True):
            here = [seen for seen in self.seen if seen.node in tier.nodes]
            reports.append(
                TierReport(
                    name=tier.name,
                    nodes=tier.nodes,
                    total=sum(room.total for room in heat.rooms) * page,
                    free=sum(room.free for room in heat.rooms) * page,
                    headroom_low=sum(room.low for room in heat.rooms) * page,
                    headroom_high=sum(room.high for room in heat.rooms) * page,
                    looked_frames=sum(seen.looked for seen in here),
                    accessed_frames=sum(seen.accessed for seen in here),
                    hot=int(heat.histogram[level:].sum()) * page,
                    heat=tuple(int(n) for n in np.add.reduceat(heat.histogram[1:], edges)),
                )
            )
        return tuple(reports)

    def class_reports(
        self,
        match: Sequence[str],
        resident: Sequence[Mapping[str, int]],
        stopped: NDArray[np.bool_],
        page: int,
    ) -> tuple[ClassReport, ...]:
        """The configured classes; resident: bytes of each by tier name; stopped: bool[classes + 1];
        page: bytes."""
        return tuple(
            ClassReport(
                match=name,
                resident=resident[index],
                promoted=int(self.moved[Direction.PROMOTE][index]) * page,
                demoted=int(self.moved[Direction.DEMOTE][index]) * page,
                wasted=int(self.waste.pages[index]) * page,
                stopped=bool(stopped[index]),
            )
            for index, name in enumerate(match)
        )


def hit_ratio(tiers: Sequence[TierHeat]) -> float | None:
    """Share of the accesses that heat expects in the fastest tier; None before the first look.

    From heat, not from the frames found accessed in one cycle: sampling goes where things
    change, so that one cycle's looks are no fair sample of all frames.
    """
    expected = [float(tier.histogram @ _RATES) for tier in tiers]
    return expected[0] / sum(expected) if sum(expected) else None


@dataclass(slots=True)
class Circumstances:
    """What else a report says about its cycle."""

    mode: str
    started: float
    pressure: Mapping[str, float]
    rate: dict[Direction, int] = field(default_factory=dict)
    back_off: float = 0.0
    causes: tuple[str, ...] = ()
    deferred: bool = False


def _count(
    counter: Counter[Flow],
    direction: Direction,
    moves: Moves,
    target: NDArray[np.int32],
    which: NDArray[np.bool_],
) -> None:
    """Add base pages of the chosen entries by flow."""
    if not which.any():
        return
    source, end = moves.source[which].astype(np.int64), target[which].astype(np.int64)
    nodes = int(max(source.max(), end.max())) + 1
    pages = np.bincount(source * nodes + end, moves.pages[which])
    for flow in np.flatnonzero(pages).tolist():
        counter[direction, flow // nodes, flow % nodes] += int(pages[flow])
