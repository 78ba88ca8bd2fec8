# SPDX-License-Identifier: Apache-2.0
"""Which 2 MiB blocks are looked at next: `Chooser`.

Three streams share the budget of a call:

- *active* blocks, where some pages are accessed and some not or where something has changed:
  looked at in full, again and again, until they are calm;
- the *sweep*: a few frames of every other block in turn, so that what becomes hot is found. It
  goes over all memory in `STRIDE` passes, each with every `STRIDE`-th block, and where it meets
  something new it looks around: a hot set that is not scattered is found in a pass or two;
- the *refresh*: every block in full in turn, for exact evidence about calm ones too.

Where the budget covers every frame of the machine there is only the refresh. Where it is hardly
more than a look costs whatever its size, full looks and sparse ones take turns (`Streams`): two
looks that are half as large would see much less than one.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Flag, auto
from typing import Final

import numpy as np

from tierd.host import Host
from tierd.samplers.idle_active import Active, just_hot
from tierd.samplers.idle_blocks import IDLE, Blocks, BlockTable, Bools
from tierd.samplers.idle_cost import UNIT_PEEK, UNIT_WORD, Costs
from tierd.samplers.idle_looks import BLOCK, EMPTY
from tierd.samplers.idle_marks import Choice
from tierd.samplers.idle_sums import Sums
from tierd.samplers.rounds import STRIDE, Round, in_turn
from tierd.sets import unique

ACTIVE_SHARE: Final = 0.5
FILLING_SHARE: Final = 0.25
SWEEP_SHARE: Final = 0.35
"""Of the budget: for active blocks, for those where memory has just been filled, for the sweep.
The refresh has the rest, and what one leaves over goes to the others."""
SWEEP_MOST: Final = 0.75
"""Of what the active blocks leave, the sweep has this much where its round takes longer than
`ROUND_GOAL` otherwise: on a large host the refresh comes round once in hours anyway."""
ROUND_GOAL: Final = 60.0
"""Seconds."""
WORTH_AGAIN: Final = 0.25
"""Of the budget: what is left over is spent on more active blocks if it is more than this, else it
is saved."""
CROWD: Final = 2.0
"""Times what the sweep may use in a call: with active blocks for longer looks than that the sweep
looks at a few of their frames as well."""
AROUND_SHARE: Final = 0.3
"""Of the sweep's part: for second looks at huge pages, then for blocks around those that have
become hot."""
_AROUND: Final = np.array([at for at in range(-STRIDE // 2, STRIDE // 2 + 1) if at])
MOST_AROUND: Final = 16_384
"""Blocks of each of these kinds that may wait for being looked at out of turn."""

PEEKS: Final = 32
SELDOM: Final = 8
"""With more empty blocks than `PEEKS` only every so many-th of them (at most every `SELDOM`-th) is
peeked at in a call: a peek tells little and costs a call to the kernel."""

FILLED: Final = 16 * 2**20
FILLED_SHARE: Final = 1 / 256
"""Free memory taken since the last time, in bytes and as a share of all, after which every empty
block is peeked at in a round of the sweep."""
RECENT: Final = 16
"""Calls after that in which an eighth as much is enough: what is taken last must not be missed.
After an eighth (2 MiB, or 1/2048 of all memory) was taken or given back between two calls, as many
calls in which frames of blocks that have just become hot are asked for: a program that ends while
another begins looks like that."""

SLICE: Final = 4096
"""Blocks of which a stream chooses at once."""
SLICES: Final = 256
"""Most slices of a stream in one call, so that choosing stays cheap on the largest host."""


class Streams(Flag):
    """What is chosen from at once."""

    FULL = auto()
    """Active blocks and the refresh."""
    SPARSE = auto()
    """The sweep, and what is looked at out of turn."""
    ALL = FULL | SPARSE


class Chooser:
    """Chooses blocks for looks, and takes them (`BlockTable.take`). Not thread-safe."""

    def __init__(
        self,
        host: Host,
        table: BlockTable,
        costs: Costs,
        sums: Sums,
        active: Active,
        note: Callable[[Blocks], None],
    ) -> None:
        """note: told of blocks that would have had their turn, but are looked at anyway."""
        self._host = host
        self._table = table
        self._costs = costs
        self._sums = sums
        self._active = active
        self._note = note
        self._around: Blocks = np.zeros(0, np.int64)
        self._second: Blocks = np.zeros(0, np.int64)
        self._turn = {"sweep": 0, "refresh": 0}
        self._free = 0
        self._free_then = 0
        self._watched = 0
        """The last call in which free memory was looked at."""
        self._filled_at = self._reused_at = -RECENT
        self._filling = 0
        """Blocks that the sweep has still to pass until all that were empty have been peeked at."""
        self.round = Round(table.count, host.monotonic())

    def choose(
        self,
        turn: int,
        capacity: float,
        gap: float,
        streams: Streams = Streams.ALL,
        *,
        hurry: bool,
    ) -> list[Choice]:
        """Blocks worth `capacity` units. turn: the number of the present call; gap: seconds
        between two. hurry: keep what waits for a second look apart, as the window is long."""
        now = self._host.monotonic()
        if self._sums.units <= capacity:
            chosen, passed = self.next("refresh", capacity, turn)
            chosen = np.sort(chosen)  # it begins anywhere
            self.round.passed(passed, now)
            self._filling = max(self._filling - passed, 0)
            return [Choice(chosen, sparse=False, fair=chosen)]
        active = refresh = around = sweep = np.zeros(0, np.int64)
        left = capacity
        if Streams.FULL in streams:
            # Memory that has just been filled comes first: the other has been looked at before.
            part = FILLING_SHARE if self.filling else ACTIVE_SHARE
            active = self._active.choose(turn, capacity * part)
            left -= float(self._costs.full_units(active).sum())
            # The refresh chooses first: blocks that it takes need no sparse look.
            kept = left * SWEEP_MOST if self.filling else self._for_sweep(capacity, left, gap)
            kept = kept if Streams.SPARSE in streams else 0.0
            refresh, _ = self.next("refresh", left - kept, turn)
            left -= float(self._costs.full_units(refresh).sum())
        if Streams.SPARSE in streams:
            around = self.next_around(left * AROUND_SHARE)
            left -= float(self._costs.word_units(around).sum())
            sweep, passed = self.next("sweep", left, turn, alone=streams is Streams.SPARSE)
            self.round.passed(passed, now)
            left -= float(self._costs.word_units(sweep).sum())
        if Streams.FULL in streams and left >= max(BLOCK, capacity * WORTH_AGAIN):
            active = np.concatenate((active, self._active.choose(turn, left)))
        soon = just_hot(self._table, active) & hurry
        return [
            Choice(np.sort(active[soon]), sparse=False, urgent=True),
            Choice(np.sort(np.concatenate((active[~soon], refresh))), sparse=False),
            Choice(np.sort(np.concatenate((around, sweep))), sparse=True, fair=np.sort(sweep)),
        ]

    @property
    def filling(self) -> bool:
        """Empty blocks have filled, and have not all been peeked at since."""
        return self._filling > 0

    def look_around(self, blocks: Blocks) -> None:
        """Something has become hot in these blocks: look at their neighbours out of turn."""
        if len(blocks):
            near = unique((blocks[:, None] + _AROUND).reshape(-1))
            near = near[(near >= 0) & (near < self._table.count)]
            near = near[self._table.share(near) <= IDLE]
            self._around = np.concatenate((self._around, near))[-MOST_AROUND:]

    @property
    def room(self) -> int:
        """Blocks for which there is room in `look_twice`."""
        return MOST_AROUND - len(self._second)

    def look_twice(self, blocks: Blocks) -> None:
        """Look at these again out of turn, before what is around others."""
        if len(blocks):
            self._second = np.concatenate((self._second, blocks))

    def next(
        self, stream: str, capacity: float, turn: int, *, alone: bool = False
    ) -> tuple[Blocks, int]:
        """The next blocks of the "sweep" or the "refresh" worth at most `capacity` units, and how
        many blocks had their turn. alone: no full looks begin in the same call."""
        table, sweeping = self._table, stream == "sweep"
        # So many wait for a full look that a few of their frames had better be looked at first.
        crowded = alone or len(self._active) * BLOCK > CROWD * capacity
        cost = self._costs.word_units if sweeping else self._costs.full_units
        chosen: list[Blocks] = []
        count, passed = table.count, 0
        for _ in range(SLICES):
            if passed >= count or capacity < UNIT_PEEK:
                break
            at = self._turn[stream]
            end = min(at + SLICE, count, at + count - passed)
            window = in_turn(count, at, end) if sweeping else np.arange(at, end)
            skip = table.busy(window)
            if sweeping and not crowded:
                skip |= table.listed(window)
            free = np.flatnonzero(~(skip | self._rests(window, turn)))
            total = np.cumsum(cost(window[free]))
            fit = int(np.searchsorted(total, capacity, side="right"))
            chosen.append(window[free[:fit]])
            table.take(chosen[-1])
            reached = end if fit == len(free) else at + int(free[fit])
            passed += reached - at
            if sweeping:  # the others are looked at anyway, and count as well
                others = np.ones(reached - at, np.bool_)
                others[free[free < reached - at]] = False
                self._note(window[: reached - at][others])
            self._turn[stream] = reached % count
            if fit < len(free):
                break
            capacity -= float(total[-1]) if fit else 0.0
        if sweeping:
            self._filling = max(self._filling - passed, 0)
        return np.concatenate(chosen) if chosen else np.zeros(0, np.int64), passed

    def _rests(self, blocks: Blocks, turn: int) -> Bools:
        """bool[n]: empty blocks that are not peeked at this time."""
        pause = 1 if self._filling else min(max(self._sums.empties // PEEKS, 1), SELDOM)
        # Blocks of one pass are a multiple of STRIDE apart.
        at = blocks // STRIDE + blocks + turn
        rests: Bools = (at % pause != 0) & (self._table.kind(blocks) == EMPTY)
        return rests

    def watch_free(self, turn: int) -> None:
        """Before it is asked what is `filling`, and whether to be `wary`: where much free memory
        was taken, empty blocks have filled; where much was given back, too, blocks hold other data
        than before."""
        if turn == self._watched:
            return
        memory = self._host.node_memory()
        free = sum(node.free for node in memory)
        much = max(FILLED, FILLED_SHARE * sum(node.total for node in memory))
        if self._free - free >= (much / 8 if turn - self._filled_at <= RECENT else much):
            self._filling = self._table.count
            self._free, self._filled_at = free, turn
        self._free = max(self._free, free)
        if self._watched and abs(free - self._free_then) >= much / 8:
            self._reused_at = turn
        self._free_then, self._watched = free, turn

    @property
    def wary(self) -> bool:
        """Whether memory of one program may have become another's a moment ago."""
        return self._watched - self._reused_at <= RECENT

    def _for_sweep(self, capacity: float, left: float, gap: float) -> float:
        """Units that the refresh has to leave for the sweep."""
        whole = UNIT_WORD * self._costs.dearer * self._table.count
        share = capacity * SWEEP_SHARE
        if whole * gap > share * ROUND_GOAL:
            share = max(share, left * SWEEP_MOST)
        return min(share, whole)

    def next_around(self, capacity: float) -> Blocks:
        """Blocks that wait for being looked at out of turn, worth at most `capacity`."""
        twice = _once(self._second)
        twice = twice[~self._table.busy(twice)]
        chosen, self._second = self._afford(twice, capacity)
        if not len(self._around):
            return chosen
        capacity -= float(self._costs.word_units(chosen).sum())
        near = _once(self._around[::-1])
        near = near[~(self._table.busy(near) | self._table.listed(near))]
        around, left = self._afford(near, capacity)
        self._around = left[::-1]
        return np.concatenate((chosen, around))

    def _afford(self, blocks: Blocks, capacity: float) -> tuple[Blocks, Blocks]:
        """The first of some blocks, taken for a sparse look, and those beyond `capacity` units."""
        cost = np.cumsum(self._costs.word_units(blocks))
        count = int(np.searchsorted(cost, capacity, side="right"))
        self._table.take(blocks[:count])
        return blocks[:count], blocks[count:]


def _once(blocks: Blocks) -> Blocks:
    """Each where it is first."""
    return blocks[np.sort(np.unique(blocks, return_index=True)[1])]
