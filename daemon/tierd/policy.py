# SPDX-License-Identifier: Apache-2.0
"""Heat histogram + room -> `Target`: what one boundary between two tiers asks for this cycle.

No thresholds to set: the one between two tiers is the heat at which the frames above it just fill
the faster tier minus its headroom (capacity fitting, as in Memtis, SOSP '23).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.hotness import LEVELS, level_rate, level_state

DOOR: Final = 2
"""Of its last four looks a frame was accessed in at least so many before it is promoted: one
access is what a scan, a backup or an initialisation leaves behind."""

FACTOR: Final = 1.4
"""A candidate's rate is this many times its victim's at least."""

MORE_FACTOR: Final = 0.05
MOST_TIMES: Final = 16.0
"""The factor is so much larger for each time that what is known of the slower memory is twice as
much again, up to so many times the faster: of more candidates the best ones had more luck."""

GAIN: Final = 0.1
"""Accesses per window that a pair must win at least: two copies cost about as much as ten
accessed windows save, and a placement is not counted on to last for more than a hundred."""

NOISE: Final = 2.0
"""Standard errors of a count of accesses that are no sign of a change."""

LOOKS: Final = 4
"""Cycles with looks for which a change is remembered: of a frame that was looked at four times
since, the run of four outcomes may have begun with it."""


@dataclass(frozen=True, slots=True)
class Room:
    """One node. In frames; `low` and `high` are the headroom marks (free frames). `target`:
    whether pages may be moved to it."""

    node: int
    total: int
    free: int
    low: int
    high: int
    target: bool = True

    @property
    def spare(self) -> int:
        """Free frames beyond the headroom that tierd may fill; negative below the mark."""
        spare = self.free - self.high
        return spare if self.target else min(spare, 0)


@dataclass(frozen=True, slots=True)
class TierHeat:
    """One tier as the policy sees it. histogram: int64[LEVELS], level 0 unknown. settled: looks
    in this cycle at frames that were well known; expected, met: how many of those should have
    found them accessed by what heat foretells, and how many did."""

    rooms: tuple[Room, ...]
    histogram: NDArray[np.int64]
    settled: int = 0
    expected: float = 0.0
    met: int = 0


@dataclass(frozen=True, slots=True)
class Margin:
    """By how much a candidate must beat its victim: rate by `factor`, and by `gain` accesses per
    window."""

    factor: float
    gain: float


@dataclass(frozen=True, slots=True)
class Target:
    """What is wanted between tier `fast` and the slower ones.

    level: first level that belongs in `fast` or a faster tier; threshold: its lowest state.
    need: frames to demote per node of `fast` for headroom. room: frames that may be promoted to
    each node of `fast` without a demotion. cooling, heating: shares of the frames in `fast` and of
    those below that are thought to have changed places within the last looks.
    """

    fast: int
    level: int
    threshold: int
    capacity: int
    need: dict[int, int]
    room: dict[int, int]
    margin: Margin
    cooling: float
    heating: float

    @property
    def rate(self) -> float:
        """Accesses per window at the threshold."""
        return level_rate(self.level)


def decide(
    tiers: Sequence[TierHeat], changes: Sequence[Changes], *, looked: bool = True
) -> tuple[Target, ...]:
    """One `Target` for each boundary between adjacent tiers, fastest first; `changes` has one
    entry for each. looked: whether this cycle had looks, which tell of changes.

    The frames above a boundary's threshold fit into all tiers above the boundary.
    """
    targets: list[Target] = []
    total = np.zeros(LEVELS, np.int64)
    for tier in tiers:
        total += tier.histogram
    capacity = 0
    for index, tier in enumerate(tiers[:-1]):
        capacity += _capacity(tier)
        level = fit(total, capacity)
        if looked:
            changes[index].update(changed(tiers, index))
        changing = changes[index].share
        outnumber = _outnumber(tiers, index)
        targets.append(
            Target(
                fast=index,
                level=level,
                threshold=level_state(level),
                capacity=capacity,
                need={room.node: _need(room) for room in tier.rooms},
                room={room.node: max(room.spare, 0) for room in tier.rooms},
                margin=Margin(_factor(outnumber), GAIN),
                cooling=changing,
                heating=changing * outnumber,
            )
        )
    return tuple(targets)


def fit(histogram: NDArray[np.int64], capacity: int) -> int:
    """The lowest level such that all known frames from it up fit in `capacity` frames.

    1 when everything known fits; LEVELS when not even the hottest level does.
    """
    above = np.cumsum(histogram[:0:-1])
    return LEVELS - int(np.searchsorted(above, capacity, side="right"))


def _capacity(tier: TierHeat) -> int:
    """Frames of heat-tracked memory that the tier can hold: those there, and what is free above
    the headroom. Memory that is in no sample (the kernel's own) is not ours to give."""
    known = int(tier.histogram[1:].sum())
    spare = sum(room.spare for room in tier.rooms)
    most = sum(room.total - room.high for room in tier.rooms)
    return max(0, min(known + spare, most))


def short(tier: TierHeat) -> bool:
    """Whether headroom asks for demotions."""
    return any(_need(room) > 0 for room in tier.rooms)


def _need(room: Room) -> int:
    """Demote early: below the low mark, back up to the high one."""
    return room.high - room.free if room.free < room.low else 0


def _outnumber(tiers: Sequence[TierHeat], index: int) -> float:
    """Known frames in the tiers up to `index` per known frame below, at most 1: what leaves the
    hot set is about as much as what comes to it."""
    fast, slow = (
        sum(int(tier.histogram[1:].sum()) for tier in group)
        for group in (tiers[: index + 1], tiers[index + 1 :])
    )
    return min(max(fast, 1) / max(slow, 1), 1.0)


def _factor(outnumber: float) -> float:
    """By how much a candidate must beat its victim; see `_outnumber`."""
    return FACTOR + MORE_FACTOR * min(-log2(outnumber), log2(MOST_TIMES))


def changed(tiers: Sequence[TierHeat], index: int) -> tuple[float, float] | None:
    """Share of the settled frames in the tiers up to `index` that have changed places with those
    below, and its standard error; None when too little is known.

    Had all of them changed, they would be accessed as the frames below are. So the accesses that
    fail to appear, over those that would then, are the share. What is met is compared with what
    is met in all tiers: a program that does more or less, or a longer window, is no change of
    the hot set. Counts of accesses are sums of coin flips, so at most Poisson.
    """
    fast, slow = tiers[: index + 1], tiers[index + 1 :]
    settled, expected, met = (
        [float(sum(getattr(tier, name) for tier in group)) for group in (fast, slow)]
        for name in ("settled", "expected", "met")
    )
    if min(settled) < 1 or expected[0] < 1 or not sum(met):
        return None
    usual = sum(met) / sum(expected)
    most = 1 - (expected[1] / settled[1]) / (expected[0] / settled[0])
    if most <= 0:
        return None
    missing = 1 - met[0] / expected[0] / usual
    return missing / most, expected[0] ** -0.5 / most


class Changes:
    """How much of the hot set has changed within the last few looks."""

    def __init__(self) -> None:
        self._shares: deque[float] = deque(maxlen=LOOKS)

    def update(self, share: tuple[float, float] | None) -> float:
        """Take over what `changed` says of a cycle with looks; returns what `share` is then."""
        now = 0.0 if share is None else min(max(share[0] - NOISE * share[1], 0.0), 1.0)
        self._shares.append(now)
        return self.share

    @property
    def share(self) -> float:
        """The largest share of late, 0..1, beyond what may be noise."""
        return max(self._shares, default=0.0)
