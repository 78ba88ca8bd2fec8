# SPDX-License-Identifier: Apache-2.0
"""Programs of the simulated machine: how often each of their pages is accessed.

Nothing is drawn in advance. A look at a frame asks how many accesses its page had to expect
since it was marked; that is computed for the pages looked at, from their index alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Indexes = NDArray[np.int64]
"""Page indexes within one program, shape (n,)."""
Times = NDArray[np.float64]
"""Seconds of the simulated clock, shape (n,)."""
Counts = NDArray[np.float64]
"""Expected accesses (or accesses per second), shape (n,)."""

HOT_SHARE: Final = 0.9
"""Share of a hotset's or phase program's accesses that go to its hot part."""

LINES: Final = 64
"""Accesses that a scan makes to a page before it goes on: one per cache line."""


class WorkloadSpec(Protocol):
    """What `tierd.config.Workload` says. Sizes in bytes, period in seconds."""

    @property
    def kind(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def hot(self) -> int | None: ...
    @property
    def skew(self) -> float: ...
    @property
    def period(self) -> float: ...
    @property
    def shift(self) -> float: ...
    @property
    def programs(self) -> int: ...
    @property
    def lifetime(self) -> float | None: ...
    @property
    def accesses(self) -> float: ...
    @property
    def cgroup(self) -> str: ...
    @property
    def folios(self) -> Mapping[int, float]: ...


class Pattern(Protocol):
    """How one program spreads its accesses over its pages."""

    def rates(self, index: Indexes, now: float) -> Counts:
        """Accesses per second of each page at `now`."""

    def expected(self, index: Indexes, since: Times, now: float) -> Counts:
        """Accesses that each page had to expect between `since` and `now`."""


@dataclass(frozen=True)
class Uniform:
    """Every page alike."""

    pages: int
    accesses: float

    def rates(self, index: Indexes, now: float) -> Counts:
        return np.full(len(index), self.accesses / self.pages)

    def expected(self, index: Indexes, since: Times, now: float) -> Counts:
        return self.rates(index, now) * (now - since)


@dataclass(frozen=True)
class Zipf:
    """The page of rank r (from 0) gets a share of 1 / (r + 1) ** skew. Ranks are spread over
    the pages by an affine bijection, so that hot pages have no neighbours."""

    pages: int
    accesses: float
    skew: float
    seed: int = 0
    _step: int = field(init=False)
    _scale: float = field(init=False)

    def __post_init__(self) -> None:
        # Below 2**30, so that index * step stays within 63 bits for up to 2**33 pages.
        step = min(int(self.pages * 0.6180339887), 2**30) | 1
        while math.gcd(step, self.pages) != 1:
            step += 2
        object.__setattr__(self, "_step", step)
        object.__setattr__(self, "_scale", self.accesses / _harmonic(self.pages, self.skew))

    def ranks(self, index: Indexes) -> Indexes:
        """Rank of each page, 0 the hottest."""
        return (index * self._step + self.seed) % self.pages

    def rates(self, index: Indexes, now: float) -> Counts:
        ranks = self.ranks(index).astype(np.float64)
        ranks += 1.0
        np.power(ranks, -self.skew, out=ranks)
        ranks *= self._scale
        return ranks

    def expected(self, index: Indexes, since: Times, now: float) -> Counts:
        return self.rates(index, now) * (now - since)


@dataclass(frozen=True)
class HotSet:
    """A hot part that takes `share` of the accesses; the rest goes to all other pages.

    With a period the hot part is a window that moves on by `step` pages each time, by its own
    size if not said otherwise; without one it stays.
    """

    pages: int
    accesses: float
    hot: int
    period: float | None = None
    share: float = HOT_SHARE
    step: int | None = None

    def _start(self, phase: int) -> int:
        return phase * (self.hot if self.step is None else self.step) % self.pages

    def _rates_in(self, index: Indexes, phase: int) -> Counts:
        inside = (index - self._start(phase)) % self.pages < self.hot
        cold = self.pages - self.hot
        share = self.share if cold else 1.0
        outside = self.accesses * (1 - share) / max(cold, 1)
        rates: Counts = np.where(inside, self.accesses * share / self.hot, outside)
        return rates

    def rates(self, index: Indexes, now: float) -> Counts:
        return self._rates_in(index, int(now / self.period) if self.period else 0)

    def expected(self, index: Indexes, since: Times, now: float) -> Counts:
        if self.period is None or not len(index):
            still: Counts = self._rates_in(index, 0) * (now - since)
            return still
        return _over_phases(self._rates_in, self.period, index, since, now)


def _over_phases(
    rates_in: Callable[[Indexes, int], Counts],
    period: float,
    index: Indexes,
    since: Times,
    now: float,
) -> Counts:
    """Accesses expected between `since` and `now` where rates change every `period` seconds."""
    total = np.zeros(len(index))
    first, last = int(since.min() / period), int(now / period)
    # Over many phases every page was hot in its turn; the last few are what matters.
    for phase in range(max(first, last - 64), last + 1):
        begin, end = phase * period, min((phase + 1) * period, now)
        inside = np.clip(end - np.maximum(since, begin), 0.0, None)
        total += rates_in(index, phase) * inside
    return total


@dataclass(frozen=True)
class Permutation:
    """Regions of `region` pages, in another order of heat in each phase, as in the phases of a
    masim configuration: the region of rank r (from 0) gets a share of 1 / (r + 1) ** skew."""

    pages: int
    accesses: float
    region: int
    skew: float
    period: float
    seed: int = 0

    @property
    def regions(self) -> int:
        return -(-self.pages // self.region)

    def ranks(self, phase: int) -> Indexes:
        """Rank of each region, 0 the hottest."""
        return np.random.default_rng((self.seed, phase)).permutation(self.regions)

    def _rates_in(self, index: Indexes, phase: int) -> Counts:
        ranks = self.ranks(phase)[index // self.region].astype(np.float64) + 1.0
        scale = self.accesses / self.region / _harmonic(self.regions, self.skew)
        rates: Counts = np.power(ranks, -self.skew) * scale
        return rates

    def rates(self, index: Indexes, now: float) -> Counts:
        return self._rates_in(index, int(now / self.period))

    def expected(self, index: Indexes, since: Times, now: float) -> Counts:
        if not len(index):
            return np.zeros(0)
        return _over_phases(self._rates_in, self.period, index, since, now)


@dataclass(frozen=True)
class Scan:
    """One page after the other, round and round."""

    pages: int
    accesses: float

    def rates(self, index: Indexes, now: float) -> Counts:
        """The long-time mean: at any moment the scan is on one page only."""
        return np.full(len(index), self.accesses / self.pages)

    def expected(self, index: Indexes, since: Times, now: float) -> Counts:
        speed = self.accesses / LINES
        # Pages passed between the last time the scan was on this page and `now`.
        ago = np.mod(speed * now - index, float(self.pages))
        passed: Counts = np.where(ago < speed * (now - since), float(LINES), 0.0)
        return passed


def _harmonic(n: int, skew: float) -> float:
    """Sum of k ** -skew for k = 1..n: the head exactly, the tail as an integral."""
    head = min(n, 100_000)
    total = float(np.sum(np.arange(1, head + 1, dtype=np.float64) ** -skew))
    if n > head:
        low, high = head + 0.5, n + 0.5
        if abs(skew - 1) < 1e-9:
            return total + math.log(high / low)
        total += (high ** (1 - skew) - low ** (1 - skew)) / (1 - skew)
    return total


def pattern(spec: WorkloadSpec, pages: int, page_size: int, seed: int) -> Pattern:
    """The pattern that a `Workload` of the policy file describes. Raises ValueError."""
    hot = min(pages, (spec.hot or spec.size // 10) // page_size) or 1
    match spec.kind:
        case "uniform":
            return Uniform(pages, spec.accesses)
        case "zipf":
            return Zipf(pages, spec.accesses, spec.skew, seed % pages)
        case "hotset":
            return HotSet(pages, spec.accesses, hot)
        case "phase":
            return HotSet(pages, spec.accesses, hot, spec.period)
        case "shift":
            step = max(int(hot * spec.shift), 1)
            return HotSet(pages, spec.accesses, hot, spec.period, step=step)
        case "permutation":
            return Permutation(pages, spec.accesses, hot, spec.skew, spec.period, seed)
        case "scan":
            return Scan(pages, spec.accesses)
    raise ValueError(f"unknown kind of workload: {spec.kind}")
