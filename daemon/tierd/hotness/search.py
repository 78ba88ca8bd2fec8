# SPDX-License-Identifier: Apache-2.0
"""`Search`: candidates by heat, from as little of the memory as it takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import Pfns
from tierd.hotness.draws import Draws
from tierd.hotness.state import (
    KNOWN_FROM,
    LEVEL_EDGES,
    LEVELS,
    Q_SHIFT,
    STATES,
    UNKNOWN,
    level_state,
    recent,
)
from tierd.hotness.store import Store

SCAN_LIMIT: Final = 64 * 1024 * 1024
"""Frames that one search for candidates reads at most, if no less was asked for."""

READS: Final = 4
"""Times that a search may read the same memory: twice each time that it goes deeper."""

STRIDED: Final = 16
"""Frames in a row that can be read in the time that one takes far from the others."""

MORE: Final = 16_384
"""Frames that a search may collect beyond what it was asked for, to choose the best of them."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Frames and their states, best first. pfn: uint64[n]; state: uint16[n]."""

    pfn: Pfns
    state: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.pfn)


@dataclass(frozen=True, slots=True)
class _Want:
    """What a search is for. looks: bounds of the accesses in the last four looks; low, high:
    bounds of the state."""

    nodes: Collection[int]
    count: int
    looks: tuple[int, int]
    align: int
    low: int
    high: int
    hottest: bool


class _Found:
    """Frames that a search has collected so far."""

    def __init__(self) -> None:
        self._pfn: list[Pfns] = [np.zeros(0, np.uint64)]
        self._state: list[NDArray[np.uint16]] = [np.zeros(0, np.uint16)]
        self.count = 0

    def add(self, pfn: Pfns, state: NDArray[np.uint16]) -> None:
        self._pfn.append(pfn)
        self._state.append(state)
        self.count += len(pfn)

    def best(self, count: int, *, hottest: bool) -> Candidates:
        pfn, state = np.concatenate(self._pfn), np.concatenate(self._state)
        order = np.argsort(state, kind="stable")
        order = order[::-1][:count] if hottest else order[:count]
        return Candidates(pfn[order], state[order])


