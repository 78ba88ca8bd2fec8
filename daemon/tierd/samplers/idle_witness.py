# SPDX-License-Identifier: Apache-2.0
"""What a few frames told of a block before all were looked at: `Witnesses`.

Two looks tell that a page is hot. A sparse look at a block is one at eight of its frames, and if
all of them were accessed, so were others; the full look that follows tells which. The frames of
that word, and those beside it up to the first that were not accessed, then count as accessed twice,
and hot memory need not wait for a third look. Chance does not do that to 64 frames, and one pass
over the memory does not come back to a word.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import Pfns
from tierd.samplers.idle_blocks import Blocks, Bools
from tierd.samplers.idle_looks import BLOCK, HUGE, WORDS, Seen, Words
from tierd.sets import member

MOST: Final = 4096
"""Blocks that are remembered, the newest."""
AGE: Final = 8
"""Calls after which what a few frames told is too old."""
FOLIOS: Final = 8
"""In a word, at least, that its being accessed says something."""
ALL: Final = 0.97
"""Of a word: so much must have been accessed."""

_WORD: Final = np.uint64(6)
_WORD_OF: Final = np.uint64(BLOCK - 1)
_BIT_OF: Final = np.uint64(63)
_BLOCK: Final = np.uint64(BLOCK)


class Witnesses:
    """Blocks that have just become hot by all of the few frames of a word of theirs."""

    def __init__(self) -> None:
        self._block: Blocks = np.zeros(0, np.int64)
        self._word = np.zeros(0, np.uint8)
        self._mask: Words = np.zeros(0, np.uint64)
        self._turn = np.zeros(0, np.int64)

    def note(self, blocks: Blocks, words: NDArray[np.uint8], masks: Words, turn: int) -> None:
        """The frames in `masks`, uint64[n], of word uint8[n] of each of these blocks were all
        accessed; `turn` is the number of the present call."""
        self.drop(blocks)
        self._block = np.concatenate((self._block, blocks))[-MOST:]
        self._word = np.concatenate((self._word, words))[-MOST:]
        self._mask = np.concatenate((self._mask, masks))[-MOST:]
        self._turn = np.concatenate((self._turn, np.full(len(blocks), turn)))[-MOST:]

    def drop(self, blocks: Blocks) -> None:
        """These blocks are not hot by a few frames any more, or hold other data."""
        if len(self._block):
            self._keep(~member(self._block, blocks))

    def confirm(self, blocks: Blocks, starts: Pfns, seen: Seen, turn: int) -> tuple[Bools, Pfns]:
        """A full look at `blocks`, which begin at frames `starts` (both sorted), has told `seen`.

        Returns bool[n]: blocks a part of which was accessed then and before; and uint64[m],
        sorted: the frames of those parts but for the few that were looked at before. What was
        noted of these blocks is forgotten.
        """
        confirmed = np.zeros(len(blocks), np.bool_)
        if not len(self._block):
            return confirmed, np.zeros(0, np.uint64)
        self._keep(self._turn >= turn - AGE)
        here, at = _rows(self._block, blocks)
        here, at = here[seen.kind[here] != HUGE], at[seen.kind[here] != HUGE]
        if not len(here):
            self.drop(blocks)
            return confirmed, np.zeros(0, np.uint64)
        order = np.argsort(here)
        here, word, mask = here[order], self._word[at[order]], self._mask[at[order]]
        self.drop(blocks)
        entries = _entries(starts[here], seen.pfn)
        pfn, hit = seen.pfn[entries], seen.weight[entries] > 0
        row, column = _places(starts[here], pfn)
        parts = _around(word, _accessed(row, column, hit, len(here)))
        confirmed[here] = np.any(parts, axis=1)
        hit &= parts[row, column]
        # Those few have had their look.
        bit = mask[row] >> (pfn & _BIT_OF) & np.uint64(1)
        hit &= (column != word[row]) | (bit == 0)
        return confirmed, pfn[hit]

    def _keep(self, keep: Bools) -> None:
        self._block, self._word = self._block[keep], self._word[keep]
        self._mask, self._turn = self._mask[keep], self._turn[keep]


def looked_at(starts: Pfns, seen: Seen) -> NDArray[np.intp]:
    """intp[n]: how many frames of each block, which begin at `starts` (sorted), were looked at."""
    row, _ = _places(starts, seen.pfn)
    count: NDArray[np.intp] = np.bincount(row, minlength=len(starts))
    return count


def _rows(noted: Blocks, blocks: Blocks) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which of `blocks` (sorted) were noted, and where."""
    where = np.searchsorted(blocks, noted)
    at = np.flatnonzero(blocks[np.minimum(where, len(blocks) - 1)] == noted)
    return where[at], at


def _entries(starts: Pfns, pfn: Pfns) -> NDArray[np.intp]:
    """intp[m]: where in `pfn` (sorted) frames of the blocks are that begin at `starts` (sorted)."""
    begin, end = np.searchsorted(pfn, starts), np.searchsorted(pfn, starts + _BLOCK)
    length = end - begin
    first = np.cumsum(length) - length
    entries: NDArray[np.intp] = np.arange(int(length.sum())) + np.repeat(begin - first, length)
    return entries


def _places(starts: Pfns, pfn: Pfns) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """intp[n] each: the block and the word in it of each frame."""
    row = np.searchsorted(starts, pfn, side="right") - 1
    return row, ((pfn & _WORD_OF) >> _WORD).astype(np.intp)


def _accessed(row: NDArray[np.intp], column: NDArray[np.intp], hit: Bools, blocks: int) -> Bools:
    """bool[n, 8]: words of each block that were accessed as a whole."""
    place = row * WORDS + column
    looked = np.bincount(place, minlength=blocks * WORDS)
    hits = np.bincount(place[hit], minlength=blocks * WORDS)
    whole: Bools = ((looked >= FOLIOS) & (hits >= ALL * looked)).reshape(-1, WORDS)
    return whole


def _around(word: NDArray[np.uint8], whole: Bools) -> Bools:
    """bool[n, 8]: the whole words in a row that `word` of each block is in."""
    part = np.zeros_like(whole)
    rows = np.arange(len(word))
    part[rows, word] = whole[rows, word]
    for _ in range(WORDS - 1):
        part[:, 1:] |= part[:, :-1] & whole[:, 1:]
        part[:, :-1] |= part[:, 1:] & whole[:, :-1]
    return part
