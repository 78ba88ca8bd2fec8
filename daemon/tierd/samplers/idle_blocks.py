# SPDX-License-Identifier: Apache-2.0
"""What is remembered of each 2 MiB block: `BlockTable`.

On a host of 16 TiB there are eight million blocks, so a block has two bytes, and two more that
are touched only where it is a mixture of folios.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import Pfns, Span
from tierd.samplers.idle_looks import BLOCK, HUGE, MIXED, SMALL, UNKNOWN, USED

Blocks = NDArray[np.int64]
"""Indexes of blocks, dense over all spans."""
Bools = NDArray[np.bool_]

_KIND: Final = np.uint8(0b0000_0111)
_CALM: Final = np.uint8(0b0011_1000)
_CALM_SHIFT: Final = np.uint8(3)
_BUSY: Final = np.uint8(0b0100_0000)
_LISTED: Final = np.uint8(0b1000_0000)

IDLE: Final = 8
HOT: Final = 247
"""Accessed shares (of 255) up to and from which a block counts as idle or hot as a whole."""

MOST_CALM: Final = 7
"""Beyond it the count of calm looks goes on at `_CALM_AGAIN`: what is done every fourth time
goes on being done."""
_CALM_AGAIN: Final = 4

_HEADS_BITS: Final = np.uint16(9)
_HEADS_MASK: Final = np.uint16(0b1_1111_1111)
"""Of the layout of a MIXED block: folios, at most 511. Above them are the base pages beyond one
for each folio, in quarters (rounded)."""

# By kind: folios and base pages where the kind says it all.
_HEADS: Final = np.zeros(MIXED + 2, np.uint16)
_HEADS[[UNKNOWN, SMALL, USED]] = BLOCK
_HEADS[HUGE] = 1
_PAGES: Final = np.zeros(MIXED + 2, np.uint16)
_PAGES[[SMALL, HUGE, USED]] = BLOCK


class BlockTable:
    """State of all blocks of `spans` (sorted by start, disjoint). Not thread-safe, but may be
    read by several threads."""

    def __init__(self, spans: Sequence[Span], fast: Collection[int]) -> None:
        """fast: the nodes of the fastest tier."""
        begin, block, quick, count, done = [], [], [], 0, 0
        for span in spans:
            first = max(span.start // BLOCK, done)  # a block that two spans share
            done = max(-(-span.end // BLOCK), first)
            if done > first:
                begin.append(count)
                block.append(first)
                quick.append(span.node in fast)
                count += done - first
        self.count = count
        self._begin = np.array(begin, np.int64)
        self._block = np.array(block, np.int64)
        self._quick = np.array(quick, np.bool_)
        # UNKNOWN is 0: memory is used once a block was looked at.
        self._code = np.zeros(count, np.uint8)
        self._share = np.zeros(count, np.uint8)
        self._layout = np.zeros(count, np.uint16)

    # -- where a block is ------------------------------------------------------------------

    def first(self, blocks: Blocks) -> Pfns:
        """uint64[n]: first frame of each block."""
        run = np.searchsorted(self._begin, blocks, side="right") - 1
        return ((self._block[run] + blocks - self._begin[run]) * BLOCK).astype(np.uint64)

    def holding(self, pfn: Pfns) -> tuple[Blocks, NDArray[np.int64]]:
        """int64[k] each: the blocks that these frames (in any order) are in, sorted, and how many
        of them are in each."""
        number, count = np.unique((pfn // np.uint64(BLOCK)).astype(np.int64), return_counts=True)
        run = np.searchsorted(self._block, number, side="right") - 1
        return self._begin[run] + number - self._block[run], count

    def fast(self, blocks: Blocks) -> Bools:
        """bool[n]: whether each block is in the fastest tier."""
        quick: Bools = self._quick[np.searchsorted(self._begin, blocks, side="right") - 1]
        return quick

    # -- what is known of it ---------------------------------------------------------------

    def kind(self, blocks: Blocks) -> NDArray[np.uint8]:
        """uint8[n]: UNKNOWN, EMPTY, ..."""
        kind: NDArray[np.uint8] = self._code[blocks] & _KIND
        return kind

    def share(self, blocks: Blocks) -> NDArray[np.uint8]:
        """uint8[n]: accessed share of what the last look saw, 0..255."""
        share: NDArray[np.uint8] = self._share[blocks]
        return share

    def calm(self, blocks: Blocks) -> NDArray[np.uint8]:
        """uint8[n]: looks in a row that told the same, 0..MOST_CALM."""
        calm: NDArray[np.uint8] = (self._code[blocks] & _CALM) >> _CALM_SHIFT
        return calm

    def heads(self, blocks: Blocks) -> NDArray[np.uint16]:
        """uint16[n]: folios on the LRU; as many as there can be where that is not known."""
        kind = self.kind(blocks)
        mixed = self._layout[blocks] & _HEADS_MASK
        heads: NDArray[np.uint16] = np.where(kind == MIXED, mixed, _HEADS[kind])
        return heads

    def pages(self, blocks: Blocks) -> NDArray[np.uint16]:
        """uint16[n]: about how many base pages are in those folios; 0 where nothing is known."""
        kind, layout = self.kind(blocks), self._layout[blocks]
        mixed = (layout & _HEADS_MASK) + (layout >> _HEADS_BITS) * np.uint16(4)
        pages: NDArray[np.uint16] = np.where(kind == MIXED, mixed, _PAGES[kind])
        return pages

    def learn(self, blocks: Blocks, kind: NDArray[np.uint8], share: NDArray[np.uint8]) -> None:
        """Take over what a look told."""
        self._code[blocks] = (self._code[blocks] & ~_KIND) | kind
        self._share[blocks] = share

    def learn_layout(
        self, blocks: Blocks, heads: NDArray[np.uint16], pages: NDArray[np.uint16]
    ) -> None:
        """Folios (fewer than `BLOCK`) and base pages of MIXED blocks."""
        more = np.minimum((np.clip(pages, heads, BLOCK) - heads + 2) // 4, 127).astype(np.uint16)
        self._layout[blocks] = heads | more << _HEADS_BITS

    def settle(self, blocks: Blocks, changed: Bools) -> NDArray[np.uint8]:
        """Count a look that told something else (calm is 0 again) or the same; returns calm."""
        calm = self.calm(blocks) + np.uint8(1)
        calm[calm > MOST_CALM] = _CALM_AGAIN
        calm[changed] = 0
        self._code[blocks] = (self._code[blocks] & ~_CALM) | calm << _CALM_SHIFT
        return calm

    # -- what happens to it ----------------------------------------------------------------

    def busy(self, blocks: Blocks) -> Bools:
        """bool[n]: chosen for a look that was not read yet."""
        busy: Bools = (self._code[blocks] & _BUSY) != 0
        return busy

    def listed(self, blocks: Blocks) -> Bools:
        """bool[n]: in the list of active blocks."""
        listed: Bools = (self._code[blocks] & _LISTED) != 0
        return listed

    def take(self, blocks: Blocks) -> None:
        """They were chosen for a look."""
        self._code[blocks] |= _BUSY

    def release(self, blocks: Blocks) -> None:
        """Their look was read."""
        self._code[blocks] &= ~_BUSY

    def list(self, blocks: Blocks, listed: bool) -> None:
        """They have joined the list of active blocks, or left it."""
        if listed:
            self._code[blocks] |= _LISTED
        else:
            self._code[blocks] &= ~_LISTED
