# SPDX-License-Identifier: Apache-2.0
"""`Ledger`: tierd's memory of its own moves, small enough for a host that moves at full rate.

No clock of its own: every method that needs the time is told it, in seconds of any clock that
does not go back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import Pfns

LIMIT: Final = 1 << 19
"""Folios that are remembered, 7 bytes each; beyond it the oldest are forgotten. With base pages
these are 2 GiB: ten seconds at 200 MiB/s."""

YOUNG: Final = 8
"""Additions that are kept apart before all are sorted into one table."""

_MANY: Final = 60_000
"""Additions that are told apart: their numbers have 16 bits."""

_LEFT: Final = np.uint8(0x80)
"""Beside the order of a folio: it was moved on, or is accounted for."""

Rows = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass(slots=True)
class _Addition:
    """When some folios were moved; how many rows there are of it, and base pages that were not
    moved on."""

    time: float
    rows: int
    pages: int


@dataclass(frozen=True, slots=True)
class _Table:
    """Folios by frame. offset: uint32[n] (uint64 where they lie too far apart), sorted and
    unique, from `base` on; number: uint16[n] of the addition; owner: int16[n]; size: uint8[n]
    of order and _LEFT."""

    base: np.uint64
    offset: NDArray[np.unsignedinteger]
    number: NDArray[np.uint16]
    owner: NDArray[np.int16]
    size: NDArray[np.uint8]

    @property
    def pfn(self) -> Pfns:
        return self.offset.astype(np.uint64) + self.base

    def lookup(self, pfn: Pfns) -> tuple[Rows, Bools]:
        """Where each frame (any order) would be, and whether it is there."""
        if not len(self.offset):
            return np.zeros(len(pfn), np.intp), np.zeros(len(pfn), np.bool_)
        key = pfn - self.base  # wraps below the base, to more than any offset
        most = np.uint64(np.iinfo(self.offset.dtype).max)
        near = np.minimum(key, most).astype(self.offset.dtype)  # else numpy converts the table
        row = np.minimum(np.searchsorted(self.offset, near), len(self.offset) - 1)
        return row, self.offset[row] == key


def _table(
    pfn: Pfns,
    number: NDArray[np.uint16],
    owner: NDArray[np.int16],
    size: NDArray[np.uint8],
) -> _Table:
    """Of sorted, unique frames. One owner for all, the usual case, takes no memory."""
    base = pfn[0] if len(pfn) else np.uint64(0)
    offset = pfn - base
    if len(owner) and (owner == owner[0]).all():
        owner = np.broadcast_to(owner[0].copy(), len(owner))
    near = not len(pfn) or offset[-1] < 2**32
    return _Table(base, offset.astype(np.uint32) if near else offset, number, owner, size)


def _pages(size: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int64[n]: base pages of each folio that was not moved on, else 0."""
    stays = (size & _LEFT) == 0
    pages: NDArray[np.int64] = stays * np.left_shift(1, (size & ~_LEFT).astype(np.int64))
    return pages


