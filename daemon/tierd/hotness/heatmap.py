# SPDX-License-Identifier: Apache-2.0
"""`HeatMap`: how looks, moves and exits change what is remembered of frames."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import NO_PFN, Pfns, Span, frames_from
from tierd.hotness.company import MOST, Company
from tierd.hotness.forecast import Forecast
from tierd.hotness.packed import GROUP
from tierd.hotness.search import Search
from tierd.hotness.state import (
    KNOWN_FROM,
    LEVEL_EDGES,
    PHASES,
    Q_ONE,
    Q_SHIFT,
    STATES,
    again,
    hazard_of,
    phase_of,
    successors,
    transitions,
)
from tierd.hotness.store import Store
from tierd.sets import unique

PIECE: Final = 32 * 1024
"""Frames of a batch that are worked on at once: with their 64-bit indices they fit the cache."""

FEW: Final = 2048
"""A batch of so many frames is worked out without a table of all transitions."""

STEP: Final = 16
"""One frame in so many of a large batch is learned from, on a machine with many."""

APART: Final = 4096
"""Frames of a batch in one chunk that are worked on apart from those in other chunks. A sparse
look, at eight frames of each block, has half as many at most."""

ENOUGH: Final = 512
DENSE: Final = 32
"""Frames of a batch in one chunk, and in each of its words of 64, from which it is worth the while
to learn what neighbours say."""

_SHIFT: Final = np.uint16(Q_SHIFT)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one batch said about one node. `settled` is how many of the frames were well known
    before, `expected` how many of those should have been found accessed, `met` how many were."""

    node: int
    looked: int
    accessed: int
    settled: int
    expected: float
    met: int
    again: int
    """Frames found accessed, as in another of their last four looks."""


