# SPDX-License-Identifier: Apache-2.0
"""Heat histogram + room -> `Target`: what one boundary between two tiers asks for this cycle.

No thresholds to set: the one between two tiers is the heat at which the frames above it just fill
the faster tier minus its headroom (capacity fitting, as in Memtis, SOSP '23).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.hotness import LEVELS, level_rate, level_state

DOOR: Final = 2
"""Of its last four looks a frame was accessed in at least so many before it is promoted: one
access is what a scan, a backup or an initialisation leaves behind."""

FACTOR: Final = 1.5
"""A candidate's rate is this many times its victim's at least."""

EAGER: Final = 0.5
"""Standard errors by which the rates of a candidate and its victim differ at least."""

CALM: Final = 4.0
"""The same once nothing is gained by less: among many frames with the same rate some always look
better by chance, and moving on that would move for ever."""

STRICT: Final = 6.0
"""The same when even such moves bring nothing."""

GAIN: Final = 0.1
"""Accesses per window that a pair must win at least: two copies cost about as much as ten
accessed windows save, and a placement is not counted on to last for more than a hundred."""

TRUE_SHARE: Final = 0.5
"""Share of the gain that the moves promised and that has to come true: less, and they were chosen
by noise."""

JUDGED: Final = 64
"""Pairs whose outcome is awaited before it is judged."""

RELAX: Final = 0.03
"""Share by which the margin goes back towards `CALM` in a cycle."""

SHIFT_FULL: Final = 0.10
"""Share of the expected accesses that fail to appear in the faster tier at which the hot set
counts as changing altogether."""

USUAL: Final = 1 / 8
"""Gain of the mean of accesses met over accesses expected."""

NOISE: Final = 2.0
"""Standard errors of a count of accesses that are no sign of a change."""

SHIFT_NOISE: Final = 0.02
"""The same share at which nothing is said about a change."""


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
    """One tier as the policy sees it. histogram: int64[LEVELS], level 0 unknown. expected and
    met: accesses of known frames in this cycle's looks, predicted from heat and seen."""

    rooms: tuple[Room, ...]
    histogram: NDArray[np.int64]
    expected: float = 0.0
    met: int = 0


@dataclass(frozen=True, slots=True)
class Margin:
    """By how much a candidate must beat its victim: rate by `factor`, and by `errors` standard
    errors of the difference, and by `gain` accesses per window."""

    factor: float
    errors: float
    gain: float


@dataclass(frozen=True, slots=True)
class Target:
    """What is wanted between tier `fast` and the slower ones.

    level: first level that belongs in `fast` or a faster tier; threshold: its lowest state.
    need: frames to demote per node of `fast` for headroom. room: frames that may be promoted to
    each node of `fast` without a demotion.
    """

    fast: int
    level: int
    threshold: int
    capacity: int
    need: dict[int, int]
    room: dict[int, int]
    margin: Margin
    changing: float

    @property
    def rate(self) -> float:
        """Accesses per window at the threshold."""
        return level_rate(self.level)


def decide(tiers: Sequence[TierHeat], cautions: Sequence[Caution]) -> tuple[Target, ...]:
    """One `Target` for each boundary between adjacent tiers, fastest first; `cautions` has one
    entry for each.

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
        targets.append(
            Target(
                fast=index,
                level=level,
                threshold=level_state(level),
                capacity=capacity,
                need={room.node: _need(room) for room in tier.rooms},
                room={room.node: max(room.spare, 0) for room in tier.rooms},
                margin=cautions[index].update(_foretold(tiers, index)),
                changing=cautions[index].changing,
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


def _need(room: Room) -> int:
    """Demote early: below the low mark, back up to the high one."""
    return room.high - room.free if room.free < room.low else 0


def _foretold(tiers: Sequence[TierHeat], index: int) -> tuple[float, float] | None:
    """Accesses met over accesses expected in the tiers up to `index`, over the same in all: a
    program that does more or less, or a longer window, is no change of the hot set. With it the
    relative standard error (the counts are sums of coin flips, so at most Poisson). None when too
    little is known."""
    fast, every = tiers[: index + 1], tiers
    expected = [sum(tier.expected for tier in group) for group in (fast, every)]
    met = [sum(tier.met for tier in group) for group in (fast, every)]
    if min(expected) < 1 or not met[1]:
        return None
    ratio = (met[0] / expected[0]) / (met[1] / expected[1])
    return ratio, (1 / expected[0]) ** 0.5


class Caution:
    """How much better a candidate must look than its victim, learned from how moves turn out.

    Begins eager: at the start everything is known badly and most is in the wrong place. Each
    cohort of moves promised a gain, the difference of the rates; a little later their looks say
    what came of it. Where too little of the promise came true the margin grows, where most of it
    did it shrinks; without news it goes back to calm. When the hot set changes it is eager.
    """

    def __init__(self) -> None:
        self.errors = EAGER
        self.changing = 0.0
        self._usual: float | None = None
        self._pairs = 0
        self._promised = 0.0
        self._gained = 0.0

    def update(self, foretold: tuple[float, float] | None) -> Margin:
        """The margin for this cycle; `foretold` as `_foretold` says."""
        self.changing = self._missing(*foretold) if foretold is not None else 0.0
        self.errors += RELAX * (CALM - self.errors)
        share = (self.changing - SHIFT_NOISE) / (SHIFT_FULL - SHIFT_NOISE)
        if share > 0:
            self.errors = min(self.errors, CALM + (EAGER - CALM) * min(share, 1.0))
        return Margin(FACTOR, self.errors, GAIN)

    def _missing(self, foretold: float, error: float) -> float:
        """Share of the accesses, 0..1, that fail to appear, beyond what usually fails to: heat
        that was told to believe in changes overestimates, and must not take that for another."""
        if self._usual is None:
            self._usual = foretold
        missing = 1 - foretold / max(self._usual, 1e-6) - NOISE * error
        self._usual += USUAL * (foretold - self._usual)
        return min(max(missing, 0.0), 1.0)

    def begin(self) -> None:
        """Be eager as at the start: what was learned is about a pattern that is over."""
        self.errors = EAGER
        self._pairs, self._promised, self._gained = 0, 0.0, 0.0

    def learn(self, pairs: int, promised: float, gained: float) -> None:
        """So many pairs promised and gained so many accesses per window, in sum."""
        self._pairs += pairs
        self._promised += promised
        self._gained += gained
        if self._pairs < JUDGED:
            return
        good = self._gained > max(TRUE_SHARE * self._promised, GAIN * self._pairs)
        self.errors *= 0.8 if good else 1.3
        self.errors = min(max(self.errors, EAGER), STRICT)
        self._pairs, self._promised, self._gained = 0, 0.0, 0.0
