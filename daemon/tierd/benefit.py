# SPDX-License-Identifier: Apache-2.0
"""Whether a move is worth its cost: what it is expected to save for as long as it is expected to
last, against the CPU time that moving a page was measured to take.

Pure: times and counts come in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

COST: Final = 1.5e-6
"""CPU seconds per base page before anything was measured: what move_phys_pages takes natively."""

COST_MOST: Final = 4e-6
"""A dearer move is not believed: the whole machine is slow then, emulated or overloaded, and
accesses to slow memory with it."""

ENOUGH: Final = 4096
"""Base pages after which a measurement has half the weight."""

LINES: Final = 3.0
"""Cache lines that are fetched from memory per access that a sampler sees, at the least: it sees
that a page was accessed in a window, not how often."""

GAP: Final = 100e-9
"""Seconds by which a line of slow memory comes later, where the firmware does not tell: what is
usual between DRAM and CXL."""

GAP_LEAST: Final = 10e-9
"""Less than this between two tiers is a table that tells nothing."""

LASTS: Final = 100.0
"""Windows that a placement is counted on to last at most, and at first."""

PRIOR: Final = 64.0
"""Demoted base pages that weigh as much as that belief."""

FADE: Final = 0.95
"""Weight of the past per cycle in what is known of residency."""


class PageCost:
    """CPU seconds per base page moved in one direction."""

    def __init__(self) -> None:
        self.seconds = COST

    def learn(self, pages: int, seconds: float) -> None:
        """So many base pages moved in so much CPU time; attempts that failed are in the time."""
        if pages <= 0 or seconds <= 0:
            return
        weight = pages / (pages + ENOUGH)
        self.seconds += weight * (min(seconds / pages, COST_MOST) - self.seconds)


class Residency:
    """How long a promoted page stays: the time that recent promotions were exposed to demotion,
    over the number that were demoted. What was not demoted yet counts with the time so far."""

    def __init__(self) -> None:
        self._exposed = 0.0
        self._left = 0.0

    def learn(self, seconds: float, pages: int, left: int) -> None:
        """In so many seconds so many promoted base pages were in place and `left` of them left."""
        self._exposed = FADE * self._exposed + pages * seconds
        self._left = FADE * self._left + left

    def begin(self) -> None:
        """Forget: what was learned is about a pattern that is over."""
        self._exposed = self._left = 0.0

    def expected(self, window: float, least: float) -> float:
        """Seconds, at most `LASTS` windows of so many seconds each, and at least `least` unless
        that is more."""
        most = LASTS * window
        mean = (self._exposed + PRIOR * most) / (self._left + PRIOR)
        return min(max(mean, least), most)


@dataclass(frozen=True, slots=True)
class Worth:
    """Accesses per window that a page must win for its move to be worth it: `alone` into free
    room, `pair` where another one has to leave."""

    alone: float = 0.0
    pair: float = 0.0


FOR_NOTHING: Final = Worth()
"""Moves cost nothing."""


def worth(
    promote: float, demote: float, residency: float, window: float, gap: float, times: float
) -> Worth:
    """promote, demote: CPU seconds per page; residency, window: seconds; gap: seconds by which the
    slower tier is slower; times: how often a move must repay its cost, 0 for never mind."""
    saved = LINES * gap * residency
    if saved <= 0 or window <= 0:
        return FOR_NOTHING
    scale = times * window / saved
    return Worth(scale * promote, scale * (promote + demote))


def gap_between(fast: float | None, slow: float | None) -> float:
    """Seconds between the latencies of two tiers as the firmware tells them, or what is usual."""
    if fast is None or slow is None or slow - fast < GAP_LEAST:
        return GAP
    return slow - fast
