# SPDX-License-Identifier: Apache-2.0
"""`Active`: the 2 MiB blocks in motion, and which of them are looked at next."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.samplers.idle_blocks import IDLE, Blocks, BlockTable, Bools
from tierd.samplers.idle_cost import full_units
from tierd.samplers.idle_looks import HUGE

SURE: Final = 2
"""Looks in a row that must tell the same before a block has no precedence any more."""
PLAIN: Final = 128
"""Accessed share (of 255) from which a block is hot by the most of it."""
SLOW_SHARE: Final = 0.6
"""Of the active blocks' part: for those outside the fastest tier, which may be promoted."""
HUGE_SHARE: Final = 0.15
"""Of that part: for huge pages, the newest first."""
AGEING: Final = 3
"""What an active block's promise (0 to 255) grows by for every call that it waits."""
AGED: Final = 255
"""The most that it grows by: a host may have more active blocks than can ever be looked at."""
CHOICE: Final = 65_536
"""Active blocks among which the most promising are chosen at once."""
MOST_ACTIVE: Final = 2 * CHOICE
"""Blocks on the list of active ones."""
FADE: Final = 0.9
"""What is left per call of the counts that the wait for a second look is estimated from."""


def just_hot(table: BlockTable, blocks: Blocks) -> Bools:
    """bool[n]: outside the fastest tier, and most of it has just become hot: the second look
    decides."""
    hot = (table.share(blocks) >= PLAIN) & (table.calm(blocks) < SURE)
    slow: Bools = hot & ~table.fast(blocks) & (table.kind(blocks) != HUGE)
    return slow


