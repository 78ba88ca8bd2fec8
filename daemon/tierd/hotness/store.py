# SPDX-License-Identifier: Apache-2.0
"""`Store`: the states of all frames, in chunks, each with a histogram over levels of heat."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import NO_PFN, Pfns, Span
from tierd.hotness.packed import CHUNK, GROUP, Packed
from tierd.hotness.state import FIRST, LEVEL_EDGES, LEVELS, Q_ONE, Q_SHIFT, level_rate
from tierd.sets import unique

FEW: Final = 64
"""Chunks up to which states are kept plain: of 32 GiB they are 16 MiB, and what a look at a sheet
takes more counts where the share of a small machine is hardly more than a look."""


class Store:
    """States of the frames in `spans` (sorted by start, disjoint).

    Spans are cut into chunks at multiples of `CHUNK`. Beside its states each chunk has a
    histogram over `LEVELS` levels of heat (248 bytes for 128 Ki frames), which whoever changes
    states keeps (`shift`). States take memory from the first look at a frame on, two bytes each;
    where there are huge pages only, a page of memory in a chunk (`packed`).

    start, end: int64[chunks], frames; node: int32[chunks]; levels: uint32[chunks, LEVELS], frames
    per level; gained: float32[chunks], what a chunk's frames have gained by looks, in accesses per
    window, one at most for each, since that was set to 0. To be read, and `gained` to be reset.
    packed: the states, by chunk and offset in it.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        cuts = [_cut(span) for span in spans]
        self.start = np.concatenate([np.zeros(0, np.int64), *cuts])
        count = [len(cut) for cut in cuts]
        ends = np.repeat(np.array([span.end for span in spans], np.int64), count)
        self.end = np.minimum((self.start // CHUNK + 1) * CHUNK, ends)
        pack = len(self.start) > FEW
        self.packed = Packed(self.end - self.start, -self.start % GROUP, pack=pack)
        self.node = np.repeat(np.array([span.node for span in spans], np.int32), count)
        self.levels = np.zeros((len(self.start), LEVELS), np.uint32)
        self.levels[:, 0] = self.end - self.start
        self.gained = np.zeros(len(self.start), np.float32)
        self._totals: dict[int, NDArray[np.int64]] = {}
        for node in sorted({span.node for span in spans}):
            mine = self.levels[self.node == node]
            self._totals[node] = mine.sum(axis=0, dtype=np.int64)

    def __len__(self) -> int:
        """Chunks."""
        return len(self.start)

    @property
    def frames(self) -> int:
        """Frames in all spans."""
        return int((self.end - self.start).sum())

    def known(self, chunk: int) -> int:
        """Frames of a chunk that are known."""
        return int(self.end[chunk] - self.start[chunk] - self.levels[chunk, 0])

    def histogram(self, nodes: Collection[int]) -> NDArray[np.int64]:
        """int64[LEVELS]: frames of `nodes` per level; level 0 is the unknown ones."""
        total = np.zeros(LEVELS, np.int64)
        for node in nodes:
            if node in self._totals:
                total += self._totals[node]
        return total

    def of(self, chunk: int, offset: NDArray[np.int64]) -> NDArray[np.uint16]:
        """uint16[n]: states of frames (offsets in the chunk, in any order)."""
        states: NDArray[np.uint16] = self.packed.cells(chunk)[self.packed.find(chunk, offset)]
        return states

    def states(self, pfn: Pfns) -> NDArray[np.uint16]:
        """uint16[n]: state of each frame, in any order; 0 (unknown) outside all spans."""
        result = np.zeros(len(pfn), np.uint16)
        chunk, rows = self._chunks(pfn)
        offset = pfn[rows].astype(np.int64) - self.start[chunk]
        result[rows] = self.packed.all[self.packed.scattered(chunk, offset)]
        return result

    def shift(self, chunk: int, change: NDArray[np.int64], *, looks: bool) -> None:
        """change: int64[LEVELS], by how many frames of a chunk each level has grown. looks: because
        of looks, not of moves."""
        self.levels[chunk] = self.levels[chunk] + change
        self._totals[int(self.node[chunk])] += change
        if looks:  # what chance adds it takes again
            self.gained[chunk] = max(self.gained[chunk] + float(change @ _HEATS), 0.0)

    def shift_scattered(
        self, chunk: NDArray[np.int64], old: NDArray[np.uint16], new: NDArray[np.uint16]
    ) -> None:
        """Frames (one entry each, sorted by chunk: int64[n]) have gone from one state to another
        by looks."""
        run = np.flatnonzero(np.diff(chunk, prepend=-1))
        chunks = chunk[run]
        row = np.repeat(np.arange(len(run)) * LEVELS, np.diff(run, append=len(chunk)))
        cells = len(run) * LEVELS
        change = np.bincount(row + _LEVEL[new >> _Q], minlength=cells)
        change -= np.bincount(row + _LEVEL[old >> _Q], minlength=cells)
        change = change.reshape(len(run), LEVELS)
        self.levels[chunks] = self.levels[chunks] + change
        node = self.node[chunks]
        for each in unique(node).tolist():
            self._totals[each] += change[node == each].sum(axis=0)
        self.gained[chunks] = np.maximum(self.gained[chunks] + change @ _HEATS, 0.0)

    def slices(self, pfn: Pfns) -> Iterator[tuple[int, int, int]]:
        """(chunk, begin, end) for each chunk that sorted `pfn` touches."""
        if not len(pfn):
            return
        first = int(np.searchsorted(self.end, int(pfn[0]), side="right"))
        last = int(np.searchsorted(self.start, int(pfn[-1]), side="right"))
        begin = np.searchsorted(pfn, self.start[first:last].astype(np.uint64))
        end = np.searchsorted(pfn, self.end[first:last].astype(np.uint64))
        for at in np.flatnonzero(end > begin).tolist():
            yield first + at, int(begin[at]), int(end[at])

    def located(self, pfn: Pfns) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.int64]]]:
        """(chunk, rows of `pfn` in it, their offsets in the chunk) for frames in any order."""
        chunk, rows = self._chunks(pfn)
        if not len(rows):
            return
        order = np.argsort(chunk, kind="stable")
        each, begin = np.unique(chunk[order], return_index=True)
        for number, part in zip(each.tolist(), np.split(rows[order], begin[1:]), strict=True):
            yield number, part, pfn[part].astype(np.int64) - self.start[number]

    def _chunks(self, pfn: Pfns) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
        """int64[n], intp[n]: chunks of frames, and which of `pfn` those are: the others lie outside
        all spans."""
        where = pfn.astype(np.int64)
        chunk = np.searchsorted(self.start, where, side="right") - 1
        rows = np.flatnonzero((chunk >= 0) & (where < self.end[chunk]) & (pfn != NO_PFN))
        return chunk[rows], rows


def _cut(span: Span) -> NDArray[np.int64]:
    """int64[n]: where the chunks of a span begin."""
    later = np.arange(span.start // CHUNK + 1, -(-span.end // CHUNK), dtype=np.int64) * CHUNK
    return np.concatenate((np.array([span.start][: span.frames], np.int64), later))


def _heats() -> NDArray[np.float64]:
    """float64[LEVELS]: accesses per window by level, 0 up to what a first look makes of a frame
    that it finds idle; at most 1, as the rates of the hottest change the most by chance."""
    lowest = int(np.searchsorted(LEVEL_EDGES, round(FIRST[0] * Q_ONE), side="right"))
    return np.array([min(level_rate(level), 1.0) * (level >= lowest) for level in range(LEVELS)])


_HEATS: Final = _heats()
_LEVEL: Final = np.searchsorted(LEVEL_EDGES, np.arange(Q_ONE), side="right") - 1
"""Levels by q."""
_Q: Final = np.uint16(Q_SHIFT)