class Ledger:
    """tierd's own moves in one direction, by the frame the data is in now.

    Answers which candidates were moved only just now (minimum residency), and which moves
    undo an earlier one (waste). Bounded by `LIMIT` folios and by age. Of a frame that was entered
    twice the last entry counts.
    """

    def __init__(self) -> None:
        nothing = np.zeros(0, np.uint64)
        self._old = _table(
            nothing, np.zeros(0, np.uint16), np.zeros(0, np.int16), np.zeros(0, np.uint8)
        )
        self._young: list[_Table] = []
        self._additions: deque[_Addition] = deque()
        self._first = 0
        """Number of the oldest addition."""
        self._size = 0
        self.pages = 0
        """Base pages of folios that have not been moved on."""

    def __len__(self) -> int:
        return self._size

    def add(
        self,
        now: float,
        pfn: Pfns,
        owner: NDArray[np.int16],
        pages: NDArray[np.uint32],
    ) -> None:
        """Remember folios, by their new frames (unique, any order), of class indices `owner`;
        pages: base pages in each, a power of two."""
        if not len(pfn):
            return
        order = np.argsort(pfn)[:LIMIT]
        size = (np.frexp(pages[order])[1] - 1).astype(np.uint8)
        number = np.uint16((self._first + len(self._additions)) & 0xFFFF)
        same = np.broadcast_to(number, len(order))
        self._young.append(_table(pfn[order], same, owner[order], size))
        new = _Addition(now, len(order), int(pages[order].sum()))
        self._additions.append(new)
        self._size += new.rows
        self.pages += new.pages
        while self._size > LIMIT or len(self._additions) > _MANY:
            self._drop_oldest()
        if len(self._young) > YOUNG:
            self._merge()

    def absolve(self, owner: int) -> None:
        """What was moved for class `owner` so far is neither protected nor waste any more."""
        for table in self._tables():
            self._let_go(table, np.flatnonzero(table.owner == owner))

    def prune(self, before: float) -> None:
        """Forget moves made before that time."""
        while self._additions and self._additions[0].time < before:
            self._drop_oldest()
        if sum(len(table.offset) for table in self._tables()) > 2 * self._size:
            self._merge()

    def recent(self, pfn: Pfns, since: float) -> Bools:
        """bool[n]: whether each frame (any order) holds data moved at or after `since`."""
        result = np.zeros(len(pfn), np.bool_)
        for table, row, at in self._found(pfn, since):
            result[at] = (table.size[row] & _LEFT) == 0
        return result

    def owners(self, pfn: Pfns, since: float) -> NDArray[np.int16]:
        """int16[n]: owner under which each frame (any order) was entered, -1 if not since."""
        result = np.full(len(pfn), -1, np.int16)
        for table, row, at in self._found(pfn, since):
            result[at] = table.owner[row]
        return result

    def leave(self, pfn: Pfns, since: float) -> NDArray[np.float64]:
        """float64[n]: when each frame's data was moved, NaN if not at or after `since`.

        These data move on now: each is found only once.
        """
        result = np.full(len(pfn), np.nan)
        times = self._times()
        for table, row, at in self._found(pfn, since):
            stays = (table.size[row] & _LEFT) == 0
            row, at = row[stays], at[stays]
            result[at] = times[self._age(table.number[row])]
            self._let_go(table, row)
        return result

    # -- inside ------------------------------------------------------------------------------

    def _tables(self) -> list[_Table]:
        """The newest first."""
        return [*reversed(self._young), self._old]

    def _times(self) -> NDArray[np.float64]:
        return np.array([each.time for each in self._additions])

    def _age(self, number: NDArray[np.uint16]) -> NDArray[np.int64]:
        """int64[n]: which of the additions each is; beyond their end when it was dropped."""
        age = number - np.uint16(self._first & 0xFFFF)
        return age.astype(np.int64)

    def _found(self, pfn: Pfns, since: float) -> Iterator[tuple[_Table, Rows, Rows]]:
        """For each table its rows of frames that were moved at or after `since`, and where in
        `pfn` those are."""
        good = np.append(self._times() >= since, False)
        open_ = np.arange(len(pfn))
        for table in self._tables():
            row, found = table.lookup(pfn[open_])
            at, row, open_ = open_[found], row[found], open_[~found]
            since_then = good[np.minimum(self._age(table.number[row]), len(good) - 1)]
            yield table, row[since_then], at[since_then]

    def _let_go(self, table: _Table, row: Rows) -> None:
        """These folios are moved on or accounted for."""
        self._discount(table.number[row], _pages(table.size[row]))
        table.size[row] |= _LEFT

    def _discount(self, number: NDArray[np.uint16], pages: NDArray[np.int64]) -> None:
        age = self._age(number)
        known = age < len(self._additions)
        self.pages -= int(pages[known].sum())
        less = np.bincount(age[known], pages[known], len(self._additions)).astype(np.int64)
        for at in np.flatnonzero(less).tolist():
            self._additions[at].pages -= int(less[at])

    def _drop_oldest(self) -> None:
        gone = self._additions.popleft()
        self._first += 1
        self._size -= gone.rows
        self.pages -= gone.pages

    def _merge(self) -> None:
        """Sort all tables into one, without what was dropped."""
        tables = self._tables()
        pfn = np.concatenate([table.pfn for table in tables])
        number = np.concatenate([table.number for table in tables])
        order = np.argsort(pfn, kind="stable")  # of equal frames the newest entry comes first
        order = order[self._age(number[order]) < len(self._additions)]
        pfn, number = pfn[order], number[order]
        owner = np.concatenate([table.owner for table in tables])[order]
        size = np.concatenate([table.size for table in tables])[order]
        last = np.ones(len(pfn), np.bool_)
        last[1:] = pfn[1:] != pfn[:-1]
        again = ~last
        if again.any():
            self._discount(number[again], _pages(size[again]))
            fewer = np.bincount(self._age(number[again]), minlength=len(self._additions))
            self._size -= int(fewer.sum())
            for at in np.flatnonzero(fewer).tolist():
                self._additions[at].rows -= int(fewer[at])
        self._old = _table(pfn[last], number[last], owner[last], size[last])
        self._young.clear()
