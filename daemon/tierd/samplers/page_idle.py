# SPDX-License-Identifier: Apache-2.0
"""The idle bitmap as a source of hot and cold evidence, inside a CPU budget.

Blocks of 2 MiB are chosen (`idle_choice`), marked (`idle_marks`), left alone for a window, which is
tuned apart (`idle_window`), and read (`idle_looks`). Here it is decided what the budget is spent
on, and what a look told is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.config import Sampling
from tierd.host import Host, KernelError, Pfns
from tierd.samplers import SampleBatch, SamplerStatus
from tierd.samplers.idle_active import PLAIN, SURE, Active, just_hot
from tierd.samplers.idle_blocks import HOT, IDLE, Blocks, BlockTable, Bools
from tierd.samplers.idle_choice import AROUND_SHARE, Chooser, Streams
from tierd.samplers.idle_cost import UNIT_BLOCK, UNIT_PEEK, Costs
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
    read_full,
    read_words,
)
from tierd.samplers.idle_marks import GROUP_WORDS, Choice, Look, Marker
from tierd.samplers.idle_sums import Sums
from tierd.samplers.idle_window import WindowTuner
from tierd.samplers.idle_witness import FOLIOS, Witnesses, looked_at
from tierd.sets import unique
from tierd.topology import Topology

CALM: Final = 3
"""Looks in a row that must tell the same before a block counts as calm."""
DIFFERENT: Final = 32
"""Of 255: so much must the accessed share differ to count as a change."""
VERIFY_EVERY: Final = 4
"""Looks after which a known layout is checked although nothing speaks against it."""

GLANCE: Final = 0.5
"""Seconds that the first call may wait for a first glance."""
FIRST_PART: Final = 0.2
"""Of the first call's budget: for learning what looks cost."""

WORTH: Final = 1.5
"""Times what looks cost whatever their size: less is not worth beginning any, and is saved up."""
SCARCE: Final = 2.0
"""Times that again: where the share comes to less in a call, reading included, it begins second
looks or others, not both, and those are full or sparse ones by turns."""
FULL_TURN: Final = 4
REFRESH_TURN: Final = 8
"""Every so many-th of those turns is one of full looks: where blocks that are hot in part, and may
have to be promoted, have changed, and elsewhere."""
CREDIT: Final = 4.0
"""Calls' worth of the CPU share that second looks may owe."""
AGAIN: Final = 8
"""Blocks that were about to be filled when they were looked at; fewer wait for their turn in the
sweep."""
MOST_URGENT: Final = 3
"""Calls on credit until there is enough for looks of all kinds again."""
MOST_SAVED: Final = 3
"""Calls in a row that begin no look for that."""
LONG: Final = 1.2
"""Times the time between two calls: a window that is longer is not waited for by second looks."""