class Search:
    """Finds the hottest and the coldest frames of a `Store`. The histograms say which chunks need
    not be read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.limit = SCAN_LIMIT
        """Frames that one search reads at most; the next one goes on from there."""
        self.exhausted = False
        """The last search for the hottest has read all frames that it may have been after."""
        self._cursor = {True: 0, False: 0}
        self._read = np.zeros(len(store), np.bool_)

    def begin(self) -> None:
        """A new pass of looks: what was read since the last one has gained nothing yet."""
        self._store.gained[self._read] = 0.0
        self._read[:] = False

    def hottest(
        self, nodes: Collection[int], count: int, floor: int = KNOWN_FROM, looks: int = 2
    ) -> Candidates:
        """At least `count` of the hottest frames of `nodes` if there are as many, hottest first.

        Only frames in a state of at least `floor` that were accessed in at least `looks` of the
        last four looks. The histogram says how deep to go. Of the last level, whose frames are
        all but alike, no more are collected than it takes. Where the best frames lie in more
        memory than `limit` frames, it is the best of a part of it, and the next search goes
        on with the next part.
        """
        lowest = int(np.searchsorted(LEVEL_EDGES, floor >> Q_SHIFT, side="right")) - 1
        want = _Want(nodes, count, (looks, 4), 1, floor, STATES - 1, hottest=True)
        found, self.exhausted = self._search(want, range(LEVELS - 1, max(lowest, 1) - 1, -1))
        return found

    def coldest(
        self,
        nodes: Collection[int],
        count: int,
        ceiling: int = STATES,
        align: int = 1,
    ) -> Candidates:
        """At least `count` of the coldest known frames of `nodes` if there are as many, coldest
        first. Only frames in a state below `ceiling`; with `align`, heads of folios that may be
        as large: their number is a multiple of it, and the next frame is unknown, as nobody looks
        at a tail. Bounded as `hottest`."""
        highest = int(np.searchsorted(LEVEL_EDGES, (ceiling - 1) >> Q_SHIFT, side="right")) - 1
        want = _Want(nodes, count, (0, 4), align, KNOWN_FROM, ceiling - 1, hottest=False)
        return self._search(want, range(1, highest + 1))[0]

    def pick(self, nodes: Collection[int], count: int, draws: Draws) -> Candidates:
        """About `count` known frames of `nodes`, drawn with replacement, each as likely."""
        known = self._store.levels[:, 1:].sum(axis=1, dtype=np.int64)
        known[~np.isin(self._store.node, list(nodes))] = 0
        if not known.any():
            return Candidates(np.zeros(0, np.uint64), np.zeros(0, np.uint16))
        ends = known.cumsum()
        drawn = np.searchsorted(ends, draws.below(int(ends[-1]), count), side="right")
        wanted = np.bincount(drawn, minlength=len(known))
        pfns: list[Pfns] = []
        kept: list[NDArray[np.uint16]] = []
        for chunk in np.flatnonzero(wanted).tolist():
            frames = int(self._store.end[chunk] - self._store.start[chunk])
            at = draws.below(frames, _tries(wanted[chunk], known[chunk], frames))
            states = self._store.of(chunk, at)
            hit = np.flatnonzero(states >= KNOWN_FROM)[: wanted[chunk]]
            pfns.append((at[hit] + self._store.start[chunk]).astype(np.uint64))
            kept.append(states[hit])
        return Candidates(np.concatenate(pfns), np.concatenate(kept))

    def _search(self, want: _Want, levels: range) -> tuple[Candidates, bool]:
        """The best frames, from as many of `levels`, best first, as it takes; and whether all
        frames in `levels` were read."""
        found = _Found()
        every = np.flatnonzero(np.isin(self._store.node, list(want.nodes)))
        depth = next(_depths(self._store.histogram(want.nodes)[levels], want.count), None)
        if depth is None:
            return found.best(0, hottest=want.hottest), not self._in(every, levels).any()
        chunks = self._reach(every, self._in(every, levels[: depth + 1]), want.hottest)
        # What a part of the chunks lacks of the best, its next best make up for.
        counts = self._store.levels[chunks].sum(axis=0, dtype=np.int64)
        done, read = 0, 0
        for depth in _depths(counts[levels], want.count):
            read += self._collect(want, found, chunks, levels[done:depth])
            read += self._collect(want, found, chunks, levels[depth : depth + 1], last=True)
            if found.count >= want.count or read >= self.limit:
                return found.best(want.count, hottest=want.hottest), False
            done = depth + 1
        known = np.count_nonzero(self._in(every, levels))
        there = np.count_nonzero(self._in(chunks, levels))
        return found.best(want.count, hottest=want.hottest), bool(there == known)

    def _in(self, chunks: NDArray[np.intp], levels: range) -> NDArray[np.int64]:
        """int64[n]: frames of each chunk in some adjacent levels."""
        part = self._store.levels[chunks, min(levels) : max(levels) + 1]
        frames: NDArray[np.int64] = part.sum(axis=1, dtype=np.int64)
        return frames

    def _reach(
        self, chunks: NDArray[np.intp], holds: NDArray[np.int64], hottest: bool
    ) -> NDArray[np.intp]:
        """Those of `chunks` that one search may read, which hold so many frames each of what is
        searched for: a third where the hottest have gained the most of late, first; a third where
        there are the most; else those whose turn it is, since they may be passed over for ever by
        what nobody can move."""
        holding = np.flatnonzero(holds)
        frames = self._store.end[chunks] - self._store.start[chunks]
        most = self.limit // READS
        if frames[holding].sum() <= most:
            return chunks[holding]
        gained = self._store.gained[chunks] if hottest else np.zeros(len(chunks), np.float32)
        first = np.argsort(-gained, kind="stable")[: np.count_nonzero(gained)]
        fullest = holding[np.argsort(-holds[holding], kind="stable")]
        turn = np.searchsorted(chunks[holding], self._cursor[hottest])
        reached: list[NDArray[np.intp]] = []
        free = np.ones(len(chunks), np.bool_)
        left = most
        for order, parts in ((first, 3), (fullest, 2), (np.roll(holding, -turn), 1)):
            waiting = order[free[order]]
            count = int(np.searchsorted(np.cumsum(frames[waiting]), left // parts, side="right"))
            reached.append(waiting[: max(count, 1)])
            free[reached[-1]] = False
            left -= int(frames[reached[-1]].sum())
        following = waiting[len(reached[-1]) :]
        if len(following):
            self._cursor[hottest] = int(chunks[following[0]])
        return chunks[np.concatenate(reached)]

    def _collect(
        self,
        want: _Want,
        found: _Found,
        chunks: NDArray[np.intp],
        levels: range,
        *,
        last: bool = False,
    ) -> int:
        """Add the frames of `levels`, with `last` only until there are enough; returns how many
        frames were read."""
        if not len(levels) or (last and found.count >= want.count):
            return 0
        low = max(level_state(min(levels)), want.low)
        high = min(level_state(max(levels) + 1) - 1, want.high)
        enough = want.count + MORE if last else self._store.frames
        read = 0
        for chunk in chunks[self._in(chunks, levels) > 0].tolist():
            if found.count >= enough:
                break
            self._read[chunk] |= want.hottest
            if want.align > 1:
                offset, state = self._heads(chunk, want.align, low, high)
            else:
                offset, state = self._store.packed.between(chunk, low, high)
            seen = recent(state)
            door = (seen >= want.looks[0]) & (seen <= want.looks[1])
            found.add((offset[door] + self._store.start[chunk]).astype(np.uint64), state[door])
            frames = int(self._store.end[chunk] - self._store.start[chunk])
            read += -(-frames // want.align) * min(want.align, STRIDED)
        return read

    def _heads(
        self, chunk: int, align: int, low: int, high: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Frames (offsets) and their states from `low` to `high`, of which the next frame is
        unknown, at multiples of `align`."""
        start, end = int(self._store.start[chunk]), int(self._store.end[chunk])
        first = -start % align
        states = self._store.packed.every(chunk, first, align)
        at = np.flatnonzero((states >= np.uint16(low)) & (states <= np.uint16(high)))
        offset = at * align + first
        heads = self._store.of(chunk, np.minimum(offset + 1, end - start - 1)) == UNKNOWN
        return offset[heads], states[at[heads]]


def _tries(wanted: int, known: int, frames: int) -> int:
    """Draws from a chunk to hit `wanted` known frames, bounded where those are rare."""
    return min(int(2 * wanted * frames / known) + 8, frames)


def _depths(counts: NDArray[np.int64], count: int) -> Iterator[int]:
    """How deep to search in levels with so many frames each, best first: as deep as `count` need,
    then ever deeper, because not every frame of a level passes the test on its last looks."""
    if count <= 0 or not len(counts):
        return
    above = np.cumsum(counts)
    wanted = 2 * count
    while True:
        depth = int(np.searchsorted(above, wanted))
        if depth >= len(counts):
            yield len(counts) - 1
            return
        yield depth
        wanted = 4 * int(above[depth])
