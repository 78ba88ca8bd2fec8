# SPDX-License-Identifier: Apache-2.0
"""Which page each frame of the simulated machine holds, kept sparsely.

Pages have ids 0, 1, ... A block of 512 frames that holds 512 consecutive pages, or none, is one
number. Only blocks that single pages have left or joined have a row of ids of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import Pfns, Span

BLOCK: Final = 512
"""Frames in a block: one PMD-sized folio."""

FREE: Final = -1
KERNEL: Final = -2
HOLE: Final = -3
"""Instead of a page id: a free frame, the kernel's own memory, no memory at all."""

_OFFSETS: Final = np.arange(BLOCK)
_SCAN: Final = 65_536
"""Blocks among which free ones are looked for at once."""

Ids = NDArray[np.int64]
Blocks = NDArray[np.int64]
"""Indexes of blocks, dense over all spans."""


class FrameStore:
    """Frames of all spans (sorted by start, aligned to blocks) and the pages in them."""

    def __init__(self, spans: Sequence[Span]) -> None:
        if any(span.start % BLOCK or span.end % BLOCK for span in spans):
            raise ValueError("spans must begin and end at multiples of 512 frames")
        self.spans = tuple(spans)
        self._start = np.array([span.start for span in spans], np.int64)
        self._end = np.array([span.end for span in spans], np.int64)
        counts = [span.frames // BLOCK for span in spans]
        self._first = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.int64)
        self.blocks = sum(counts)
        self.node = np.repeat(np.array([span.node for span in spans], np.int32), counts)
        self._base = np.full(self.blocks, FREE, np.int64)
        self._slot = np.full(self.blocks, -1, np.int32)
        self._rows = np.empty((0, BLOCK), np.int64)
        self._holder = np.zeros(0, np.int64)
        """Block of each row, -1 for a spare one."""
        self._spare: list[int] = []
        self._low = self._first.copy()
        """Per span: no block below this one is wholly free."""
        self._free = np.zeros(max((span.node for span in spans), default=0) + 1, np.int64)
        np.add.at(self._free, [span.node for span in spans], [span.frames for span in spans])
        self.huge = np.zeros(self.blocks, np.bool_)
        self.used = np.zeros(self.blocks, np.uint16)

    # -- where -----------------------------------------------------------------------------

    def locate(self, pfn: Pfns) -> Blocks:
        """int64[n]: block of each frame, -1 for a hole."""
        frame = pfn.astype(np.int64)
        span = np.searchsorted(self._start, frame, side="right") - 1
        inside = (span >= 0) & (frame < self._end[span])
        return np.where(inside, (frame - self._start[span]) // BLOCK + self._first[span], -1)

    def start_of(self, blocks: Blocks) -> NDArray[np.int64]:
        """int64[n]: first frame of each block."""
        span = np.searchsorted(self._first, blocks, side="right") - 1
        return self._start[span] + (blocks - self._first[span]) * BLOCK

    def of_node(self, node: int) -> Blocks:
        """Blocks of one node, in order."""
        return np.flatnonzero(self.node == node)

    def run(self, start: int, frames: int) -> tuple[int, int] | None:
        """First block of a run of frames and its offset in that; None where the run does not
        lie within one span."""
        for span, first in zip(self.spans, self._first.tolist(), strict=True):
            if span.start <= start and start + frames <= span.end:
                return first + (start - span.start) // BLOCK, start % BLOCK
        return None

    # -- what is there -----------------------------------------------------------------------

    def ids(self, pfn: Pfns) -> Ids:
        """int64[n]: page in each frame, or FREE, KERNEL, HOLE."""
        blocks = self.locate(pfn)
        result = self.at(blocks, (pfn % np.uint64(BLOCK)).astype(np.int64))
        result[blocks < 0] = HOLE
        return result

    def part(self, block: int, offset: int, frames: int) -> Ids:
        """int64[n]: the ids of some frames of one block."""
        slot = self._slot[block]
        if slot >= 0:
            return self._rows[slot, offset : offset + frames]
        base = self._base[block]
        ids: Ids = _OFFSETS[offset : offset + frames] * (base >= 0) + base
        return ids

    def at(self, blocks: Blocks, offset: NDArray[np.int64]) -> Ids:
        """int64[n]: the id of one frame in each block."""
        base = self._base[blocks]
        result = np.where(base >= 0, base + offset, base)
        slot = self._slot[blocks]
        own = slot >= 0
        if np.any(own):
            result[own] = self._rows[slot[own], offset[own]]
        return result

    def rows(self, blocks: Blocks) -> Ids:
        """int64[n, 512]: the ids of whole blocks."""
        base = self._base[blocks][:, None]
        result = np.where(base >= 0, base + _OFFSETS, base)
        slot = self._slot[blocks]
        own = slot >= 0
        if own.any():
            result[own] = self._rows[slot[own]]
        return result

    def may_hold(self, blocks: Blocks, first: int, end: int) -> NDArray[np.bool_]:
        """bool[n]: whether a block may hold pages first..end-1; certain where it is whole."""
        base = self._base[blocks]
        whole = (base > first - BLOCK) & (base < end) & (base >= 0)
        may: NDArray[np.bool_] = whole | (self._slot[blocks] >= 0)
        return may

    # -- changes -----------------------------------------------------------------------------

    def fill(self, blocks: Blocks, first: int, huge: NDArray[np.bool_]) -> None:
        """Put consecutive pages from `first` on into free blocks."""
        self._base[blocks] = first + np.arange(len(blocks)) * BLOCK
        self.huge[blocks] = huge
        self._use(blocks, BLOCK)

    def reserve(self, blocks: Blocks) -> None:
        """Make free blocks the kernel's."""
        self._base[blocks] = KERNEL
        self._use(blocks, BLOCK)

    def _use(self, blocks: Blocks, used: int | NDArray[np.int64]) -> None:
        """Set how many frames of some blocks are used, and keep the sums per node."""
        np.add.at(self._free, self.node[blocks], self.used[blocks].astype(np.int64) - used)
        self.used[blocks] = used

    def clear(self, blocks: Blocks) -> None:
        """Free whole blocks."""
        for block in blocks[self._slot[blocks] >= 0].tolist():
            self._spare.append(int(self._slot[block]))
            self._holder[self._slot[block]] = -1
        self._base[blocks] = FREE
        self._slot[blocks] = -1
        self.huge[blocks] = False
        self._use(blocks, 0)
        span = np.searchsorted(self._first, blocks, side="right") - 1
        np.minimum.at(self._low, span, blocks)

    def put(self, pfn: Pfns, ids: Ids) -> None:
        """Set single frames (no duplicates) to a page or to FREE."""
        blocks = self.locate(pfn)
        touched = np.unique(blocks)
        self._explode(touched)
        offset = (pfn % np.uint64(BLOCK)).astype(np.int64)
        self._rows[self._slot[blocks], offset] = ids
        held = (self._rows[self._slot[touched]] != FREE).sum(axis=1)
        self._use(touched, held)
        self.clear(touched[held == 0])

    def _explode(self, blocks: Blocks) -> None:
        """Give blocks that have none a row of their own."""
        blocks = blocks[self._slot[blocks] < 0]
        missing = len(blocks) - len(self._spare)
        if missing > 0:
            have = len(self._rows)
            grown = np.empty((max(have * 3 // 2, have + missing, 64), BLOCK), np.int64)
            grown[:have] = self._rows
            self._spare += range(have, len(grown))
            rows = self.rows(blocks)
            self._rows = grown
            self._holder = np.concatenate((self._holder, np.full(len(grown) - have, -1)))
        else:
            rows = self.rows(blocks)
        slots = [self._spare.pop() for _ in blocks]
        self._rows[slots] = rows
        self._slot[blocks] = slots
        self._holder[slots] = blocks

    # -- room ----------------------------------------------------------------------------------

    def free_frames(self, node: int) -> int:
        """Free frames of a node."""
        return int(self._free[node])

    def free_blocks(self, node: int, count: int) -> Blocks:
        """Up to `count` wholly free blocks of a node, the lowest first."""
        found: list[Blocks] = []
        for number, span in enumerate(self.spans):
            if span.node != node:
                continue
            at = int(self._low[number])
            end = int(self._first[number]) + span.frames // BLOCK
            lowest = end
            while at < end and count > 0:
                part = np.flatnonzero(self.used[at : min(at + _SCAN, end)] == 0)[:count] + at
                if len(part):
                    lowest = min(lowest, int(part[0]))
                    found.append(part)
                    count -= len(part)
                at += _SCAN
            self._low[number] = min(lowest, max(at, int(self._low[number])))
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def find_free(self, node: int, count: int) -> Pfns:
        """Up to `count` free frames of a node, from broken blocks first."""
        broken = np.sort(self._holder[self._holder >= 0])
        broken = broken[(self.node[broken] == node) & (self.used[broken] < BLOCK)]
        room = np.cumsum(BLOCK - self.used[broken].astype(np.int64))
        chosen = broken[: int(np.searchsorted(room, count)) + 1]
        have = int(room[len(chosen) - 1]) if len(chosen) else 0
        if have < count:
            whole = self.free_blocks(node, -(-(count - have) // BLOCK))
            chosen = np.concatenate((chosen, whole))
        if not len(chosen):
            return np.zeros(0, np.uint64)
        block, offset = np.nonzero(self.rows(chosen) == FREE)
        frames = self.start_of(chosen)[block] + offset
        return frames[:count].astype(np.uint64)
