# SPDX-License-Identifier: Apache-2.0
"""`HeatMap`: the states of all frames, their histogram, and the search for candidates."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import NO_PFN, Pfns, Span, frames_from
from tierd.hotness.draws import Draws
from tierd.hotness.forecast import Forecast
from tierd.hotness.state import (
    FIRST,
    KNOWN_FROM,
    LEVEL_EDGES,
    LEVELS,
    Q_ONE,
    Q_SHIFT,
    STATES,
    UNKNOWN,
    hazard_of,
    level_rate,
    level_state,
    phase_of,
    recent,
    successors,
    transitions,
)

CHUNK: Final = 128 * 1024
"""Frames that are worked on at once: temporaries stay within the second-level cache."""

PIECE: Final = 32 * 1024
"""Frames of a batch that are worked on at once: with their 64-bit indices they fit the cache."""

FEW: Final = 2048
FEW_CHUNKS: Final = 4
"""A batch of so many frames in so many chunks is worked out without a table of all transitions."""

STEP: Final = 16
"""One frame in so many of a large batch is learned from, on a machine with many."""

SCAN_LIMIT: Final = 64 * 1024 * 1024
"""Frames that one search for candidates reads at most, if no less was asked for."""

READS: Final = 4
"""Times that a search may read the same memory: twice each time that it goes deeper."""

STRIDED: Final = 16
"""Frames in a row that can be read in the time that one takes far from the others."""

_SHIFT: Final = np.uint16(Q_SHIFT)


MORE: Final = 16_384
"""Frames that a search may collect beyond what it was asked for, to choose the best of them."""


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


class HeatMap:
    """Heat of all frames in `spans` (sorted by start, disjoint).

    Spans are cut into chunks at multiples of `CHUNK`. Beside its states each chunk has a
    histogram over `LEVELS` levels of heat (256 bytes for 128 Ki frames), kept as frames are
    observed; it says which chunks a search need not look into. State arrays are zeroed lazily:
    memory is used when a frame is first looked at.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        self._arrays = [np.zeros(span.frames, np.uint16) for span in spans]
        self._base = np.array([span.start for span in spans], np.int64)
        cuts = [_cut(span) for span in spans]
        self._start = np.concatenate([np.zeros(0, np.int64), *cuts])
        count = [len(cut) for cut in cuts]
        self._span = np.repeat(np.arange(len(cuts), dtype=np.int32), count)
        ends = np.array([span.end for span in spans], np.int64)
        self._end = np.minimum((self._start // CHUNK + 1) * CHUNK, ends[self._span])
        self._node = np.repeat(np.array([span.node for span in spans], np.int32), count)
        self._levels = np.zeros((len(self._start), LEVELS), np.uint32)
        self._levels[:, 0] = self._end - self._start
        self._news = np.zeros(len(self._start), np.float32)
        """Of each chunk: accesses per window that its frames have gained of late."""
        self._totals: dict[int, NDArray[np.int64]] = {}
        for node in sorted({span.node for span in spans}):
            mine = self._levels[self._node == node]
            self._totals[node] = mine.sum(axis=0, dtype=np.int64)
        self._many = len(self._start) > 8
        self.scan_limit = SCAN_LIMIT
        """Frames that one search reads at most; the next one goes on from there."""
        self._cursor = {True: 0, False: 0}
        self._pass = 0
        self._tabled = -1
        """The last pass for which there is a table of all transitions."""
        self._hazards = 0, 0
        self.forecast = Forecast(sum(span.frames for span in spans))

    def _of(self, chunk: int) -> NDArray[np.uint16]:
        """States of the frames of a chunk, to be read and written. Made when it is needed: kept
        for all chunks of the largest hosts, these would be megabytes."""
        span = int(self._span[chunk])
        base = int(self._base[span])
        return self._arrays[span][int(self._start[chunk]) - base : int(self._end[chunk]) - base]

    # -- what is known ---------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """Frames in all spans."""
        return int((self._end - self._start).sum())

    def histogram(self, nodes: Collection[int]) -> NDArray[np.int64]:
        """int64[LEVELS]: frames of `nodes` per level; level 0 is the unknown ones."""
        total = np.zeros(LEVELS, np.int64)
        for node in nodes:
            if node in self._totals:
                total += self._totals[node]
        return total

    def states(self, pfn: Pfns) -> NDArray[np.uint16]:
        """uint16[n]: state of each frame, in any order; 0 (unknown) outside all spans."""
        result = np.zeros(len(pfn), np.uint16)
        for chunk, rows, offset in self._located(pfn):
            result[rows] = self._of(chunk)[offset]
        return result

    # -- what changes it -------------------------------------------------------------------

    def tick(self, cooling: float = 0.0, heating: float = 0.0) -> None:
        """Begin a new pass of looks. Shares, 0..1, of the hot frames that are thought to become
        cold now, and of the cold ones that become hot: the larger, the less it takes to believe
        it of one."""
        self._pass += 1
        self.forecast.learn(cooling)
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
        seen: list[Seen] = []
        slices = list(self._slices(pfn))
        if len(pfn) > FEW or len(slices) > FEW_CHUNKS:
            self._tabled = self._pass
        for chunk, begin, end in slices:
            these = slice(begin, end)
            seen.append(self._observe_chunk(chunk, pfn[these], weight[these], learn=learn))
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
        states = self._of(chunk)
        start = np.uint64(self._start[chunk])
        n = len(pfn)
        recount = 2 * n > len(states)
        change = np.zeros(Q_ONE, np.int64)
        settled, expected, met = 0, 0.0, 0
        for begin in range(0, n, PIECE):
            part = pfn[begin : begin + PIECE]
            hit = weight[begin : begin + PIECE] > 0
            first = int(part[0] - start)
            where: slice | NDArray[np.int64] = slice(first, first + len(part))
            if int(part[-1]) - int(part[0]) != len(part) - 1:  # frames that were not looked at
                where = (part - start).view(np.int64)
            old = states[where]
            new = self._after(old, hit)
            # Of a large batch a part is enough to learn from; the numbers are for all of it.
            step = STEP if len(old) >= PIECE // 2 and self._many else 1
            if learn:
                known = self.forecast.enter(old[::step], hit[::step])
                settled += step * known[0]
                expected += step * known[1]
                met += step * known[2]
            if not recount:
                change -= np.bincount(old >> _SHIFT, minlength=Q_ONE)
                change += np.bincount(new >> _SHIFT, minlength=Q_ONE)
            states[where] = new
        if recount:
            counts = _fold(np.bincount(states >> _SHIFT, minlength=Q_ONE))
            self._shift(chunk, counts - self._levels[chunk])
        else:
            self._shift(chunk, _fold(change))
        accessed = int(np.count_nonzero(weight))
        return Seen(int(self._node[chunk]), n, accessed, settled, expected, met)

    def move(self, old: Pfns, new: Pfns) -> None:
        """The data of each frame `old` is now in frame `new` (NO_PFN where nobody knows): its
        heat goes with it. Both uint64[n], in any order; `old` frames become unknown."""
        state = self.states(old)
        self.forget(old)
        there = new != NO_PFN
        self._put(new[there], state[there])

    def forget(self, pfn: Pfns) -> None:
        """Frames (any order) whose data is gone become unknown. Memory of states is not touched
        where nothing was known."""
        for chunk, _, offset in self._located(pfn):
            states = self._of(chunk)
            offset = np.unique(offset[states[offset] >= KNOWN_FROM])
            if len(offset):
                before = np.bincount(states[offset] >> _SHIFT, minlength=Q_ONE)
                states[offset] = UNKNOWN
                before[0] -= len(offset)
                self._shift(chunk, _fold(-before))

    def _put(self, pfn: Pfns, state: NDArray[np.uint16]) -> None:
        for chunk, rows, offset in self._located(pfn):
            states = self._of(chunk)
            offset, last = np.unique(offset[::-1], return_index=True)
            new = state[rows][::-1][last]
            before = np.bincount(states[offset] >> _SHIFT, minlength=Q_ONE)
            states[offset] = new
            after = np.bincount(new >> _SHIFT, minlength=Q_ONE)
            self._shift(chunk, _fold(after - before))

    def _shift(self, chunk: int, change: NDArray[np.int64]) -> None:
        self._levels[chunk] = self._levels[chunk] + change
        # What chance adds it takes again.
        self._news[chunk] = max(self._news[chunk] + float(change @ _HEATS), 0.0)
        self._totals[int(self._node[chunk])] += change

    # -- the search ------------------------------------------------------------------------

    def hottest(
        self, nodes: Collection[int], count: int, floor: int = KNOWN_FROM, looks: int = 2
    ) -> Candidates:
        """At least `count` of the hottest frames of `nodes` if there are as many, hottest first.

        Only frames in a state of at least `floor` that were accessed in at least `looks` of the
        last four looks. The histogram says how deep to go. Of the last level, whose frames are
        all but alike, no more are collected than it takes. Where the best frames lie in more
        memory than `scan_limit` frames, it is the best of a part of it, and the next search goes
        on with the next part.
        """
        lowest = int(np.searchsorted(LEVEL_EDGES, floor >> Q_SHIFT, side="right")) - 1
        want = _Want(nodes, count, (looks, 4), 1, floor, STATES - 1, hottest=True)
        return self._search(want, range(LEVELS - 1, max(lowest, 1) - 1, -1))

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
        return self._search(want, range(1, highest + 1))

    def _search(self, want: _Want, levels: range) -> Candidates:
        """The best frames, from as many of `levels`, best first, as it takes."""
        found = _Found()
        chunks = np.flatnonzero(np.isin(self._node, list(want.nodes)))
        depth = next(_depths(self.histogram(want.nodes)[levels], want.count), None)
        if depth is None:
            return found.best(0, hottest=want.hottest)
        holds = self._in(chunks, levels[: depth + 1])
        chunks = self._reach(chunks[holds > 0], holds[holds > 0], want.hottest)
        # What a part of the chunks lacks of the best, its next best make up for.
        counts = self._levels[chunks].sum(axis=0, dtype=np.int64)
        done, read = 0, 0
        for depth in _depths(counts[levels], want.count):
            read += self._collect(want, found, chunks, levels[done:depth])
            read += self._collect(want, found, chunks, levels[depth : depth + 1], last=True)
            if found.count >= want.count or read >= self.scan_limit:
                break
            done = depth + 1
        return found.best(want.count, hottest=want.hottest)

    def _in(self, chunks: NDArray[np.intp], levels: range) -> NDArray[np.int64]:
        """int64[n]: frames of each chunk in some adjacent levels."""
        part = self._levels[:, min(levels) : max(levels) + 1]
        frames: NDArray[np.int64] = part.sum(axis=1, dtype=np.int64)[chunks]
        return frames

    def _reach(
        self, chunks: NDArray[np.intp], holds: NDArray[np.int64], hottest: bool
    ) -> NDArray[np.intp]:
        """Those of `chunks` that one search may read: those that hold the most of what is searched
        for, those where the most has become hot of late, and those whose turn it is, since the
        others may be passed over for ever by what nobody can move. As many of each."""
        frames = self._end[chunks] - self._start[chunks]
        most = self.scan_limit // READS
        if frames.sum() <= most:
            return chunks
        turn = np.searchsorted(chunks, self._cursor[hottest])
        reach = np.zeros(len(chunks), np.bool_)
        orders = [np.argsort(-holds, kind="stable")]
        if hottest:
            orders.append(np.argsort(-self._news[chunks], kind="stable"))
        orders.append(np.roll(np.arange(len(chunks)), -turn))
        for order in orders:
            order = order[~reach[order]]
            count = int(np.searchsorted(np.cumsum(frames[order]), most // len(orders), "right"))
            reach[order[: max(count, 1)]] = True
        if not reach.all():
            self._cursor[hottest] = int(chunks[order[min(max(count, 1), len(order) - 1)]])
        if hottest:  # what cannot be moved waits for its turn
            self._news[chunks[reach]] = 0.0
        return chunks[reach]

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
        enough = want.count + MORE if last else self.frames
        read = 0
        for chunk in chunks[self._in(chunks, levels) > 0].tolist():
            if found.count >= enough:
                break
            first = -int(self._start[chunk]) % want.align
            frames = self._of(chunk)
            states = frames[first :: want.align]
            at = np.flatnonzero((states >= np.uint16(low)) & (states <= np.uint16(high)))
            state = states[at]
            seen = recent(state)
            door = (seen >= want.looks[0]) & (seen <= want.looks[1])
            at, state = at[door], state[door]
            if want.align > 1:
                after = np.minimum(at * want.align + (first + 1), len(frames) - 1)
                heads = frames[after] == UNKNOWN
                at, state = at[heads], state[heads]
            found.add((at * want.align + (first + self._start[chunk])).astype(np.uint64), state)
            read += len(states) * min(want.align, STRIDED)
        return read

    def pick(self, nodes: Collection[int], count: int, draws: Draws) -> Candidates:
        """About `count` known frames of `nodes`, drawn with replacement, each as likely."""
        known = self._levels[:, 1:].sum(axis=1, dtype=np.int64)
        known[~np.isin(self._node, list(nodes))] = 0
        if not known.any():
            return Candidates(np.zeros(0, np.uint64), np.zeros(0, np.uint16))
        ends = known.cumsum()
        drawn = np.searchsorted(ends, draws.below(int(ends[-1]), count), side="right")
        wanted = np.bincount(drawn, minlength=len(known))
        pfns: list[Pfns] = []
        kept: list[NDArray[np.uint16]] = []
        for chunk in np.flatnonzero(wanted).tolist():
            states = self._of(chunk)
            tries = _tries(wanted[chunk], known[chunk], len(states))
            at = draws.below(len(states), tries)
            at = at[states[at] >= KNOWN_FROM][: wanted[chunk]]
            pfns.append((at + self._start[chunk]).astype(np.uint64))
            kept.append(states[at])
        return Candidates(np.concatenate(pfns), np.concatenate(kept))

    # -- where a frame is ------------------------------------------------------------------

    def _slices(self, pfn: Pfns) -> Iterator[tuple[int, int, int]]:
        """(chunk, begin, end) for each chunk that sorted `pfn` touches."""
        if not len(pfn):
            return
        first = int(np.searchsorted(self._end, int(pfn[0]), side="right"))
        last = int(np.searchsorted(self._start, int(pfn[-1]), side="right"))
        for chunk in range(first, last):
            bounds = np.array([self._start[chunk], self._end[chunk]], np.uint64)
            begin, end = np.searchsorted(pfn, bounds)
            if end > begin:
                yield chunk, int(begin), int(end)

    def _located(self, pfn: Pfns) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.int64]]]:
        """(chunk, rows of `pfn` in it, their offsets in the chunk) for frames in any order."""
        where = pfn.astype(np.int64)
        chunk = np.searchsorted(self._start, where, side="right") - 1
        rows = np.flatnonzero((chunk >= 0) & (where < self._end[chunk]) & (pfn != NO_PFN))
        if not len(rows):
            return
        rows = rows[np.argsort(chunk[rows], kind="stable")]
        each, begin = np.unique(chunk[rows], return_index=True)
        for number, part in zip(each, np.split(rows, begin[1:]), strict=True):
            yield int(number), part, where[part] - self._start[number]


def _heats() -> NDArray[np.float64]:
    """float64[LEVELS]: accesses per window by level, 0 up to what a first look makes of a frame
    that it finds idle."""
    lowest = int(np.searchsorted(LEVEL_EDGES, round(FIRST[0] * Q_ONE), side="right"))
    return np.array([level_rate(level) * (level >= lowest) for level in range(LEVELS)])


_HEATS: Final = _heats()


def _cut(span: Span) -> NDArray[np.int64]:
    """int64[n]: where the chunks of a span begin."""
    later = np.arange(span.start // CHUNK + 1, -(-span.end // CHUNK), dtype=np.int64) * CHUNK
    return np.concatenate((np.array([span.start][: span.frames], np.int64), later))


def _tries(wanted: int, known: int, frames: int) -> int:
    """Draws from a chunk to hit `wanted` known frames, bounded where those are rare."""
    return min(int(2 * wanted * frames / known) + 8, frames)


def _fold(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[1024] by q -> int64[LEVELS]."""
    folded: NDArray[np.int64] = np.add.reduceat(counts, LEVEL_EDGES)
    return folded


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


def _spread(
    pfn: Pfns, weight: NDArray[np.uint8], granularity: int
) -> tuple[Pfns, NDArray[np.uint8]]:
    """One entry per frame from one per `granularity` frames; never past the next entry."""
    end = pfn + np.uint64(granularity)
    end[:-1] = np.minimum(end[:-1], pfn[1:])
    length = (end - pfn).astype(np.int64)
    return frames_from(pfn, length), np.repeat(weight, length)
