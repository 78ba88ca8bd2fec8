# SPDX-License-Identifier: Apache-2.0
"""The idle bits of the simulated machine. Whether a page was accessed since it was marked is drawn
when its bit is read, from the accesses that were to be expected."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import IDLE_WORD_FRAMES, KernelError, Pfns
from tierd.host.frames import BLOCK, Blocks, FrameStore
from tierd.host.workload import Counts, Times

BLOCK_WORDS: Final = BLOCK // IDLE_WORD_FRAMES

Indexes = NDArray[np.int64]
Expected = Callable[[Blocks, Indexes, Times, float], Counts]
"""Accesses that the folio headed by a frame (block, offset) had to expect since then, until now."""


class IdleBits:
    """A bit per frame, and when it was marked. No clock of its own."""

    def __init__(self, frames: FrameStore, random: np.random.Generator, expected: Expected) -> None:
        self._frames = frames
        self._rng = random
        self._expected = expected
        self._bits = np.zeros(frames.blocks * BLOCK_WORDS, np.uint64)
        self._marked = np.zeros(frames.blocks * BLOCK_WORDS, np.float64)

    def mark(self, start: int, asked: NDArray[np.uint64], now: float) -> int:
        """Mark heads of user pages idle; returns how many."""
        index, part = self._words(start, len(asked))
        return self._mark(index, asked[part], now)

    def mark_words(self, first: Pfns, asked: NDArray[np.uint64], now: float) -> int:
        """The same for single words, first: uint64[n]."""
        index, part = self._single_words(first)
        return self._mark(index, asked[part], now)

    def _mark(self, index: Indexes, asked: NDArray[np.uint64], now: float) -> int:
        able = asked & self._trackable(index)
        stale = np.flatnonzero((asked != 0) & ((self._bits[index] & ~able) != 0))
        if len(stale):
            self._settle(index[stale], now)
        self._bits[index] |= able
        self._marked[index[asked != 0]] = now
        return _bits(able)

    def read(self, start: int, out: NDArray[np.uint64], now: float) -> tuple[int, int]:
        """Idle bits into `out`; returns how many frames were marked, and how many not."""
        return self._read(self._words(start, len(out)), out, now)

    def read_words(self, first: Pfns, out: NDArray[np.uint64], now: float) -> tuple[int, int]:
        """The same for single words, first: uint64[n]."""
        return self._read(self._single_words(first), out, now)

    def _read(
        self, where: tuple[Indexes, Indexes], out: NDArray[np.uint64], now: float
    ) -> tuple[int, int]:
        index, part = where
        marked = _bits(self._bits[index])
        self._settle(index, now)
        out[:] = 0
        out[part] = self._bits[index]
        return marked, len(index) * IDLE_WORD_FRAMES - marked

    def _words(self, start: int, count: int) -> tuple[Indexes, Indexes]:
        """Which of `count` words are memory: their indexes here, and their places among them."""
        if start % IDLE_WORD_FRAMES:
            raise KernelError(errno.EINVAL, "not the first frame of a word", "page_idle")
        at = self._frames.run(start, count * IDLE_WORD_FRAMES)
        if at is not None:
            word = at[0] * BLOCK_WORDS + at[1] // IDLE_WORD_FRAMES
            return np.arange(word, word + count), np.arange(count)
        return self._single_words(
            np.uint64(start) + np.arange(count, dtype=np.uint64) * np.uint64(IDLE_WORD_FRAMES)
        )

    def _single_words(self, first: Pfns) -> tuple[Indexes, Indexes]:
        if np.any(first % np.uint64(IDLE_WORD_FRAMES)):
            raise KernelError(errno.EINVAL, "not the first frame of a word", "page_idle")
        block = self._frames.locate(first)
        part = np.flatnonzero(block >= 0)
        within = (first[part] // np.uint64(IDLE_WORD_FRAMES)).astype(np.int64) % BLOCK_WORDS
        return block[part] * BLOCK_WORDS + within, part

    def _trackable(self, index: Indexes) -> NDArray[np.uint64]:
        """uint64[n]: bits of frames that are heads of user pages, for each word."""
        blocks, back = np.unique(index // BLOCK_WORDS, return_inverse=True)
        heads = self._frames.heads(blocks)
        packed = np.packbits(heads, axis=1, bitorder="little").view(np.uint64)
        return packed[back.reshape(-1), index % BLOCK_WORDS]

    def _settle(self, index: Indexes, now: float) -> None:
        """Draw for every idle bit of some words whether its page was accessed since it was
        marked, clear those that were, and let the others' wait begin anew."""
        live = index[self._bits[index] != 0]
        for part in range(0, len(live), 2048):
            words = live[part : part + 2048]
            bits = np.unpackbits(
                self._bits[words].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
            )
            row, bit = np.nonzero(bits)
            blocks = words[row] // BLOCK_WORDS
            offset = words[row] % BLOCK_WORDS * IDLE_WORD_FRAMES + bit
            expected = self._expected(blocks, offset, self._marked[words][row], now)
            idle = self._rng.random(len(row), np.float32) < np.exp(-expected)
            bits[row, bit] = idle
            self._bits[words] = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)[:, 0]
            self._marked[words] = now

    def forget(self, pfn: Pfns) -> None:
        """Idle bits do not move with a page here, and a free frame has none."""
        word = self._frames.locate(pfn) * BLOCK_WORDS + (
            pfn.astype(np.int64) // IDLE_WORD_FRAMES % BLOCK_WORDS
        )
        bit = np.left_shift(np.uint64(1), pfn % np.uint64(IDLE_WORD_FRAMES))
        np.bitwise_and.at(self._bits, word, ~bit)

    def forget_blocks(self, blocks: Blocks) -> None:
        """The same of whole blocks."""
        self._bits.reshape(-1, BLOCK_WORDS)[blocks] = 0


def _bits(words: NDArray[np.uint64]) -> int:
    """How many bits are set. (numpy.bitwise_count needs numpy 2.)"""
    return int(np.unpackbits(words.view(np.uint8)).sum(dtype=np.int64))