class HeatMap:
    """Heat of all frames in `spans` (sorted by start, disjoint). search: finds candidates by it;
    forecast: what it has meant so far."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._store = Store(spans)
        self.search = Search(self._store)
        self._many = len(self._store) > 8
        self._pass = 0
        self._looked = False
        """Something was observed in the last pass."""
        self._tabled = -1
        """The last pass for which there is a table of all transitions."""
        self._hazards = 0, 0
        self.forecast = Forecast(self._store.frames)
        self._company = Company(self._store, self.forecast)

    # -- what is known ---------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """Frames in all spans."""
        return self._store.frames

    def histogram(self, nodes: Collection[int]) -> NDArray[np.int64]:
        """int64[LEVELS]: frames of `nodes` per level; level 0 is the unknown ones."""
        return self._store.histogram(nodes)

    def states(self, pfn: Pfns) -> NDArray[np.uint16]:
        """uint16[n]: state of each frame, in any order; 0 (unknown) outside all spans."""
        return self._store.states(pfn)

    def neighbours(self, pfn: Pfns, state: NDArray[np.uint16]) -> NDArray[np.float64]:
        """float64[n]: by how much more frames (uint64[n], in any order) in `state` (uint16[n]) are
        expected to be accessed because of those around them."""
        factor = np.ones(len(pfn))
        for chunk, rows, offset in self._store.located(pfn) if self._company.tells else ():
            order = np.argsort(offset)
            rows = rows[order]
            factor[rows] = self._company.factor(chunk, offset[order], state[rows])
        return factor

    # -- what changes it -------------------------------------------------------------------

    def tick(self, cooling: float = 0.0, heating: float = 0.0) -> None:
        """Begin a new pass of looks. Shares, 0..1, of the hot frames that are thought to become
        cold now, and of the cold ones that become hot: the larger, the less it takes to believe
        it of one."""
        self._pass += 1
        self.search.begin()
        if self._looked:
            self._looked = False
            self.forecast.learn(cooling)
            self._company.learn()
        self._hazards = hazard_of(cooling), hazard_of(heating)

    def observe(
        self, pfn: Pfns, weight: NDArray[np.uint8], granularity: int = 1, *, learn: bool = True
    ) -> tuple[Seen, ...]:
        """Enter the outcome of one look at each frame.

        pfn: uint64[n] sorted and unique; weight: uint8[n], 0 is idle. An entry speaks for
        `granularity` frames from its own on. Frames outside all spans are ignored. learn: these
        outcomes say what states mean; those of a source that sees no idle frames do not.
        """
        if granularity > 1:
            pfn, weight = _spread(pfn, weight, granularity)
        self._looked = True
        if len(pfn) > FEW:
            self._tabled = self._pass
        seen: list[Seen] = []
        few: list[tuple[int, int, int]] = []
        for chunk, begin, end in self._store.slices(pfn):
            if end - begin < APART:
                few.append((chunk, begin, end))
                continue
            these = slice(begin, end)
            seen.append(self._observe_chunk(chunk, pfn[these], weight[these], learn=learn))
        if few:
            seen += self._observe_few(few, pfn, weight, learn=learn)
        return tuple(seen)

    def _after(self, old: NDArray[np.uint16], hit: NDArray[np.bool_]) -> NDArray[np.uint16]:
        """uint16[n]: states after a look. The table for all states is made in a pass that needs
        it, and used from then on."""
        phase = phase_of(self._pass)
        if self._tabled != self._pass:
            return successors(old, hit, phase, *self._hazards)
        index = np.multiply(hit, STATES, dtype=np.intp)
        np.add(index, old, out=index, casting="unsafe")
        return np.take(transitions(phase, *self._hazards), index, mode="clip")

    def _observe_chunk(
        self, chunk: int, pfn: Pfns, weight: NDArray[np.uint8], *, learn: bool
    ) -> Seen:
        packed = self._store.packed
        start, end = int(self._store.start[chunk]), int(self._store.end[chunk])
        n = len(pfn)
        recount = 2 * n > end - start
        states = packed.whole(chunk) if recount else packed.cells(chunk)
        change = np.zeros(Q_ONE, np.int64)
        settled, expected, met, twice = 0, 0.0, 0, 0
        for begin in range(0, n, PIECE):
            part = pfn[begin : begin + PIECE]
            hit = weight[begin : begin + PIECE] > 0
            first = int(part[0]) - start
            where: slice | NDArray[np.int64] = slice(first, first + len(part))
            if int(part[-1]) - int(part[0]) != len(part) - 1:  # frames that were not looked at
                where = part.view(np.int64) - start
            if not recount:
                where = packed.room(chunk, where)
            old = states[where]
            new = self._after(old, hit)
            twice += again(old, hit)
            if learn:
                known = self._learn(chunk, part, old, hit)
                settled, expected, met = settled + known[0], expected + known[1], met + known[2]
            if not recount:
                change -= np.bincount(old >> _SHIFT, minlength=Q_ONE)
                change += np.bincount(new >> _SHIFT, minlength=Q_ONE)
            states[where] = new
        if recount:
            counts = _fold(np.bincount(states >> _SHIFT, minlength=Q_ONE))
            packed.replace(chunk, states, end - start - int(counts[0]))
            self._store.shift(chunk, counts - self._store.levels[chunk], looks=True)
        else:
            self._store.shift(chunk, _fold(change), looks=True)
        accessed = int(np.count_nonzero(weight))
        return Seen(int(self._store.node[chunk]), n, accessed, settled, expected, met, twice)

    def _observe_few(
        self,
        slices: Sequence[tuple[int, int, int]],
        pfn: Pfns,
        weight: NDArray[np.uint8],
        *,
        learn: bool,
    ) -> list[Seen]:
        """Few frames each of some chunks, at once: a sparse look is at a few blocks of each of
        many chunks. slices: as `Store.slices` has them."""
        number, begin, end = np.array(slices).T
        length = end - begin
        chunk = np.repeat(number, length)
        if length.sum() < len(pfn):
            rows = np.arange(len(chunk)) + np.repeat(begin - np.cumsum(length) + length, length)
            pfn, weight = pfn[rows], weight[rows]
        hit = weight > 0
        packed = self._store.packed
        where = packed.scattered_room(chunk, pfn.astype(np.int64) - self._store.start[chunk])
        old = packed.all[where]
        new = self._after(old, hit)
        if learn and int(length.max()) >= ENOUGH:
            self._learn_company(number, length, pfn, old, hit)
        packed.all[where] = new
        self._store.shift_scattered(chunk, old, new)
        node = self._store.node[chunk]
        seen = []
        for each in unique(node).tolist():
            here = np.flatnonzero(node == each)
            state, met = old[here], hit[here]
            known = self.forecast.enter(state, met) if learn else (0, 0.0, 0)
            twice = again(state, met)
            seen.append(Seen(each, len(here), int(np.count_nonzero(met)), *known, twice))
        return seen

    def _learn_company(
        self,
        chunks: NDArray[np.int64],
        length: NDArray[np.int64],
        pfn: Pfns,
        state: NDArray[np.uint16],
        hit: NDArray[np.bool_],
    ) -> None:
        """What outcomes of looks at so many frames of each of some chunks say of their company,
        where they lie close enough."""
        ends = np.cumsum(length)
        for at in np.flatnonzero(length >= ENOUGH).tolist():
            these = slice(int(ends[at] - length[at]), int(ends[at]))
            offset = pfn[these].astype(np.int64) - self._store.start[chunks[at]]
            words = 1 + np.count_nonzero(np.diff(offset // GROUP))
            if len(offset) >= DENSE * words and self._company.wants(len(offset)):
                self._company.enter(int(chunks[at]), offset, state[these], hit[these])

    def _learn(
        self, chunk: int, pfn: Pfns, state: NDArray[np.uint16], hit: NDArray[np.bool_]
    ) -> tuple[int, float, int]:
        """What outcomes of looks at some frames of a chunk say of their states and of their
        company; returns what `Forecast.enter` does. Of a large batch a part is enough to learn
        from; the numbers are for all of it."""
        step = STEP if len(state) >= PIECE // 2 and self._many else 1
        count = min(len(state) // step, MOST)
        if len(state) >= ENOUGH and self._company.wants(count):
            begin = phase_of(self._pass) * (len(state) - count) // (PHASES - 1)
            these = slice(begin, begin + count)
            offset = pfn[these].astype(np.int64) - self._store.start[chunk]
            self._company.enter(chunk, offset, state[these], hit[these])
        settled, expected, met = self.forecast.enter(state[::step], hit[::step])
        return step * settled, step * expected, step * met

    def move(self, old: Pfns, new: Pfns) -> None:
        """The data of each frame `old` is now in frame `new` (unique; NO_PFN where nobody knows):
        its heat goes with it. Both uint64[n], in any order; `old` frames become unknown."""
        state = self.states(old)
        self.forget(np.concatenate((old, new)))
        there = (new != NO_PFN) & (state >= KNOWN_FROM)
        self._put(new[there], state[there])

    def forget(self, pfn: Pfns) -> None:
        """Frames (any order) whose data is gone become unknown. Memory of states is not touched
        where nothing was known."""
        for chunk, _, offset in self._store.located(pfn):
            state = self._store.of(chunk, offset)
            known = state >= KNOWN_FROM
            offset, first = np.unique(offset[known], return_index=True)
            if len(offset):
                before = np.bincount(state[known][first] >> _SHIFT, minlength=Q_ONE)
                before[0] -= len(offset)
                self._store.shift(chunk, _fold(-before), looks=False)
                self._store.packed.clear(chunk, offset, self._store.known(chunk))

    def _put(self, pfn: Pfns, state: NDArray[np.uint16]) -> None:
        """Unknown frames (in any order) are in these states now, which are known."""
        for chunk, rows, offset in self._store.located(pfn):
            offset, last = np.unique(offset[::-1], return_index=True)
            new = state[rows][::-1][last]
            self._store.packed.cells(chunk)[self._store.packed.room(chunk, offset)] = new
            change = np.bincount(new >> _SHIFT, minlength=Q_ONE)
            change[0] -= len(new)
            self._store.shift(chunk, _fold(change), looks=False)


def _fold(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[1024] by q -> int64[LEVELS]."""
    folded: NDArray[np.int64] = np.add.reduceat(counts, LEVEL_EDGES)
    return folded


def _spread(
    pfn: Pfns, weight: NDArray[np.uint8], granularity: int
) -> tuple[Pfns, NDArray[np.uint8]]:
    """One entry per frame from one per `granularity` frames; never past the next entry."""
    end = pfn + np.uint64(granularity)
    end[:-1] = np.minimum(end[:-1], pfn[1:])
    length = (end - pfn).astype(np.int64)
    return frames_from(pfn, length), np.repeat(weight, length)
