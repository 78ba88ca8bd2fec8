# SPDX-License-Identifier: Apache-2.0
"""Reference policies, implemented plainly. Each sees the same looks at the same pages, has the
same rate limit and keeps the same headroom as tierd."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pages = NDArray[np.int64]
Flags = NDArray[np.bool_]
Rates = NDArray[np.float64]


class Policy(Protocol):
    """Decides from looks. `fast` is where the pages are; `step` changes it and returns the
    pages that it promoted and demoted."""

    name: str
    fast: Flags

    def start(self, fast: Flags, capacity: int, limit: int) -> None: ...

    def step(self, accessed: Flags) -> tuple[Pages, Pages]: ...


class Base:
    """Placement and the exchange that all references share."""

    name = ""

    def start(self, fast: Flags, capacity: int, limit: int) -> None:
        self.fast = fast.copy()
        self.capacity, self.limit = capacity, limit
        self.random = np.random.default_rng(1)
        self.prepare(len(fast))

    def prepare(self, pages: int) -> None:
        """Allocate state."""

    def swap(self, wanted: Pages, victims: Pages) -> tuple[Pages, Pages]:
        """Promote the first of `wanted` as far as limit, room and victims go."""
        room = self.capacity - int(self.fast.sum())
        n = min(len(wanted), self.limit, room + min(len(victims), self.limit))
        out = victims[: max(n - room, 0)]
        self.fast[out] = False
        self.fast[wanted[:n]] = True
        return wanted[:n], out

    def shuffled(self, pages: Pages) -> Pages:
        return self.random.permutation(pages)


class FirstTouch(Base):
    """No migration."""

    name = "first touch"

    def step(self, accessed: Flags) -> tuple[Pages, Pages]:
        none = np.zeros(0, np.int64)
        return none, none


class Age(Base):
    """One bit and an age: promote what was accessed, demote what was idle for 5 windows."""

    name = "age"
    idle = 5

    def prepare(self, pages: int) -> None:
        self.age = np.zeros(pages, np.int64)

    def step(self, accessed: Flags) -> tuple[Pages, Pages]:
        self.age = np.where(accessed, 0, self.age + 1)
        wanted = self.shuffled(np.flatnonzero(accessed & ~self.fast))
        victims = np.flatnonzero(self.fast & (self.age >= self.idle))
        return self.swap(wanted, victims[np.argsort(-self.age[victims], kind="stable")])


class Lru(Base):
    """Active and inactive list: promote on the second access in a row, demote the tail."""

    name = "lru"

    def prepare(self, pages: int) -> None:
        self.last = np.full(pages, -1.0)
        self.before = np.zeros(pages, np.bool_)
        self.now = 0

    def step(self, accessed: Flags) -> tuple[Pages, Pages]:
        self.now += 1
        twice = accessed & self.before
        self.before = accessed.copy()
        hit = np.flatnonzero(accessed)
        self.last[hit] = self.now + self.random.random(len(hit))  # order within the window
        wanted = self.shuffled(np.flatnonzero(twice & ~self.fast))
        victims = np.flatnonzero(self.fast & ~accessed)
        return self.swap(wanted, victims[np.argsort(self.last[victims])])


class Regions(Base):
    """DAMON-like: 100 to 1000 regions (its default is 10 to 1000), 20 samples of one page each per
    window (aggregation), split at random, merged when alike. Under its quota it promotes the
    hottest regions and makes room by demoting the coldest, as DAMOS does by priority (accesses,
    then age) with goals for the nodes' free memory; a pair has to differ by a fifth of the samples.
    It works on the pages in the program's order, where neighbours may be alike, and has one
    look per window for each sample, where DAMON has a twentieth of a window."""

    name = "regions"
    least, most, samples, alike, margin = 100, 1000, 20, 2, 4

    def prepare(self, pages: int) -> None:
        self.pages = pages
        self.edges = np.linspace(0, pages, self.least + 1).astype(np.int64)
        self.age = np.zeros(self.least, np.int64)
        self.count = np.zeros(self.least, np.int64)

    def step(self, accessed: Flags) -> tuple[Pages, Pages]:
        self._sample(accessed)
        order = np.lexsort((np.where(self.count > 0, -self.age, self.age), -self.count))
        wanted, heat = self._members(order, ~self.fast)
        victims, chill = self._members(order[::-1], self.fast)
        room = self.capacity - int(self.fast.sum())
        n = min(len(victims), max(len(heat) - room, 0), self.limit)
        better = heat[room : room + n] - chill[:n] > self.margin
        pairs = n if better.all() else int(np.argmin(better))
        moved = self.swap(wanted[: room + pairs], victims[:pairs])
        self._split()
        return moved

    def _sample(self, accessed: Flags) -> None:
        """The page of a sample was seen accessed in this window or not; a real DAMON samples
        shorter intervals, but every policy here has one look per window."""
        size = np.diff(self.edges)
        hits = np.zeros(len(size), np.int64)
        for _ in range(self.samples):
            at = self.edges[:-1] + (self.random.random(len(size)) * size).astype(np.int64)
            hits += accessed[at]
        same = np.abs(hits - self.count) <= self.alike
        self.age = np.where(same, self.age + 1, 0)
        self.count = hits
        keep = np.ones(len(self.edges), np.bool_)
        keep[1:-1] = np.abs(np.diff(hits)) > self.alike
        keep[1:-1] |= size[1:] + size[:-1] > self.pages // self.least
        first = keep[:-1]
        group = np.cumsum(first) - 1
        total = np.bincount(group, hits * size)
        weight = np.bincount(group, size)
        self.count = np.rint(total / weight).astype(np.int64)
        self.age = np.rint(np.bincount(group, self.age * size) / weight).astype(np.int64)
        self.edges = self.edges[keep]

    def _split(self) -> None:
        if len(self.age) > self.most // 2:
            return
        size = np.diff(self.edges)
        at = self.edges[:-1] + (size * self.random.uniform(0.1, 0.9, len(size))).astype(np.int64)
        good = size >= 2
        at = np.clip(at, self.edges[:-1] + 1, np.maximum(self.edges[1:] - 1, self.edges[:-1] + 1))
        self.age = np.repeat(self.age, np.where(good, 2, 1))
        self.count = np.repeat(self.count, np.where(good, 2, 1))
        self.edges = np.sort(np.concatenate([self.edges, at[good]]))

    def _members(self, regions: Pages, which: Flags) -> tuple[Pages, Pages]:
        """The pages of regions in order that are in `which`, and the accesses of their regions."""
        size = np.diff(self.edges)[regions]
        begin = np.repeat(self.edges[regions] - np.cumsum(size) + size, size)
        members = begin + np.arange(int(size.sum()))
        mine = which[members]
        return members[mine], np.repeat(self.count[regions], size)[mine]


class Cooling(Base):
    """Memtis-like: counters in log2 bins, halved every 16 windows; the hot threshold is the bin
    from which on all pages fit, one bin below it is warm and stays."""

    name = "cooling"
    every = 16

    def prepare(self, pages: int) -> None:
        self.count = np.zeros(pages)
        self.now = 0

    def step(self, accessed: Flags) -> tuple[Pages, Pages]:
        self.now += 1
        self.count += accessed
        if self.now % self.every == 0:
            self.count /= 2
        bins = np.floor(np.log2(self.count + 1) * 2).astype(np.int64)
        above = np.cumsum(np.bincount(bins)[::-1])[::-1]
        hot = (
            int(np.argmax(above <= self.capacity)) if (above <= self.capacity).any() else len(above)
        )
        wanted = np.flatnonzero((bins >= max(hot, 1)) & ~self.fast)
        wanted = wanted[np.argsort(-bins[wanted], kind="stable")]
        cold = np.flatnonzero(self.fast & (bins < hot - 1))
        warm = np.flatnonzero(self.fast & (bins == hot - 1)) if not len(cold) else cold[:0]
        victims = np.concatenate([cold[np.argsort(bins[cold], kind="stable")], warm])
        return self.swap(wanted, victims)


class Limited(Base):
    """No policy but a bound: knows the true rates, and still moves no faster than all others."""

    name = "limited oracle"

    def know(self, score: Rates, window: float, *, shifted: bool) -> None:
        """The true scores in the coming step."""
        self.score = score

    def step(self, accessed: Flags) -> tuple[Pages, Pages]:
        return self.exchange(self.score)

    def exchange(self, score: Rates) -> tuple[Pages, Pages]:
        """Promote the best outside as long as they are better than the worst inside."""
        wanted = np.flatnonzero(~self.fast)
        wanted = wanted[np.argsort(-score[wanted], kind="stable")]
        victims = np.flatnonzero(self.fast)
        victims = victims[np.argsort(score[victims], kind="stable")]
        room = self.capacity - len(victims)
        n = min(len(victims), len(wanted) - room, self.limit)
        pairs = int((score[wanted[room : room + n]] > score[victims[:n]]).sum())
        return self.swap(wanted[: room + pairs], victims[:pairs])


class Observer(Limited):
    """No policy but a bound on what looks can tell: has the same looks as all others, and knows
    besides what no policy can: all rates before the shift, when it came, that each page took part
    with the same probability, and how rates are distributed among those. It ranks by the mean of
    the rate given all that (Bayes)."""

    name = "best observer"
    grid = 128

    def __init__(self, mixed: float) -> None:
        self.mixed = mixed

    def prepare(self, pages: int) -> None:
        self.after = False

    def know(self, score: Rates, window: float, *, shifted: bool) -> None:
        self.window = window
        if not self.after and not shifted:
            self.score = score
        elif not self.after:
            self.after = True
            step = max(len(score) // self.grid, 1)
            self.levels = np.sort(self.score)[step // 2 :: step]
            self.same = np.zeros(len(score))
            self.other = np.zeros((len(score), len(self.levels)), np.float32)

    def step(self, accessed: Flags) -> tuple[Pages, Pages]:
        if not self.after:
            return self.exchange(self.score)
        rate = self.score * self.window
        self.same += np.where(accessed, np.log(-np.expm1(-rate)), -rate)
        rates = self.levels * self.window
        hit = np.log(-np.expm1(-rates)).astype(np.float32)
        self.other += np.where(accessed[:, None], hit, (-rates).astype(np.float32))
        top = np.maximum(self.other.max(axis=1), self.same)
        other = np.exp(self.other - top[:, None]) * (self.mixed / len(self.levels))
        same = np.exp(self.same - top) * (1 - self.mixed)
        mean = (same * self.score + other @ self.levels) / (same + other.sum(axis=1))
        return self.exchange(mean)


REFERENCES = (Age, Lru, Regions, Cooling, FirstTouch)
