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

CALM: Final = 4.0
"""Standard errors by which the rates of a candidate and its victim differ when heat predicts
accesses well: then a difference within the noise is most likely noise, and moving on it would
move for ever."""

EAGER: Final = 1.0
"""The same when the hot set is just changing: then old evidence is worth little, and to wait
costs more than to err."""

SHIFT_FULL: Final = 0.10
"""Share of the expected accesses that fail to appear in the faster tier at which the hot set
counts as changing altogether."""

SHIFT_NOISE: Final = 0.02
"""The same share at which nothing is said about a change."""


@dataclass(frozen=True, slots=True)
class Room:
    """One node. In frames; `low` and `high` are the headroom marks (free frames)."""

    node: int
    total: int
    free: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class TierHeat:
    """One tier as the policy sees it. histogram: int64[LEVELS], level 0 unknown. expected and
    met: accesses of known frames in this cycle's looks, predicted from heat and seen."""

    target: bool
    rooms: tuple[Room, ...]
    histogram: NDArray[np.int64]
    expected: float = 0.0
    met: int = 0


@dataclass(frozen=True, slots=True)
class Margin:
    """By how much a candidate must beat its victim: rate by `factor`, and by `errors` standard
    errors of the difference."""

    factor: float
    errors: float


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

    @property
    def rate(self) -> float:
        """Accesses per window at the threshold."""
        return level_rate(self.level)


def decide(tiers: Sequence[TierHeat]) -> tuple[Target, ...]:
    """One `Target` for each boundary between adjacent tiers, fastest first.

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
                room={
                    room.node: max(room.free - room.high, 0) if tier.target else 0
                    for room in tier.rooms
                },
                margin=margin(tier.expected, tier.met),
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
    spare = sum(room.free - room.high for room in tier.rooms)
    most = sum(room.total - room.high for room in tier.rooms)
    return max(0, min(known + spare, most))


def _need(room: Room) -> int:
    """Demote early: below the low mark, back up to the high one."""
    return room.high - room.free if room.free < room.low else 0


def margin(expected: float, met: int) -> Margin:
    """The margin for this cycle from how well heat foretold the accesses to the faster tier.

    When the hot set changes, a share of the accesses that heat expects there fail to appear.
    """
    if expected < 1:
        return Margin(FACTOR, CALM)
    missing = (expected - met) / expected
    share = min(max((missing - SHIFT_NOISE) / (SHIFT_FULL - SHIFT_NOISE), 0.0), 1.0)
    return Margin(FACTOR, CALM + (EAGER - CALM) * share)
