# SPDX-License-Identifier: Apache-2.0
"""Which page each frame of the simulated machine holds, kept sparsely.

Pages have ids 0, 1, ... A block of 512 frames that holds 512 consecutive pages, or none, is one
number. Only blocks that single folios have left or joined have a row of ids of their own.

How large a folio is goes with its pages, not with the frames that they are in: of the pages
512 n to 512 n + 511 all are in folios of one order, which is a byte. Folios are naturally aligned
in ids as in frames, so the id of a page says where in its folio it is, wherever that has moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tierd.host import Pfns, Span

BLOCK_ORDER: Final = 9
BLOCK: Final = 1 << BLOCK_ORDER
"""Frames in a block: one PMD-sized folio."""

FREE: Final = -1
KERNEL: Final = -2
HOLE: Final = -3
"""Instead of a page id: a free frame, the kernel's own memory, no memory at all."""

_OFFSETS: Final = np.arange(BLOCK)
_TAILS: Final = (1 << np.arange(BLOCK_ORDER + 1)) - 1
"""By order: tails of a folio, and the bits of a page's id that say which of them it is."""
_HEADS: Final = _OFFSETS & _TAILS[:, None] == 0
"""By order: which frames of a block are heads."""
_SCAN: Final = 65_536
"""Blocks among which free ones are looked for at once."""
_FEW: Final = 64
"""Broken blocks at least in which free pieces are looked for at once, then as many again."""

_Number = TypeVar("_Number", np.int64, np.uint64)

Ids = NDArray[np.int64]
Blocks = NDArray[np.int64]
"""Indexes of blocks, dense over all spans."""
Orders = NDArray[np.uint8]
"""Orders of folios: 0 for a single page, `BLOCK_ORDER` at most."""


class FrameStore:
    """Frames of all spans (sorted by start, aligned to blocks) and the pages in them."""

    def __init__(self, spans: Sequence[Span], pages: int) -> None:
        """pages: how many ids there are."""
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
        self._order = np.zeros(-(-pages // BLOCK) + 1, np.uint8)
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

    def orders(self, ids: Ids) -> Orders:
        """uint8, of the shape of `ids`: order of the folio of each page, 0 for what is none."""
        # Not a page's are FREE, KERNEL and HOLE: they fall on the last entry, which stays 0.
        orders: Orders = self._order[np.maximum(ids, -1) >> BLOCK_ORDER]
        return orders

    def within(self, ids: Ids) -> NDArray[np.int64]:
        """int64, of the shape of `ids`: how many pages of its folio are before each page."""
        return ids & _TAILS[self.orders(ids)]

    def heads(self, blocks: Blocks) -> NDArray[np.bool_]:
        """bool[n, 512]: whether each frame of whole blocks holds the first page of a folio."""
        base = self._base[blocks]
        result: NDArray[np.bool_] = _HEADS[self.orders(base)]
        result[base < 0] = False
        slot = self._slot[blocks]
        own = slot >= 0
        if own.any():
            ids = self._rows[slot[own]]
            result[own] = (ids >= 0) & (self.within(ids) == 0)
        return result

    def may_hold(self, blocks: Blocks, first: int, end: int) -> NDArray[np.bool_]:
        """bool[n]: whether a block may hold pages first..end-1; certain where it is whole."""
        base = self._base[blocks]
        whole = (base > first - BLOCK) & (base < end) & (base >= 0)
        may: NDArray[np.bool_] = whole | (self._slot[blocks] >= 0)
        return may

    # -- changes -----------------------------------------------------------------------------

    def fold(self, first: int, orders: Orders) -> None:
        """Say in folios of which order the pages first, first + 512, ... and the 511 after each
        are. Only while they are nowhere."""
        begin = first // BLOCK
        self._order[begin : begin + len(orders)] = orders

    def fill(self, blocks: Blocks, first: Ids) -> None:
        """Put 512 consecutive pages into each of some free blocks, from `first` (a multiple of
        512) on."""
        self._base[blocks] = first
        self._use(blocks, BLOCK)

    def move(self, old: Pfns, new: Pfns, order: int) -> None:
        """Move folios of one order, given by their heads, into free frames."""
        ids = self.ids(old)
        if order == BLOCK_ORDER:
            self.clear(self.locate(old))
            self.fill(self.locate(new), ids)
        else:
            frames = spread(old, order)
            self.put(frames, np.full(len(frames), FREE, np.int64))
            self.put(spread(new, order), spread(ids, order))

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

    def find_free(self, node: int, order: int, count: int) -> Pfns:
        """First frames of up to `count` free pieces of a node that a folio of that order fits
        into: from broken blocks first, the lowest first."""
        size = 1 << order
        broken = np.sort(self._holder[self._holder >= 0])
        broken = broken[(self.node[broken] == node) & (self.used[broken] <= BLOCK - size)]
        # As many pieces as there can be at most: what is free need not lie together.
        most = (BLOCK - self.used[broken].astype(np.int64)) >> order
        room = np.concatenate(([0], np.cumsum(most)))
        found = [np.zeros(0, np.uint64)]
        have = begin = 0
        while have < count and begin < len(broken):
            ahead = int(np.searchsorted(room, room[begin] + count - have))
            end = max(ahead, begin + _FEW, 2 * begin)
            found.append(self._pieces(broken[begin:end], order))
            have += len(found[-1])
            begin = end
        if have < count:
            whole = self.free_blocks(node, -(-(count - have) * size // BLOCK))
            found.append(self._pieces(whole, order))
        return np.concatenate(found)[:count]

    def _pieces(self, blocks: Blocks, order: int) -> Pfns:
        """First frames of the free, naturally aligned runs of 2 ** order frames."""
        free = (self.rows(blocks) == FREE).reshape(-1, BLOCK >> order, 1 << order)
        block, piece = np.nonzero(free.all(axis=2))
        return (self.start_of(blocks)[block] + (piece << order)).astype(np.uint64)


def spread(heads: NDArray[_Number], order: int) -> NDArray[_Number]:
    """All frames, or all pages, of folios of one order, from the first of each."""
    each = np.arange(1 << order).astype(heads.dtype)
    return (heads[:, None] + each).reshape(-1)
