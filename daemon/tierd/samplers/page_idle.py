# SPDX-License-Identifier: Apache-2.0
"""The idle bitmap as a source of hot and cold evidence, inside a CPU budget.

Three streams share the budget of a call:

- *active* blocks, where some pages are accessed and some not or where something has changed:
  looked at in full, again and again, until they are calm;
- the *sweep*: a few frames of every other block in turn, so that what becomes hot is found. It
  goes over all memory in `STRIDE` passes, each with every `STRIDE`-th block, and where it meets
  something new it looks around: a hot set that is not scattered is found in a pass or two;
- the *refresh*: every block in full in turn, for exact evidence about calm ones too.

Where the budget covers every frame of the machine there is only the refresh. The window, which
is the time between marking a frame idle and reading it, is tuned apart from all that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.config import Sampling
from tierd.host import Host, Pfns
from tierd.samplers import SampleBatch, SamplerStatus
from tierd.samplers.idle_active import PLAIN, SURE, Active
from tierd.samplers.idle_blocks import Blocks, BlockTable
from tierd.samplers.idle_cost import UNIT_BLOCK, UNIT_PEEK, UNIT_WORD, Costs, full_units
from tierd.samplers.idle_looks import (
    BLOCK,
    EMPTY,
    HUGE,
    MIXED,
    SMALL,
    UNKNOWN,
    USED,
    Known,
    Seen,
    mark_full,
    occupied,
    read_full,
    read_words,
)
from tierd.samplers.idle_window import WindowTuner
from tierd.samplers.rounds import STRIDE, Round, in_turn
from tierd.topology import Topology

GROUP_FULL: Final = 64
"""Blocks of one full look: 32,768 frames, one call of the bitmap and one SampleBatch."""
GROUP_WORDS: Final = 1024
"""Blocks of one sparse look."""

CALM: Final = 3
"""Looks in a row that must tell the same before a block counts as calm."""
DIFFERENT: Final = 32
"""Of 255: so much must the accessed share differ to count as a change."""
IDLE: Final = 8
HOT: Final = 247
"""Accessed shares (of 255) up to and from which a block counts as idle or hot as a whole."""
VERIFY_EVERY: Final = 4
"""Looks after which a known layout is checked although nothing speaks against it."""

ACTIVE_SHARE: Final = 0.5
FILLING_SHARE: Final = 0.1
SWEEP_SHARE: Final = 0.35
"""Of the budget; the refresh has the rest, and what one leaves over goes to the others."""
SWEEP_MOST: Final = 0.75
"""Of what the active blocks leave, the sweep has this much where its round takes longer than
`ROUND_GOAL` otherwise: on a large host the refresh comes round once in hours anyway."""
ROUND_GOAL: Final = 60.0
"""Seconds."""
CROWD: Final = 2.0
"""Times what the sweep may use in a call."""
AROUND_SHARE: Final = 0.3
"""Of the sweep's part: for blocks around those that have become hot."""
_AROUND: Final = np.array([at for at in range(-STRIDE // 2, STRIDE // 2 + 1) if at])
MOST_AROUND: Final = 16_384
"""Blocks that may wait for being looked at out of turn."""

GLANCE: Final = 0.5
"""Seconds that the first call may wait for a first glance."""

PEEKS: Final = 32
SELDOM: Final = 32
"""With more empty blocks than `PEEKS` only every so many-th of them (at most every `SELDOM`-th) is
peeked at in a call: a peek tells little and costs a call to the kernel."""

FILLED: Final = 16 * 2**20
FILLED_SHARE: Final = 1 / 256
"""Free memory taken since the last time, in bytes and as a share of all, after which every empty
block is peeked at in a round of the sweep."""

SLICE: Final = 4096
"""Blocks of which a stream chooses at once."""
SLICES: Final = 256
"""Most slices of a stream in one call, so that choosing stays cheap on the largest host."""

_EIGHT: Final = np.uint64(0x0101010101010101)

FIRST_PART: Final = 0.2
"""Of the first call's budget: for learning what looks cost."""

WORTH: Final = 1.5
"""Times what looks cost whatever their size: less is not worth beginning any, and is saved up."""
SCARCE: Final = 3.0
"""Times that again: with less a call begins second looks or looks of all kinds, not both."""
CREDIT: Final = 4.0
"""Calls' worth of the CPU share that second looks may owe."""
MOST_URGENT: Final = 3
"""Calls on credit until there is enough for looks of all kinds again."""
MOST_SAVED: Final = 3
"""Calls in a row that begin no look for that."""


@dataclass(frozen=True, slots=True)
class _Look:
    """Blocks marked together. words and masks are None for a look at all frames.

    fair: those blocks (sorted) that came in turn, so that they are a fair sample of all of them.
    cpu: seconds that marking took. urgent: read in the next call, however long the window is.
    """

    blocks: Blocks
    words: NDArray[np.uint8] | None
    masks: NDArray[np.uint64] | None
    marked: float
    fair: Blocks
    cpu: float
    urgent: bool


class PageIdleSampler:
    """`tierd.samplers.Sampler` over the idle bitmap. Not thread-safe, but may use threads.

    State: 2 bytes per 2 MiB block, 5 where it is a mixture of folios, and 1 MiB of lists.
    """

    name = "page_idle"

    def __init__(self, host: Host, topology: Topology, sampling: Sampling) -> None:
        self._host = host
        self._table = BlockTable(topology.spans, topology.tiers[0].nodes)
        count = self._table.count
        self._active = Active(self._table)
        self._around: Blocks = np.zeros(0, np.int64)
        self._turn = {"sweep": 0, "refresh": 0}
        self._flight: list[_Look] = []
        self._users = 0
        self._known = 0
        self._empties = 0
        self._accessed = {True: 0.0, False: 0.0}
        self._units = count * (BLOCK + UNIT_BLOCK)
        fast = sum(topology.frames_of(node) for node in topology.tiers[0].nodes)
        self._tuner = WindowTuner(sampling.window.min, sampling.window.max, fast)
        self._costs = Costs(self._table)
        self._share = sampling.cpu
        self._choosing = 0.0
        self._saved = 0
        self._urgent = 0
        self._confirmed = 0
        self._free: dict[int, int] = {}
        self._filling = 0
        self._pass = 0
        self._last_call: float | None = None
        self._gap = 0.0
        self._round = Round(count, host.monotonic())
        self._threads = sampling.threads
        self._pool = ThreadPoolExecutor(self._threads, "page_idle") if self._threads > 1 else None

    # -- the Protocol --------------------------------------------------------------------------

    def sample(self, cpu_budget: float) -> Iterator[SampleBatch]:
        """Read what is due, then mark the next blocks; see `tierd.samplers.Sampler`.

        With a window much shorter than the time between calls, marking, waiting and reading
        all happen within the call.
        """
        self._pass += 1
        self._confirmed = 0
        first = self._last_call is None and self._tuner.least <= GLANCE
        self._note_call()
        window = self._tuner.window
        spent = yield from self._harvest(window - self._gap / 2)
        # Nothing is known of the costs at first: learn them by a small part of the budget.
        spent += self._begin((cpu_budget - spent) * (FIRST_PART if first else 1.0))
        if self._flight and (first or window < self._gap / 2):
            # At the start a glance shows which blocks deserve the first full looks.
            self._host.sleep(self._tuner.least if first else window)
            spent += yield from self._harvest(0.0)
        if first:
            self._begin(cpu_budget - spent)
        self._tuner.step(self._host.monotonic(), self._gap, self._users)

    def status(self) -> SamplerStatus:
        """The window in force, and how the last full round over all blocks went."""
        coverage, seconds = self._round.status(self._host.monotonic(), self._known)
        fast, slow = self._accessed[True], self._accessed[False]
        share = fast / (fast + slow) if fast + slow >= 1 else None
        window = self._tuner.effective(self._gap)
        # A round's wait at most for the first look, then the wait for a second one.
        find = seconds + 2 * window + self._active.wait * self._gap
        return SamplerStatus(self.name, window, coverage, seconds, share, find, self._confirmed)

    def forget(self, pfn: Pfns) -> None:
        """Free frames read as accessed: their blocks are not taken for wholly used any more."""
        table = self._table
        blocks, gone = table.holding(pfn)
        whole = table.kind(blocks) == SMALL
        blocks, left = blocks[whole], (BLOCK - gone[whole]).astype(np.uint16)
        self._count(blocks, -1)
        table.learn(blocks, np.where(left, MIXED, USED).astype(np.uint8), table.share(blocks))
        table.learn_layout(blocks, left, left)
        self._count(blocks, +1)

    def close(self) -> None:
        """Stop the threads. Idle flags that are left do no harm: the next access clears them."""
        if self._pool is not None:
            self._pool.shutdown()

    def _note_call(self) -> None:
        now = self._host.monotonic()
        if self._last_call is not None:
            gap = now - self._last_call
            self._gap = 0.7 * self._gap + 0.3 * gap if self._gap else gap
        self._last_call = now

    # -- reading -------------------------------------------------------------------------------

    def _harvest(self, window: float) -> Generator[SampleBatch, None, float]:
        """Read every look marked at least `window` seconds ago; returns CPU seconds spent."""
        now = self._host.monotonic()
        # What was hot a moment ago need not be so for a whole window to be known for it.
        soon = min(window, self._gap / 2)
        ready = [now - each.marked >= (soon if each.urgent else window) for each in self._flight]
        due = [look for look, now in zip(self._flight, ready, strict=True) if now]
        self._flight = [look for look, now in zip(self._flight, ready, strict=True) if not now]
        spent = 0.0
        try:
            while due:
                part = due[: self._threads]
                before = self._host.cpu_times()
                seen = list(self._map(self._read, part))
                now = self._host.monotonic()
                told = zip(part, seen, strict=True)
                batches = [self._apply(look, each, now) for look, each in told]
                due = due[self._threads :]
                yield from (batch for batch in batches if len(batch.pfn))
                # What the caller makes of the batches is part of what looks cost.
                used = (self._host.cpu_times() - before).total
                self._learn(part, seen, used)
                spent += used
        finally:
            self._flight += due  # the caller left, or the kernel refused: read them next time
        return spent

    def _map(self, work: Callable[[_Look], Seen], looks: list[_Look]) -> Iterator[Seen]:
        return map(work, looks) if self._pool is None else self._pool.map(work, looks)

    def _read(self, look: _Look) -> Seen:
        """Only reads the state, so that threads may do it side by side."""
        blocks, table = look.blocks, self._table
        starts, kind = table.first(blocks), table.kind(blocks)
        if look.words is not None and look.masks is not None:
            return read_words(self._host, starts, look.words, look.masks, kind)
        share = table.share(blocks).astype(np.uint16)
        check = table.calm(blocks) % VERIFY_EVERY == VERIFY_EVERY - 1
        trust = np.where(check | (share == 0), 0, np.minimum((share + DIFFERENT) * 2, BLOCK))
        heads, user = table.heads(blocks), table.pages(blocks)
        known = Known(kind, heads, user, trust.astype(np.uint16), check)
        return read_full(self._host, starts, known)

    def _apply(self, look: _Look, seen: Seen, now: float) -> SampleBatch:
        """Take over what a look told about its blocks."""
        blocks, table = look.blocks, self._table
        self._count(blocks, -1)
        before, kind = table.share(blocks).astype(np.int16), table.kind(blocks)
        share = seen.share.astype(np.int16)
        if look.words is None:
            changed = np.abs(share - before) > DIFFERENT
            mixture = seen.kind == MIXED
            table.learn_layout(blocks[mixture], seen.heads[mixture], seen.user[mixture])
        else:
            # A few frames cannot tell one mixed share from another, but they can tell that a
            # block is no longer wholly idle or wholly hot.
            risen = (before <= IDLE) & (share > 0)
            changed = risen | ((before >= HOT) & (share < HOT))
            fresh = (kind == UNKNOWN) | (kind == USED)
            share = np.where(changed | fresh, share, before)
            # Neighbours of a block that is hot by the most of it are looked at, too.
            # One frame of a small page in eight is chance; so is a huge page that is accessed
            # now and then, unless it has been idle for long.
            small = (kind != HUGE) & (seen.kind != HUGE) & (share >= PLAIN)
            self._look_around(blocks[risen & (small | (table.calm(blocks) >= CALM))])
        table.learn(blocks, seen.kind, share.astype(np.uint8))
        calm = table.settle(blocks, changed)
        if look.urgent:
            self._confirmed += int(np.count_nonzero((share >= PLAIN) & (calm >= SURE)))
        mixed = (share > IDLE) & (share < HOT)
        active = (seen.kind != EMPTY) & (mixed | changed | ((share >= HOT) & (calm < CALM)))
        # Of a huge page the sweep sees all there is: a second and a third look when it is hot.
        active &= (seen.kind != HUGE) | ((share >= HOT) & (calm < SURE))
        table.release(blocks)
        self._active.add(blocks[active], self._pass)
        self._count(blocks, +1)
        if len(look.fair):
            self._note(look.fair)
        self._round.looked(len(seen.pfn))
        return SampleBatch(self.name, seen.pfn, seen.weight, look.marked, now)

    def _look_around(self, blocks: Blocks) -> None:
        """Something has become hot in these blocks: look at their neighbours out of turn."""
        if len(blocks):
            near = np.unique((blocks[:, None] + _AROUND).reshape(-1))
            near = near[(near >= 0) & (near < self._table.count)]
            near = near[self._table.share(near) <= IDLE]
            self._around = np.concatenate((self._around, near))[-MOST_AROUND:]

    def _count(self, blocks: Blocks, sign: int) -> None:
        """Keep the sums over all blocks: take some out before they change, add them after."""
        table = self._table
        kind, heads, user = table.kind(blocks), table.heads(blocks), table.pages(blocks)
        self._units += sign * float(full_units(kind, heads).sum())
        self._users += sign * int(user.sum(dtype=np.int64))
        pages = user * (table.share(blocks) / 255)
        fast = float(pages[table.fast(blocks)].sum())
        self._accessed[True] += sign * fast
        self._accessed[False] += sign * (float(pages.sum()) - fast)
        self._empties += sign * int(np.count_nonzero(kind == EMPTY))
        known = (kind != UNKNOWN) & (kind != USED)
        self._known += sign * int(heads[known].sum(dtype=np.int64))

    def _note(self, blocks: Blocks) -> None:
        """Tell the tuner of the window about blocks that stand for all."""
        share = self._table.share(blocks)
        user = self._table.pages(blocks).astype(np.float64)
        mixed = (share > IDLE) & (share < HOT)
        pages = user * (share / 255)
        self._tuner.note(int(user.sum()), float(pages.sum()), float(pages[mixed].sum()))

    def _learn(self, looks: list[_Look], seen: list[Seen], used: float) -> None:
        """What marking and reading these looks and digesting what they told really took."""
        units = [
            (True, float(told.heads.sum(dtype=np.int64)) + UNIT_BLOCK * len(told.heads))
            if look.words is None
            else (False, self._costs.words(look.blocks))
            for look, told in zip(looks, seen, strict=True)
        ]
        self._costs.learn(units, used + sum(look.cpu for look in looks))

    # -- choosing and marking --------------------------------------------------------------------

    def _begin(self, allowed: float) -> float:
        """Begin looks that take `allowed` CPU seconds in all; returns what was spent on that now.

        What is hardly more than looks cost whatever their size is saved up for fewer, larger ones.
        """
        fixed = self._costs.looks + self._choosing
        capacity = max(allowed - fixed, allowed / (2 * WORTH)) / self._costs.full
        saving = allowed < WORTH * fixed and self._saved < MOST_SAVED
        # Looks of all kinds would have a place for only some of what waits for a second one.
        pressing = allowed < SCARCE * fixed and self._waits_urgently
        if saving or pressing or capacity < UNIT_PEEK:
            self._saved += allowed > 0  # a debt is paid back before anything is saved
            return self._begin_urgent(allowed)
        self._saved = self._urgent = 0
        before = self._host.cpu_times()
        flying = len(self._flight)
        self._choose(capacity)
        spent = (self._host.cpu_times() - before).total
        choosing = max(spent - sum(look.cpu for look in self._flight[flying:]), 0.0)
        self._choosing += (choosing - self._choosing) / 4
        return spent

    def _begin_urgent(self, allowed: float) -> float:
        """Look a second time at what has just become hot, on credit: within some calls it is saved
        again."""
        if not self._waits_urgently:
            return 0.0
        before = self._host.cpu_times()
        allowed += CREDIT * self._share * self._gap - self._costs.looks / 2
        units = min(self._active.urgent(), allowed / self._costs.full)
        if self._is_worth_a_look(units):
            chosen = self._active.choose(self._pass, units, urgent=True)
            self._mark(np.sort(chosen), None, fair=chosen[:0], urgent=True)
            self._urgent += 1
        return (self._host.cpu_times() - before).total

    @property
    def _waits_urgently(self) -> bool:
        """Something has just become hot, and others have had their turn lately as well."""
        return self._urgent < MOST_URGENT and self._is_worth_a_look(self._active.urgent())

    def _is_worth_a_look(self, units: float) -> bool:
        """A few blocks had better wait for the next looks of all kinds."""
        return units * self._costs.full > self._costs.looks / 4

    def _choose(self, capacity: float) -> None:
        """Choose blocks worth `capacity` units and mark them."""
        now = self._host.monotonic()
        self._watch_free()
        if self._units <= capacity:
            chosen, passed = self._next("refresh", capacity)
            chosen = np.sort(chosen)  # it begins anywhere
            self._round.passed(passed, now)
            self._filling = max(self._filling - passed, 0)
            self._mark(chosen, None, fair=chosen)
            return
        # Memory that has just been filled comes first: the other has been looked at before.
        filling = self._filling > 0
        part = FILLING_SHARE if filling else ACTIVE_SHARE
        active = self._active.choose(self._pass, capacity * part)
        left = capacity - float(self._costs.full_units(active).sum())
        # The refresh chooses first: blocks that it takes need no sparse look.
        kept = left if filling else self._for_sweep(capacity, left)
        refresh, _ = self._next("refresh", left - kept)
        left -= float(self._costs.full_units(refresh).sum())
        around = self._next_around(left * AROUND_SHARE)
        left -= float(self._costs.word_units(around).sum())
        sweep, passed = self._next("sweep", left)
        self._round.passed(passed, now)
        left -= float(self._costs.word_units(sweep).sum())
        if left >= max(BLOCK, capacity / 4):  # less is saved for later
            active = np.concatenate((active, self._active.choose(self._pass, left)))
        none = np.zeros(0, np.int64)
        if self._tuner.effective(self._gap) > self._gap:
            soon = self._active.is_urgent(active)
            self._mark(np.sort(active[soon]), None, fair=none, urgent=True)
            active = active[~soon]
        self._mark(np.sort(np.concatenate((active, refresh))), None, fair=none)
        self._mark(np.sort(np.concatenate((around, sweep))), self._pass, fair=np.sort(sweep))

    def _watch_free(self) -> None:
        """Where much free memory was taken, empty blocks have filled."""
        memory = self._host.node_memory()
        taken = sum(max(self._free.get(node.node, 0) - node.free, 0) for node in memory)
        if taken >= max(FILLED, FILLED_SHARE * sum(node.total for node in memory)):
            self._filling = self._table.count
            self._free.clear()
        self._free = {each.node: max(each.free, self._free.get(each.node, 0)) for each in memory}

    def _for_sweep(self, capacity: float, left: float) -> float:
        """Units that the refresh has to leave for the sweep."""
        whole = UNIT_WORD * self._costs.dearer * self._table.count
        share = capacity * SWEEP_SHARE
        if whole * self._gap > share * ROUND_GOAL:
            share = max(share, left * SWEEP_MOST)
        return min(share, whole)

    def _next_around(self, capacity: float) -> Blocks:
        """Blocks that wait for being looked at out of turn, worth at most `capacity`."""
        if not len(self._around):
            return self._around
        newest = self._around[::-1]
        waiting = newest[np.sort(np.unique(newest, return_index=True)[1])]
        waiting = waiting[~(self._table.busy(waiting) | self._table.listed(waiting))]
        cost = np.cumsum(self._costs.word_units(waiting))
        count = int(np.searchsorted(cost, capacity, side="right"))
        chosen, self._around = waiting[:count], waiting[count:][::-1]
        self._table.take(chosen)
        return chosen

    def _next(self, stream: str, capacity: float) -> tuple[Blocks, int]:
        """The next blocks in turn worth at most `capacity` units, and how many were passed."""
        table, sweeping = self._table, stream == "sweep"
        # So many wait for a full look that a few of their frames had better be looked at first.
        crowded = len(self._active) * BLOCK > CROWD * capacity
        cost = self._costs.word_units if sweeping else self._costs.full_units
        chosen: list[Blocks] = []
        count, passed = table.count, 0
        pause = 1 if self._filling else min(max(self._empties // PEEKS, 1), SELDOM)
        for _ in range(SLICES):
            if passed >= count or capacity < UNIT_PEEK:
                break
            at = self._turn[stream]
            end = min(at + SLICE, count, at + count - passed)
            window = in_turn(count, at, end) if sweeping else np.arange(at, end)
            skip = table.busy(window)
            if sweeping and not crowded:
                skip |= table.listed(window)
            # Blocks of one pass are a multiple of STRIDE apart.
            turn = window // STRIDE + window + self._pass
            rests = (turn % pause != 0) & (table.kind(window) == EMPTY)
            free = np.flatnonzero(~(skip | rests))
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

    def _mark(
        self, blocks: Blocks, sparse: int | None, *, fair: Blocks, urgent: bool = False
    ) -> None:
        """Mark chosen blocks (sorted): `sparse` None in full, else in one word that it helps to
        choose. fair: those of them (sorted) that came in turn."""
        if not len(blocks):
            return
        kind = self._table.kind(blocks)
        filled = self._peek(blocks[kind == EMPTY])
        by_word = (kind == HUGE) | (sparse is not None)
        words, full = (blocks[each & (kind != EMPTY)] for each in (by_word, ~by_word))
        # What has filled gets the kind of look that its turn is for and paid for.
        if sparse is None:
            full = np.sort(np.concatenate((full, filled)))
        else:
            words = np.sort(np.concatenate((words, filled)))
        for at in range(0, len(full), GROUP_FULL):
            part = full[at : at + GROUP_FULL]
            before = self._host.cpu_times()
            mark_full(self._host, self._table.first(part))
            self._launch(part, None, None, fair, before.total, urgent)
        for at in range(0, len(words), GROUP_WORDS):
            part = words[at : at + GROUP_WORDS]
            before = self._host.cpu_times()
            word, mask = self._choose_words(part, sparse or 0)
            self._host.set_idle_words(self._table.first(part) + word * np.uint64(64), mask)
            self._launch(part, word.astype(np.uint8), mask, fair, before.total, urgent)

    def _launch(
        self,
        blocks: Blocks,
        words: NDArray[np.uint8] | None,
        masks: NDArray[np.uint64] | None,
        fair: Blocks,
        before: float,
        urgent: bool,
    ) -> None:
        cpu = self._host.cpu_times().total - before
        these = fair[slice(*np.searchsorted(fair, (blocks[0], blocks[-1] + 1)))]
        these = these[np.isin(these, blocks)]
        look = _Look(blocks, words, masks, self._host.monotonic(), these, cpu, urgent)
        self._flight.append(look)

    def _choose_words(
        self, blocks: Blocks, turn: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """A word of each block and the frames to mark in it: 8 of 64, other ones each time. Of a
        huge page its head alone; of a block with larger folios multiples of 8, where heads are;
        of one with few of them the whole word."""
        kind, heads = self._table.kind(blocks), self._table.heads(blocks)
        mixer = blocks.astype(np.uint64) * np.uint64(0x9E3779B1) + np.uint64(turn * 0x85EBCA6B)
        mixer ^= mixer >> np.uint64(15)
        word = mixer & np.uint64(7)
        mask = np.left_shift(_EIGHT, mixer >> np.uint64(3) & np.uint64(7))
        mask[(kind == USED) | ((kind == MIXED) & (heads < BLOCK // 2))] = _EIGHT
        mask[(kind == MIXED) & (heads < BLOCK // 8)] = np.uint64(2**64 - 1)
        first = (kind == HUGE) | (kind == UNKNOWN)
        word[first] = 0
        mask[kind == UNKNOWN] = _EIGHT
        mask[kind == HUGE] = np.uint64(1)
        return word, mask

    def _peek(self, empty: Blocks) -> Blocks:
        """Those of some empty blocks that have filled; the others are done with."""
        where = (empty * 37 + self._pass * 11) % (BLOCK // 8) * 8
        found = occupied(self._host, self._table.first(empty) + where.astype(np.uint64))
        filled = empty[found]
        self._table.release(empty[~found])
        if not len(filled):
            return filled
        self._count(filled, -1)
        unknown = np.full(len(filled), UNKNOWN, np.uint8)
        self._table.learn(filled, unknown, self._table.share(filled))
        self._count(filled, +1)
        return filled
