# SPDX-License-Identifier: Apache-2.0
"""Marking blocks idle, in groups that are read together: `Marker` and `Look`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import Host, Pfns
from tierd.samplers.idle_active import just_hot
from tierd.samplers.idle_blocks import Blocks, BlockTable, Bools
from tierd.samplers.idle_looks import (
    BLOCK,
    EMPTY,
    HUGE,
    MIXED,
    UNKNOWN,
    USED,
    WORDS,
    Words,
    mark_full,
    occupied,
    there_in_full,
    there_in_words,
)
from tierd.samplers.idle_sums import Sums
from tierd.sets import member

GROUP_FULL: Final = 64
"""Blocks of one full look: 32,768 frames, one call of the bitmap and one SampleBatch."""
GROUP_WORDS: Final = 1024
"""Blocks of one sparse look."""

EPOCH: Final = 128
"""Calls after which looks begin elsewhere: those at a calm block take turns at four words."""

_EIGHT: Final = np.uint64(0x0101010101010101)
_FAR_APART: Final = np.array([0, 4, 2, 6, 1, 5, 3, 7], np.uint64)
"""Words by the number of looks that told the same (`BlockTable.calm`)."""


def _none() -> Blocks:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Choice:
    """Blocks (sorted) for a look at all their frames, or a sparse one at a few of each.

    fair: those of them (sorted) that came in turn, so that they are a fair sample of all blocks.
    urgent: to be read in the next call, however long the window is.
    """

    blocks: Blocks
    sparse: bool
    fair: Blocks = field(default_factory=_none)
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """Blocks marked together, at `marked` (seconds). words: uint8[n], None for a look at all
    frames. masks: uint64[n], the frames that were marked in that word; of a look at all frames
    uint64[n, 8], or None where all that there were are meant. fair: those blocks of the choice's
    that are here. cpu: seconds that marking took. filled: bool[n], blocks that were empty not
    long ago. Of these, of others that may have been, and of one word of those of which nothing was
    known, masks have only what was there: the rest has yet to be filled, and that is not an access
    that says what follows."""

    blocks: Blocks
    words: NDArray[np.uint8] | None
    masks: Words | None
    marked: float
    fair: Blocks
    cpu: float
    urgent: bool
    filled: Bools


class Marker:
    """Marks what was chosen. Holds no state between calls."""

    def __init__(self, host: Host, table: BlockTable, sums: Sums) -> None:
        self._host = host
        self._table = table
        self._sums = sums

    def mark(self, choice: Choice, turn: int, *, wary: bool = False) -> Iterator[Look]:
        """Looks at the chosen blocks, each marked when it is asked for; `turn` is the number of the
        present call. wary: those that have just become hot may have been freed and filled since;
        of them, too, only frames that are there count. A sparse look marks a word of each block. So
        does a full one of a huge page, which has one bit. Empty blocks are only peeked at."""
        blocks = choice.blocks
        if not len(blocks):
            return
        kind = self._table.kind(blocks)
        filled = self._peek(blocks[kind == EMPTY], turn)
        by_word = (kind == HUGE) | choice.sparse
        words, full = (blocks[each & (kind != EMPTY)] for each in (by_word, ~by_word))
        # What has filled gets the kind of look that its turn is for and paid for.
        if choice.sparse:
            words = np.sort(np.concatenate((words, filled)))
        else:
            full = np.sort(np.concatenate((full, filled)))
        for at in range(0, len(full), GROUP_FULL):
            part = full[at : at + GROUP_FULL]
            before = self._host.cpu_times().total
            first, new = self._table.first(part), member(part, filled)
            there = self._there(first, new | (just_hot(self._table, part) & wary))
            mark_full(self._host, first)
            yield self._look(choice, part, None, there, before, new)
        for at in range(0, len(words), GROUP_WORDS):
            part = words[at : at + GROUP_WORDS]
            before = self._host.cpu_times().total
            word, mask = self._choose_words(part, turn if choice.sparse else 0)
            first = self._table.first(part) + word * np.uint64(64)
            unknown = self._table.kind(part) == UNKNOWN
            mask[unknown] &= there_in_words(self._host, first[unknown])
            some = mask != 0
            self._host.set_idle_words(first[some], mask[some])
            new = member(part, filled)
            yield self._look(choice, part, word.astype(np.uint8), mask, before, new)

    def _look(
        self,
        choice: Choice,
        blocks: Blocks,
        words: NDArray[np.uint8] | None,
        masks: Words | None,
        before: float,
        filled: Bools,
    ) -> Look:
        cpu = self._host.cpu_times().total - before
        fair = choice.fair
        these = fair[slice(*np.searchsorted(fair, (blocks[0], blocks[-1] + 1)))]
        these = these[member(these, blocks)]
        now = self._host.monotonic()
        return Look(blocks, words, masks, now, these, cpu, choice.urgent, filled)

    def _there(self, first: Pfns, unsure: Bools) -> Words | None:
        """uint64[n, 8]: folios that there are, where a block may have been empty not long ago, and
        else all frames; None where none was."""
        if not unsure.any():
            return None
        there = np.full((len(first), WORDS), np.uint64(2**64 - 1))
        there[unsure] = there_in_full(self._host, first[unsure])
        return there

    def _choose_words(
        self, blocks: Blocks, turn: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """A word of each block and the frames to mark in it: 8 of 64, other ones each time. Of a
        huge page its head alone; of a block with larger folios multiples of 8, where heads are;
        of one with few of them the whole word.

        Two looks in a row that tell the same are at both halves of a block, four at all quarters,
        but where a new epoch begins between them: what is hot in a part of a block is found by the
        second or the fourth, and not by chance.
        """
        kind, heads = self._table.kind(blocks), self._table.heads(blocks)
        mixer = blocks.astype(np.uint64) * np.uint64(0x9E3779B1)
        start = mixer + np.uint64(turn // EPOCH * 0xC2B2AE35)
        start ^= start >> np.uint64(13)
        # Sparse looks do not count where a block waits for a full one.
        step = np.where(self._table.listed(blocks), turn % 8, self._table.calm(blocks))
        word = _FAR_APART[step] ^ (start & np.uint64(7))
        mixer += np.uint64(turn * 0x85EBCA6B)
        mixer ^= mixer >> np.uint64(15)
        mask = np.left_shift(_EIGHT, mixer >> np.uint64(3) & np.uint64(7))
        mask[(kind == USED) | ((kind == MIXED) & (heads < BLOCK // 2))] = _EIGHT
        mask[(kind == MIXED) & (heads < BLOCK // 8)] = np.uint64(2**64 - 1)
        first = (kind == HUGE) | (kind == UNKNOWN)
        word[first] = 0
        mask[kind == UNKNOWN] = _EIGHT
        mask[kind == HUGE] = np.uint64(1)
        return word, mask

    def _peek(self, empty: Blocks, turn: int) -> Blocks:
        """Those of some empty blocks that have filled; the others are done with."""
        where = (empty * 37 + turn * 11) % (BLOCK // 8) * 8
        found = occupied(self._host, self._table.first(empty) + where.astype(np.uint64))
        filled = empty[found]
        self._table.release(empty[~found])
        if len(filled):
            with self._sums.changing(filled):
                unknown = np.full(len(filled), UNKNOWN, np.uint8)
                self._table.learn(filled, unknown, self._table.share(filled))
        return filled