class Active:
    """Blocks that are looked at in full again and again, at most `most`: the longest waiting
    first. A block that finds no room is found again by the sweep."""

    def __init__(self, table: BlockTable, most: int = MOST_ACTIVE) -> None:
        self._table = table
        self._most = most
        self._block = np.zeros(0, np.int32)
        self._since = np.zeros(0, np.uint32)
        self._new: list[tuple[Blocks, int]] = []
        self._count = 0
        self._urgent: float | None = None
        self._fresh = 0.0
        self._served = 0.0
        self._left = 0
        self._turn = 0

    def __len__(self) -> int:
        return self._count

    def add(self, blocks: Blocks, turn: int) -> None:
        """Put blocks on the list, each once; `turn` is the number of the present call."""
        self._urgent = None
        new = blocks[~self._table.listed(blocks)][: max(self._most - self._count, 0)]
        if len(new):
            self._table.list(new, True)
            self._new.append((new, turn))
            self._count += len(new)

    def front(self, count: int) -> tuple[Blocks, NDArray[np.int64]]:
        """Take the first `count` that are not being looked at off the list: blocks, and the
        turns in which they came onto it. The caller gives back what it does not use."""
        self._urgent = None
        self._gather()
        waiting = np.flatnonzero(~self._table.busy(self._block.astype(np.int64)))[:count]
        blocks = self._block[waiting].astype(np.int64)
        since = self._since[waiting].astype(np.int64)
        keep = np.ones(len(self._block), np.bool_)
        keep[waiting] = False
        self._block, self._since = self._block[keep], self._since[keep]
        self._count -= len(blocks)
        return blocks, since

    def give_back(self, blocks: Blocks, since: NDArray[np.int64]) -> None:
        """What `front` gave and was not used, behind all others."""
        self._block = np.concatenate((self._block, blocks.astype(np.int32)))
        self._since = np.concatenate((self._since, since.astype(np.uint32)))
        self._count += len(blocks)

    def urgent(self) -> float:
        """Units of a full look at the blocks that choose(urgent=True) chooses from; counted anew
        after looks were read or chosen."""
        if self._urgent is None:
            self._gather()
            blocks = self._block[:CHOICE].astype(np.int64)
            self._urgent = self._units(blocks[just_hot(self._table, blocks)])
        return self._urgent

    def changing(self) -> float:
        """Units of a full look at the blocks outside the fastest tier that are hot, if only in
        part, and told something else of late. Huge pages are not among them: they have second looks
        with the sparse ones."""
        table = self._table
        self._gather()
        blocks = self._block[:CHOICE].astype(np.int64)
        new = (table.share(blocks) > IDLE) & (table.calm(blocks) < SURE)
        return self._units(blocks[new & ~table.fast(blocks) & (table.kind(blocks) != HUGE)])

    def _units(self, blocks: Blocks) -> float:
        """Of a full look at those that are not being looked at."""
        blocks = blocks[~self._table.busy(blocks)]
        return float(full_units(self._table.kind(blocks), self._table.heads(blocks)).sum())

    def choose(self, turn: int, capacity: float, *, urgent: bool = False) -> Blocks:
        """The most promising blocks worth at most `capacity` units, taken off the list for a
        full look; `turn` is the number of the present call. urgent: only such blocks.

        Promising is what may have to move: the more accessed outside the fastest tier, the
        less accessed inside. Each block gains by waiting, so that all have their turn.
        """
        if not len(self):
            self._turn, self._left = turn, 0
            return np.zeros(0, np.int64)
        table = self._table
        front, since = self.front(CHOICE)
        quick = table.fast(front)
        huge = table.kind(front) == HUGE
        parts = [
            (~quick & huge, SLOW_SHARE * HUGE_SHARE),
            (~quick & ~huge, SLOW_SHARE),
            (quick, 1.0),
        ]
        if urgent:
            now = just_hot(table, front)
            parts = [(now, 1.0), (~now, 0.0)]
        fresh = front[~quick & (table.share(front) > 0) & (table.calm(front) < SURE)]
        taken: list[Blocks] = []
        spent = 0.0
        for side, share in parts:
            best, rest = self._promising(front[side], since[side], turn, capacity * share - spent)
            self.give_back(*rest)
            spent += float(full_units(table.kind(best), table.heads(best)).sum())
            taken.append(best)
        chosen = np.concatenate(taken)
        table.list(chosen, False)
        table.take(chosen)
        # A call may choose twice, and calls may pass without: what waits counts once for each, and
        # has grown evenly from what was left.
        calls, self._turn = turn - self._turn, turn
        if calls:
            waited = (calls * (len(fresh) + self._left) + len(fresh) - self._left) / 2
            self._fresh = FADE**calls * self._fresh + waited
            self._served *= FADE**calls
        served = int(np.count_nonzero(table.busy(fresh)))
        self._served += served
        self._left = len(fresh) - served
        return chosen

    def _promising(
        self, blocks: Blocks, since: NDArray[np.int64], turn: int, capacity: float
    ) -> tuple[Blocks, tuple[Blocks, NDArray[np.int64]]]:
        """The best of some blocks, worth at most `capacity`; and the others, with the turns
        in which they came onto the list."""
        table = self._table
        share = table.share(blocks).astype(np.int64)
        kind, fast = table.kind(blocks), table.fast(blocks)
        promise = np.where(fast, 255 - share, share)
        # What has just changed is looked at a second time before what is merely due.
        promise += promise * (table.calm(blocks) < SURE)
        promise += np.minimum(AGEING * (turn - since), AGED)
        # Of huge pages, which have one bit and are many, those that have become hot just now.
        promise = np.where(~fast & (kind == HUGE), since, promise)
        order = np.argsort(np.negative(promise), kind="stable")
        cost = np.cumsum(full_units(kind, table.heads(blocks))[order])
        count = int(np.searchsorted(cost, capacity, side="right"))
        rest = order[count:]
        return blocks[order[:count]], (blocks[rest], since[rest])

    @property
    def wait(self) -> float:
        """Calls that a block outside the fastest tier which has just become hot waits for its
        second look, on average: those that wait over those that are served in a call (Little)."""
        return self._fresh / self._served if self._served else self._fresh

    def _gather(self) -> None:
        blocks = [new.astype(np.int32) for new, _ in self._new]
        since = [np.full(len(new), turn, np.uint32) for new, turn in self._new]
        self._block = np.concatenate((self._block, *blocks))
        self._since = np.concatenate((self._since, *since))
        self._new.clear()
