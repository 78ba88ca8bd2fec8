# SPDX-License-Identifier: Apache-2.0
"""`Packed`: where the states of frames lie, so that those of a huge page do not take a kibibyte.

Of a 2 MiB block that is one folio only the first frame is ever looked at. So a chunk is a sheet of
rows, one for each of its blocks in which another frame is known, in the order in which these came;
row 0 holds the first frames of all other blocks, and which row each block has. Rows that are not
used take no memory, and those that are not used any more are given back to the kernel. A chunk of
small folios is plain: states in the order of the frames, as there is nothing to be saved.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.hotness.state import UNKNOWN
from tierd.sets import unique

CHUNK: Final = 128 * 1024
"""Frames that are worked on at once: temporaries stay within the second-level cache."""

BLOCK: Final = 512
"""Frames of a row."""
ROWS: Final = CHUNK // BLOCK

MOST_ROWS: Final = 240
"""Rows of a sheet beside row 0; with more, a chunk is plain."""

LOOSE: Final = 512
"""Frames that a chunk may forget, or an eighth of what it knows yet, between two searches for rows
in which nothing is known any more."""

_PLAIN: Final = CHUNK - (ROWS - MOST_ROWS) * (BLOCK - 1)
"""Known frames from which a chunk is plain in any case."""

SPREAD: Final = 64
"""Frames apart from which those of a sheet are looked for one by one, not in a copy of all."""

GROUP: Final = 64
"""Frames of a group, aligned: a word of the idle bitmap."""

_SHIFT: Final = 9
_INNER: Final = BLOCK - 1
_NOWHERE: Final = BLOCK - 1
"""Cell of row 0 that is always unknown: all frames that lie in no row. The first `ROWS` cells are
states, half as many the rows of blocks, a byte each."""
_PAGE: Final = 64 * 1024
"""Bytes of the largest page in which the kernel may manage memory."""
_STATE: Final = 2
"""Bytes of a state."""
_WORDS: Final = GROUP * _STATE // 8
"""Words of four states in a group."""

Offsets = NDArray[np.int64]
States = NDArray[np.uint16]
Places = Offsets | slice
"""Cells or frames of a chunk, one by one or in a row."""


class Packed:
    """States of the frames of chunks. frames: int64[chunks], how many each has, at most `CHUNK`,
    and always plain with less; before: int64[chunks], frames before the first whole group; pack:
    whether to make sheets at all."""

    def __init__(
        self, frames: NDArray[np.int64], before: NDArray[np.int64], *, pack: bool = True
    ) -> None:
        self._frames = frames
        self._before = before
        self._may = (frames == CHUNK) & pack
        """Chunks that may be sheets."""
        self._sheet = self._may.copy()
        room = -(-frames * _STATE // _PAGE) * _PAGE
        self._at = np.cumsum(np.concatenate((np.zeros(1, np.int64), room)))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, max(int(self._at[-1]), _PAGE), flags)
        if pack:  # a huge page would hold the sheets of eight chunks, with rows that are not used
            with suppress(OSError):  # a kernel without huge pages
                self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.all = np.frombuffer(self._memory, np.uint16)
        """uint16[]: the cells of all chunks, to be read and written at what `scattered` and
        `scattered_room` say."""
        self._bytes = self.all.view(np.uint8)
        self._rows = np.zeros(len(frames), np.uint8)
        """Rows in use beside row 0."""
        self._loose = np.zeros(len(frames), np.int32)

    # -- what is known ---------------------------------------------------------------------

    def cells(self, chunk: int) -> States:
        """Where all states of a chunk lie, to be read and written at what `find` and `room`
        say."""
        at = int(self._at[chunk]) // _STATE
        return self.all[at : at + int(self._frames[chunk])]

    def find(self, chunk: int, offset: Offsets) -> Offsets:
        """int64[n]: the cells of frames (offsets in the chunk: int64[n], in any order). To be read
        only: all unknown ones may share a cell."""
        if not self._sheet[chunk]:
            return offset
        block, inner = offset >> _SHIFT, offset & _INNER
        return _cell(self._rows_of(chunk)[block], block, inner)

    def scattered(self, chunk: Offsets, offset: Offsets) -> Offsets:
        """int64[n]: where in `all` the states of frames are, of which a few each are in many chunks
        (int64[n] each, in any order); otherwise as `find`."""
        at = self._at[chunk]
        where: Offsets = at // _STATE + offset
        rows = np.flatnonzero(self._sheet[chunk])
        if len(rows):
            block, inner = offset[rows] >> _SHIFT, offset[rows] & _INNER
            row = self._bytes[at[rows] + ROWS * _STATE + block]
            where[rows] = at[rows] // _STATE + _cell(row, block, inner)
        return where

    def scattered_room(self, chunk: Offsets, offset: Offsets) -> Offsets:
        """As `scattered`, of frames (each once, sorted by chunk) that are about to become known."""
        where = self.scattered(chunk, offset)
        nowhere = self._sheet[chunk] & (where == self._at[chunk] // _STATE + _NOWHERE)
        if not nowhere.any():
            return where
        for each in unique(chunk[nowhere]).tolist():
            these = slice(*np.searchsorted(chunk, (each, each + 1)))
            self.room(each, offset[these])
        return self.scattered(chunk, offset)

    def room(self, chunk: int, where: Places) -> Places:
        """The cells of frames (offsets, unique) that are about to become known."""
        if not self._sheet[chunk]:
            return where
        offset = np.arange(where.start, where.stop) if isinstance(where, slice) else where
        cell = self.find(chunk, offset)
        if not np.any(cell == _NOWHERE):
            return cell
        blocks = _blocks(offset[cell == _NOWHERE])
        if int(self._rows[chunk]) + len(blocks) > MOST_ROWS:  # in some nothing may be known
            self.replace(chunk, self.whole(chunk), 0)
            blocks = _blocks(offset[self.find(chunk, offset) == _NOWHERE])
        self._add_rows(chunk, blocks)
        return self.find(chunk, offset)

    def whole(self, chunk: int) -> States:
        """uint16[frames]: all states of a chunk in the order of the frames, to be read, or to be
        changed and given to `replace`: they may be a copy."""
        cells = self.cells(chunk)
        if not self._sheet[chunk]:
            return cells
        place = self._rows_of(chunk)
        states = np.zeros((ROWS, BLOCK), np.uint16)
        states[:, 0] = cells[:ROWS]
        own = np.flatnonzero(place)
        states[own] = cells.reshape(ROWS, BLOCK)[place[own]]
        return states.reshape(-1)

    def group(self, chunk: int, offset: Offsets) -> Offsets:
        """int64[n]: the groups of frames, from the first whole one in the chunk on."""
        return (offset - int(self._before[chunk])) // GROUP

    def every(self, chunk: int, first: int, step: int) -> States:
        """uint16[n]: states of every `step`-th frame of a chunk from `first` on; to be read."""
        if not self._sheet[chunk] or step < SPREAD:
            return self.whole(chunk)[first::step]
        return self.cells(chunk)[self.find(chunk, np.arange(first, CHUNK, step))]

    def groups(self, chunk: int, group: Offsets) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """uint64[n, 16], bool[n]: the 64 states of each group, four in a word, and whether it lies
        in the chunk as a whole (otherwise all unknown)."""
        cells, before = self.cells(chunk), int(self._before[chunk])
        count = max(len(cells) - before, 0) // GROUP
        there = (group >= 0) & (group < count)
        words = cells[before : before + count * GROUP].view(np.uint64).reshape(count, _WORDS)
        found = np.zeros((len(group), _WORDS), np.uint64)
        if not self._sheet[chunk]:
            found[there] = words[group[there]]
            return found, there
        asked = np.flatnonzero(there)
        block, part = np.divmod(group[asked], BLOCK // GROUP)
        row = self._rows_of(chunk)[block].astype(np.int64)
        own = row > 0
        found[asked[own]] = words[row[own] * (BLOCK // GROUP) + part[own]]
        first = ~own & (part == 0)
        found[asked[first], 0] = cells[block[first]]
        return found, there

    def between(self, chunk: int, low: int, high: int) -> tuple[Offsets, States]:
        """int64[n], uint16[n]: frames of known states from `low` to `high`, sorted, and these."""
        alone = self._sheet[chunk] and not self._rows[chunk]
        states = self.cells(chunk)[:ROWS] if alone else self.whole(chunk)
        at = np.flatnonzero((states >= np.uint16(low)) & (states <= np.uint16(high)))
        return at << _SHIFT if alone else at, states[at]

    def _rows_of(self, chunk: int) -> NDArray[np.uint8]:
        """uint8[ROWS]: the row of each block of a sheet, to be read and written; 0 for those whose
        first frame is in row 0."""
        return self.cells(chunk)[ROWS : ROWS + ROWS // _STATE].view(np.uint8)

    # -- what changes it -------------------------------------------------------------------

    def clear(self, chunk: int, offset: Offsets, known: int) -> None:
        """Frames (offsets: int64[n], unique) become unknown; so many of the chunk are known yet."""
        self.cells(chunk)[self.find(chunk, offset)] = UNKNOWN
        if not self._may[chunk]:
            return
        self._loose[chunk] += len(offset)
        rows = int(self._rows[chunk]) if self._sheet[chunk] else ROWS
        # In a row at least one frame should be known.
        if known < rows // 2 or self._loose[chunk] > max(LOOSE, known // 8):
            self.replace(chunk, self.whole(chunk), known)

    def replace(self, chunk: int, states: States, known: int) -> None:
        """All states of a chunk (uint16[frames], in the order of the frames, `known` of them
        known) are these from now on, in as little memory as they need."""
        self._loose[chunk] = 0
        if not self._sheet[chunk]:
            if not np.may_share_memory(states, self.cells(chunk)):
                self.cells(chunk)[:] = states
            if not self._may[chunk] or known >= _PLAIN:
                return
            states = self.cells(chunk).copy()
        rows = states.reshape(ROWS, BLOCK)
        own = np.flatnonzero(rows[:, 1:].any(axis=1))
        if len(own) > MOST_ROWS:
            self._sheet[chunk] = False
            self.cells(chunk)[:] = states
            return
        grows = self._sheet[chunk] and len(own) >= self._rows[chunk]
        self._sheet[chunk] = True
        self._rows[chunk] = len(own)
        cells = self.cells(chunk)
        cells[:ROWS] = rows[:, 0]
        cells[own] = UNKNOWN
        cells[ROWS:BLOCK] = 0
        self._rows_of(chunk)[own] = np.arange(1, len(own) + 1)
        cells[BLOCK : (len(own) + 1) * BLOCK] = rows[own].reshape(-1)
        if not grows:
            self._give_back(chunk)

    def _add_rows(self, chunk: int, blocks: Offsets) -> None:
        """Rows for these blocks (unique), which have none; or the chunk becomes plain."""
        cells = self.cells(chunk)
        begin = int(self._rows[chunk]) + 1
        end = begin + len(blocks)
        if end > MOST_ROWS + 1:
            states = self.whole(chunk)
            self._sheet[chunk] = False
            cells[:] = states
            return
        rows = cells.reshape(ROWS, BLOCK)
        rows[begin:end] = UNKNOWN  # they may have been used before
        rows[begin:end, 0] = cells[blocks]
        cells[blocks] = UNKNOWN
        self._rows_of(chunk)[blocks] = np.arange(begin, end)
        self._rows[chunk] = end - 1

    def _give_back(self, chunk: int) -> None:
        """Memory behind the last row goes back to the kernel."""
        used = (int(self._rows[chunk]) + 1) * BLOCK * _STATE
        begin = int(self._at[chunk]) + -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
        if begin < self._at[chunk + 1]:
            self._memory.madvise(mmap.MADV_DONTNEED, begin, int(self._at[chunk + 1]) - begin)


def _cell(row: NDArray[np.uint8], block: Offsets, inner: Offsets) -> Offsets:
    """int64[n]: cells of a sheet by the row that a frame's block has, the block, and the frame in
    it."""
    cell: Offsets = (row.astype(np.int64) << _SHIFT) + inner
    alone = np.flatnonzero(row == 0)
    cell[alone] = np.where(inner[alone] == 0, block[alone], _NOWHERE)
    return cell


def _blocks(offset: Offsets) -> Offsets:
    """int64[n]: the blocks of some frames of a chunk, each once."""
    return np.flatnonzero(np.bincount(offset >> _SHIFT))