class PageIdleSampler:
    """`tierd.samplers.Sampler` over the idle bitmap. Not thread-safe, but may use threads.

    State: 2 bytes per 2 MiB block, 4 where it is a mixture of folios, and 1 MiB of lists.
    """

    name = "page_idle"

    def __init__(self, host: Host, topology: Topology, sampling: Sampling) -> None:
        self._host = host
        self._table = BlockTable(topology.spans, topology.tiers[0].nodes)
        self._active = Active(self._table)
        self._sums = Sums(self._table)
        self._flight: list[Look] = []
        fast = sum(topology.frames_of(node) for node in topology.tiers[0].nodes)
        self._tuner = WindowTuner(sampling.window.min, sampling.window.max, fast)
        self._costs = Costs(self._table)
        self._marker = Marker(host, self._table, self._sums)
        self._chooser = Chooser(
            host, self._table, self._costs, self._sums, self._active, self._note
        )
        self._share = sampling.cpu
        self._choosing = 0.0
        self._turns = 0
        self._saved = 0
        self._urgent = 0
        self._confirmed = 0
        self._witnesses = Witnesses()
        self._filled: Blocks = np.zeros(0, np.int64)
        self._call = 0
        self._last_call: float | None = None
        self._gap = 0.0
        self._threads = sampling.threads
        self._pool = ThreadPoolExecutor(self._threads, "page_idle") if self._threads > 1 else None

    # -- the Protocol --------------------------------------------------------------------------

    def sample(self, cpu_budget: float) -> Iterator[SampleBatch]:
        """Read what is due, then mark the next blocks; see `tierd.samplers.Sampler`.

        With a window much shorter than the time between calls, marking, waiting and reading
        all happen within the call.
        """
        self._call += 1
        self._confirmed = 0
        first = self._last_call is None and self._tuner.least <= GLANCE
        self._note_call()
        window = self._tuner.window
        spent = yield from self._harvest(window - self._gap / 2)
        spent += self._look_again(cpu_budget - spent)
        # Nothing is known of the costs at first: learn them by a small part of the budget.
        spent += self._begin((cpu_budget - spent) * (FIRST_PART if first else 1.0))
        if self._flight and (first or window < self._gap / 2):
            # At the start a glance shows which blocks deserve the first full looks.
            self._host.sleep(self._tuner.least if first else window)
            spent += yield from self._harvest(0.0)
        if first:
            self._begin(cpu_budget - spent)
        now = self._host.monotonic()
        self._tuner.step(now, self._gap, self._sums.users, found=self._confirmed > 0)

    def status(self) -> SamplerStatus:
        """The window in force, and how the last full round over all blocks went."""
        known, share = self._sums.known, self._sums.fast_share
        coverage, seconds = self._chooser.round.status(self._host.monotonic(), known)
        window = self._tuner.effective(self._gap)
        # A round's wait at most for the first look, then the wait for a second one.
        find = seconds + 2 * window + self._active.wait * self._gap
        return SamplerStatus(self.name, window, coverage, seconds, share, find, self._confirmed)

    def forget(self, pfn: Pfns) -> None:
        """Free frames read as accessed: their blocks are not taken for wholly used any more."""
        table = self._table
        blocks, gone = table.holding(pfn)
        self._witnesses.drop(blocks)
        whole = table.kind(blocks) == SMALL
        blocks, left = blocks[whole], (BLOCK - gone[whole]).astype(np.uint16)
        with self._sums.changing(blocks):
            table.learn(blocks, np.where(left, MIXED, USED).astype(np.uint8), table.share(blocks))
            table.learn_layout(blocks, left, left)

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
        """Read every look marked at least `window` seconds ago, judged when its turn comes: it was
        marked after those before it, too. Returns CPU seconds spent."""
        spent = 0.0
        while part := self._due(window):
            before = self._host.cpu_times()
            seen = list(self._map(self._read, part))
            now = self._host.monotonic()
            told = zip(part, seen, strict=True)
            batches = [batch for look, each in told for batch in self._apply(look, each, now)]
            self._flight = [look for look in self._flight if all(look is not each for each in part)]
            yield from (batch for batch in batches if len(batch.pfn) or len(batch.gone))
            # What the caller makes of the batches is part of what looks cost.
            used = (self._host.cpu_times() - before).total
            self._learn(part, seen, used)
            spent += used
        return spent

    def _due(self, window: float) -> list[Look]:
        """The next looks to be read side by side."""
        now = self._host.monotonic()
        # What was hot a moment ago need not be so for a whole window to be known for it.
        soon = min(window, self._gap / 2)
        due = (
            look for look in self._flight if now - look.marked >= (soon if look.urgent else window)
        )
        return list(islice(due, self._threads))

    def _map(self, work: Callable[[Look], Seen], looks: list[Look]) -> Iterator[Seen]:
        return map(work, looks) if self._pool is None else self._pool.map(work, looks)

    def _read(self, look: Look) -> Seen:
        """Only reads the state, so that threads may do it side by side."""
        blocks, table = look.blocks, self._table
        starts, kind = table.first(blocks), table.kind(blocks)
        share = table.share(blocks).astype(np.uint16)
        check = table.calm(blocks) % VERIFY_EVERY == VERIFY_EVERY - 1
        if look.words is not None and look.masks is not None:
            # What was idle and reads as accessed has become hot or free.
            check |= share <= IDLE
            return read_words(self._host, starts, look.words, look.masks, kind, check)
        trust = np.where(check | (share == 0), 0, np.minimum((share + DIFFERENT) * 2, BLOCK))
        heads, user = table.heads(blocks), table.pages(blocks)
        known = Known(kind, heads, user, trust.astype(np.uint16), check)
        return read_full(self._host, starts, known, look.masks)

    def _apply(self, look: Look, seen: Seen, now: float) -> Iterator[SampleBatch]:
        """Take over what a look told about its blocks."""
        blocks, table = look.blocks, self._table
        twice = np.zeros(len(blocks), np.bool_)
        before = seen.pfn[:0]
        if look.words is None:
            twice, before = self._witnesses.confirm(blocks, table.first(blocks), seen, self._call)
            twice &= ~table.fast(blocks) & (seen.share >= PLAIN)
        blind, twice_again = self._second_looks(look, seen)
        with self._sums.changing(blocks):
            share, changed = self._compare(look, seen)
            changed[twice] = False
            if look.words is None:
                mixture = seen.kind == MIXED
                table.learn_layout(blocks[mixture], seen.heads[mixture], seen.user[mixture])
            # A peek found it in use a moment ago, if not in that word.
            kind = np.where(look.filled & (seen.kind == EMPTY), USED, seen.kind).astype(np.uint8)
            table.learn(blocks, kind, share.astype(np.uint8))
        new = just_hot(table, blocks)
        table.settle(blocks[twice], np.zeros(int(np.count_nonzero(twice)), np.bool_))
        # A few frames do not tell that a block which waits for a full look is the same.
        told = changed | (look.words is None) | ~(table.listed(blocks) | blind)
        table.settle(blocks[told], changed[told])
        calm = table.calm(blocks)
        if look.words is None:
            sure = new & (share >= PLAIN) & (calm >= SURE)
            self._confirmed += int(np.count_nonzero(sure | twice))
        mixed = (share > IDLE) & (share < HOT)
        active = (kind != EMPTY) & (mixed | changed | ((share >= HOT) & (calm < CALM)))
        # Of a huge page the sweep sees all there is: further looks when it is hot, the second out
        # of turn.
        active &= (seen.kind != HUGE) | ((share >= HOT) & (calm < SURE))
        active &= ~twice_again
        table.release(blocks)
        self._chooser.look_twice(blocks[twice_again])
        self._active.add(blocks[active], self._call)
        if len(look.fair):
            self._note(look.fair)
        self._chooser.round.looked(len(seen.pfn))
        yield SampleBatch(self.name, seen.pfn, seen.weight, look.marked, now, gone=seen.gone)
        if len(before):  # afterwards, as what the look told is learned from what was known before
            ones, since = np.ones(len(before), np.uint8), look.marked - self._gap
            yield SampleBatch(
                self.name, before, ones, since, look.marked, cold_evidence=False, repeated=True
            )

    def _compare(self, look: Look, seen: Seen) -> tuple[NDArray[np.int16], Bools]:
        """int16[n]: the accessed share of each block as it is known now, 0..255; bool[n]: whether
        it has changed. What has become hot is looked around."""
        blocks, table = look.blocks, self._table
        before, kind = table.share(blocks).astype(np.int16), table.kind(blocks)
        share = seen.share.astype(np.int16)
        if look.words is None:
            return share, np.abs(share - before) > DIFFERENT
        # A few frames cannot tell one mixed share from another, but they can tell that a
        # block is no longer wholly idle or wholly hot.
        risen = (before <= IDLE) & (share > 0)
        changed = risen | ((before >= HOT) & (share < HOT))
        fresh = (kind == UNKNOWN) | (kind == USED) | ((kind != HUGE) & (seen.kind == HUGE))
        # It was being filled when it was marked: there was nothing to look at yet.
        early = look.filled & (look.masks == 0)
        self._filled = np.concatenate((self._filled, blocks[early]))[-GROUP_WORDS:]
        # Neighbours of a block that is hot by the most of it are looked at, too.
        # One frame of a small page in eight is chance; so is a huge page that is accessed
        # now and then, unless it has been idle for long.
        share = np.where(changed | fresh, share, before)
        small = (kind != HUGE) & (seen.kind != HUGE) & (share >= PLAIN)
        self._chooser.look_around(blocks[risen & (small | (table.calm(blocks) >= CALM))])
        every = risen & (kind != HUGE) & (seen.kind != HUGE) & (share >= HOT)
        self._witnesses.drop(blocks[seen.share < HOT])
        if every.any():
            starts, masks = table.first(blocks), np.asarray(look.masks)
            every &= looked_at(starts, seen) >= FOLIOS
            self._witnesses.note(blocks[every], look.words[every], masks[every], self._call)
        return share, changed

    def _second_looks(self, look: Look, seen: Seen) -> tuple[Bools, Bools]:
        """bool[n] each: huge pages that were taken for something else, so that nobody looked at the
        head; those outside the fastest tier of them, and of others that were idle, or not looked
        at yet, and are accessed. A second look at one costs as little as the first, and on the list
        of active blocks it would wait among thousands."""
        blocks, table = look.blocks, self._table
        if look.words is None:
            none = np.zeros(len(blocks), np.bool_)
            return none, none
        huge = seen.kind == HUGE
        blind: Bools = huge & (table.kind(blocks) != HUGE) & (look.words != 0)
        risen = huge & (table.share(blocks) <= IDLE) & (seen.share > 0)
        twice: Bools = (blind | risen) & ~table.fast(blocks)
        twice[np.flatnonzero(twice)[self._chooser.room :]] = False
        return blind, twice

    def _note(self, blocks: Blocks) -> None:
        """Tell the tuner of the window about blocks that stand for all."""
        share = self._table.share(blocks)
        user = self._table.pages(blocks).astype(np.float64)
        mixed = (share > IDLE) & (share < HOT)
        pages = user * (share / 255)
        self._tuner.note(int(user.sum()), float(pages.sum()), float(pages[mixed].sum()))

    def _learn(self, looks: list[Look], seen: list[Seen], used: float) -> None:
        """What marking and reading these looks and digesting what they told really took."""
        units = [
            (True, float(told.heads.sum(dtype=np.int64)) + UNIT_BLOCK * len(told.heads))
            if look.words is None
            else (False, self._costs.words(look.blocks))
            for look, told in zip(looks, seen, strict=True)
        ]
        self._costs.learn(units, used + sum(look.cpu for look in looks))

    def _look_again(self, allowed: float) -> float:
        """Look at a few frames of what has just been filled again, if `allowed` CPU seconds and
        the credit allow it; returns what was spent."""
        filled, self._filled = self._filled, self._filled[:0]
        if len(filled) < AGAIN or allowed + CREDIT * self._share * self._gap <= 0:
            return 0.0
        before = self._host.cpu_times()
        blocks = unique(filled)
        blocks = blocks[~(self._table.busy(blocks) | self._table.listed(blocks))]
        self._table.take(blocks)
        self._mark(Choice(blocks, sparse=True, urgent=True))
        return (self._host.cpu_times() - before).total

    # -- beginning -----------------------------------------------------------------------------

    def _begin(self, allowed: float) -> float:
        """Begin looks that take `allowed` CPU seconds in all; returns what was spent on that now.

        What is hardly more than looks cost whatever their size is saved up for fewer, larger ones.
        """
        self._chooser.watch_free(self._call)
        if allowed <= 0:  # a debt is paid back before anything is saved
            return self._begin_urgent(allowed)
        steady = self._share * self._gap if self._gap else allowed
        scarce = steady < SCARCE * self._fixed(Streams.ALL)
        streams = self._whose_turn() if scarce else Streams.ALL
        fixed = self._fixed(streams)
        capacity = max(allowed - fixed, allowed / (2 * WORTH)) / self._costs.full
        saving = allowed < WORTH * fixed and self._saved < MOST_SAVED
        # Looks of all kinds would have a place for only some of what waits for a second one.
        pressing = scarce and self._saved < MOST_SAVED and self._waits_urgently
        if saving or pressing or capacity < UNIT_PEEK:
            self._saved += 1
            return self._begin_urgent(allowed)
        self._saved = self._urgent = 0
        before = self._host.cpu_times()
        flying = len(self._flight)
        hurry = self._tuner.effective(self._gap) > LONG * self._gap
        self._mark(*self._chooser.choose(self._call, capacity, self._gap, streams, hurry=hurry))
        spent = (self._host.cpu_times() - before).total
        choosing = max(spent - sum(look.cpu for look in self._flight[flying:]), 0.0)
        self._choosing += (choosing - self._choosing) / 4
        self._turns = self._turns + 1 if streams is Streams.SPARSE else 0
        return spent

    def _fixed(self, streams: Streams) -> float:
        """CPU seconds that looks at these streams take whatever their size."""
        full = self._costs.full_look if Streams.FULL in streams else 0.0
        sparse = self._costs.sparse_look if Streams.SPARSE in streams else 0.0
        return full + sparse + self._choosing

    def _whose_turn(self) -> Streams:
        """Full looks or sparse ones. What has been filled is looked at sparsely first, but memory
        may be filled all the time."""
        turns = FULL_TURN if self._is_worth_a_look(self._active.changing()) else REFRESH_TURN
        turns *= 2 if self._chooser.filling else 1
        return Streams.FULL if self._turns >= turns - 1 else Streams.SPARSE

    def _begin_urgent(self, allowed: float) -> float:
        """Look a second time at what has just become hot, and around it, on credit: within some
        calls it is saved again."""
        if not self._waits_urgently:
            return 0.0
        before = self._host.cpu_times()
        allowed += CREDIT * self._share * self._gap - self._costs.looks
        capacity = allowed / self._costs.full
        units = min(self._active.urgent(), (1 - AROUND_SHARE) * capacity)
        if self._is_worth_a_look(units):
            chosen = self._active.choose(self._call, units, urgent=True)
            around = self._chooser.next_around(min(AROUND_SHARE * capacity, capacity - units))
            self._mark(
                Choice(np.sort(chosen), sparse=False, urgent=True),
                Choice(np.sort(around), sparse=True, urgent=True),
            )
            self._urgent += 1
        return (self._host.cpu_times() - before).total

    @property
    def _waits_urgently(self) -> bool:
        """Something has just become hot, and others have had their turn lately as well."""
        return self._urgent < MOST_URGENT and self._is_worth_a_look(self._active.urgent())

    def _is_worth_a_look(self, units: float) -> bool:
        """A few blocks had better wait for the next looks of all kinds."""
        return units * self._costs.full > self._costs.looks / 8

    def _mark(self, *choices: Choice) -> None:
        flying = len(self._flight)
        try:
            for choice in choices:
                for look in self._marker.mark(choice, self._call, wary=self._chooser.wary):
                    self._flight.append(look)
        except KernelError:  # what was not marked has its turn again some time
            chosen = np.concatenate([choice.blocks for choice in choices])
            marked = [look.blocks for look in self._flight[flying:]]
            self._table.release(np.setdiff1d(chosen, np.concatenate([chosen[:0], *marked])))
            raise
