# SPDX-License-Identifier: Apache-2.0
"""The idle-bitmap sampler: what it reports, what it costs, how soon it finds."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakehost import hot_only, machine, pages_of, topology_of
from tierd.config import Sampling, Window, Workload
from tierd.governor import CPU_BURST
from tierd.host import KPF, KernelError, MoveOption, Span
from tierd.host.simulated import Costs, SimulatedHost
from tierd.samplers import SampleBatch, Sampler, idle_choice, idle_marks, page_idle
from tierd.samplers.idle_active import SLOW_SHARE, Active
from tierd.samplers.idle_blocks import BlockTable
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
    runs,
)
from tierd.samplers.idle_marks import Look
from tierd.samplers.idle_window import WindowTuner
from tierd.samplers.page_idle import PageIdleSampler
from tierd.samplers.rounds import STRIDE, in_turn

PLENTY = 1e9
"""A CPU budget that covers everything."""

EMULATED = Costs(mark=1e-6, read=1e-6, pass_over=0.3e-6, flags=0.25e-6, call=5e-6)
"""What the calls cost in an emulated guest: about 2 us per LRU frame."""


def sampler(host: SimulatedHost, **keys: object) -> PageIdleSampler:
    return PageIdleSampler(host, topology_of(host), Sampling(**keys))  # type: ignore[arg-type]


def sample(host: SimulatedHost, source: Sampler, budget: float = PLENTY) -> list[SampleBatch]:
    """One cycle of a second."""
    batches = list(source.sample(budget))
    host.sleep(1.0)
    return batches


def accessed(batches: list[SampleBatch]) -> np.ndarray:
    if not batches:
        return np.zeros(0, np.uint64)
    return np.concatenate([batch.pfn[batch.weight > 0] for batch in batches])


def looked(batches: list[SampleBatch]) -> np.ndarray:
    return np.concatenate([batch.pfn for batch in batches] or [np.zeros(0, np.uint64)])


# -- what a look tells -------------------------------------------------------------------------


class Bitmap:
    """A host of one block with given flags, whose idle bits are as they were given."""

    def __init__(self, flags: np.ndarray, idle: np.ndarray) -> None:
        self._flags = flags
        self._words = np.packbits(idle, bitorder="little").view(np.uint64)
        self.flags_read = 0

    def read_idle(self, start: int, words: np.ndarray) -> None:
        words[:] = self._words[start // 64 : start // 64 + len(words)]

    def read_idle_words(self, first: np.ndarray, words: np.ndarray) -> None:
        words[:] = self._words[first // np.uint64(64)]

    def flags(self, pfn: np.ndarray) -> np.ndarray:
        self.flags_read += len(pfn)
        return self._flags[pfn]

    def flags_run(self, start: int, out: np.ndarray) -> None:
        self.flags_read += len(out)
        out[:] = self._flags[start : start + len(out)]


def layout(orders: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Flags of a block filled with folios of these orders (-1: a free page), and where heads
    are."""
    flags = np.zeros(BLOCK, np.uint64)
    heads = np.zeros(BLOCK, bool)
    at = 0
    for order in orders:
        size = 1 << max(order, 0)
        at = -(-at // size) * size
        if at + size > BLOCK:
            break
        if order >= 0:
            flags[at : at + size] = KPF.LRU | KPF.ANON | KPF.MMAP
            heads[at] = True
            if order:
                flags[at] |= KPF.COMPOUND_HEAD
                flags[at + 1 : at + size] |= KPF.COMPOUND_TAIL
        at += size
    return flags, heads


def known(kind: int, *, heads: int = 0, trust: int = 0, check: bool = False) -> Known:
    return Known(
        np.array([kind], np.uint8),
        np.array([heads], np.uint16),
        np.array([500], np.uint16),
        np.array([trust], np.uint16),
        np.array([check]),
    )


def read_word(host: Bitmap, word: int, mask: np.ndarray, kind: int, *, check: bool = False) -> Seen:
    """A look at one word of the only block."""
    at = np.array([word], np.uint8), mask, np.array([kind], np.uint8), np.array([check])
    return read_words(host, np.zeros(1, np.uint64), *at)  # type: ignore[arg-type]


def test_frames_that_were_not_there_when_a_look_began_are_not_reported() -> None:
    flags, _ = layout([0] * BLOCK)
    there = np.zeros(BLOCK, bool)
    there[:300] = True
    idle = np.arange(BLOCK) % 2 == 0
    host = Bitmap(flags, idle & there)  # what was not there could not be marked
    words = np.packbits(there, bitorder="little").view(np.uint64)[None, :]
    seen = read_full(host, np.zeros(1, np.uint64), known(UNKNOWN), words)  # type: ignore[arg-type]
    assert seen.pfn.tolist() == list(range(300))
    assert seen.weight.tolist() == [0, 1] * 150
    assert seen.share[0] == pytest.approx(127, abs=1)
    assert seen.heads[0] == BLOCK


@pytest.mark.parametrize("kind", [SMALL, MIXED, USED, UNKNOWN])
def test_frames_are_gone_when_they_are_free_and_not_when_they_are_off_the_list(kind: int) -> None:
    flags, _ = layout([0] * BLOCK)
    flags[:100] = KPF.BUDDY
    flags[100:120] = 0
    flags[200:220] = KPF.ANON | KPF.MMAP  # isolated for a moment
    host = Bitmap(flags, np.ones(BLOCK, bool) & (flags & KPF.LRU != 0))
    seen = read_full(host, np.zeros(1, np.uint64), known(kind, heads=BLOCK))  # type: ignore[arg-type]
    assert seen.gone.tolist() == ([] if kind == UNKNOWN else list(range(120)))


HEADS = {SMALL: BLOCK, MIXED: 100, USED: BLOCK, EMPTY: 0, UNKNOWN: BLOCK, HUGE: 1}
"""As the table of blocks has it."""


@pytest.mark.parametrize("kind", HEADS)
def test_frames_are_gone_when_they_have_become_tails(kind: int) -> None:
    flags, heads = layout([9])
    host = Bitmap(flags, heads)
    start, before = np.zeros(1, np.uint64), known(kind, heads=HEADS[kind])
    kinds, word, mask = before.kind, np.zeros(1, np.uint8), np.array([3], np.uint64)
    full = read_full(host, start, before)  # type: ignore[arg-type]
    sparse = read_words(host, start, word, mask, kinds, np.array([True]))  # type: ignore[arg-type]
    for seen in (full, sparse):
        assert seen.kind.tolist() == [HUGE]
        # Where nothing was known there is nothing to forget.
        assert seen.gone.tolist() == ([] if kind in (UNKNOWN, HUGE) else list(range(1, BLOCK)))


def test_a_few_free_frames_do_not_make_a_block_empty() -> None:
    flags, _ = layout([0] * BLOCK)
    flags[:64] = KPF.BUDDY
    flags[[128, 256, 384]] = KPF.BUDDY  # where else it is looked whether there is anything
    host = Bitmap(flags, np.zeros(BLOCK, bool))
    word, mask = np.zeros(1, np.uint8), np.array([2**64 - 1], np.uint64)
    small = np.array([SMALL], np.uint8)
    start = np.zeros(1, np.uint64)
    seen = read_words(host, start, word, mask, small, np.array([True]))  # type: ignore[arg-type]
    assert seen.kind.tolist() == [USED]
    assert seen.gone.tolist() == [*range(64), 128, 256, 384]


@given(
    st.lists(st.integers(-1, 9), min_size=1, max_size=600),
    st.integers(0, 2**32),
    st.sampled_from([UNKNOWN, MIXED]),
)
def test_a_full_look_reports_every_head_and_nothing_else(
    orders: list[int], seed: int, kind: int
) -> None:
    flags, heads = layout(orders)
    hit = np.random.default_rng(seed).random(BLOCK) < 0.3
    host = Bitmap(flags, heads & ~hit)
    seen = read_full(host, np.zeros(1, np.uint64), known(kind, heads=BLOCK))  # type: ignore[arg-type]
    assert seen.pfn.tolist() == np.flatnonzero(heads).tolist()
    assert seen.weight.tolist() == (heads & hit)[heads].astype(int).tolist()
    count, hits = int(heads.sum()), int((heads & hit).sum())
    assert int(seen.heads[0]) == count
    assert int(seen.share[0]) == (hits * 255 // count if count else 0)
    expected = {0: EMPTY, BLOCK: SMALL}.get(count, MIXED)
    if count == 1 and (flags & KPF.COMPOUND_TAIL).sum() == KPF.COMPOUND_TAIL * np.uint64(511):
        expected = HUGE
    assert int(seen.kind[0]) == expected


def test_an_idle_block_is_understood_without_its_flags() -> None:
    host = Bitmap(layout([0] * BLOCK)[0], np.ones(BLOCK, bool))
    seen = read_full(host, np.zeros(1, np.uint64), known(UNKNOWN))  # type: ignore[arg-type]
    assert host.flags_read == 0
    assert int(seen.kind[0]) == SMALL
    assert not seen.weight.any()


@pytest.mark.parametrize(
    ("hit", "check", "reads"), [(False, False, 0), (False, True, BLOCK), (True, False, BLOCK)]
)
def test_a_mixed_block_is_read_again_when_a_head_is_missing(
    hit: bool, check: bool, reads: int
) -> None:
    """300 small pages among the kernel's."""
    flags, heads = layout([0] * 300)
    idle = heads.copy()
    idle[17] = not hit
    host = Bitmap(flags, idle)
    before = known(MIXED, heads=300, check=check)
    seen = read_full(host, np.zeros(1, np.uint64), before)  # type: ignore[arg-type]
    assert host.flags_read == reads
    assert len(seen.pfn) == 300
    assert int(seen.weight.sum()) == int(hit)
    assert int(seen.user[0]) == (300 if reads else 500)


@pytest.mark.parametrize(("trust", "reads"), [(100, 0), (50, BLOCK)])
def test_more_clear_bits_than_are_trusted_are_checked(trust: int, reads: int) -> None:
    """A hundred frames read 0; half of them were freed meanwhile."""
    flags, _ = layout([0] * BLOCK)
    flags[:50] = KPF.BUDDY
    idle = np.ones(BLOCK, bool)
    idle[:100] = False
    host = Bitmap(flags, idle)
    seen = read_full(host, np.zeros(1, np.uint64), known(SMALL, trust=trust))  # type: ignore[arg-type]
    assert host.flags_read == reads
    assert int(seen.weight.sum()) == (50 if reads else 100)


@given(st.lists(st.integers(-1, 9), min_size=1, max_size=600), st.integers(0, 2**32))
def test_a_word_reports_marked_heads_only(orders: list[int], seed: int) -> None:
    flags, heads = layout(orders)
    rng = np.random.default_rng(seed)
    hit = rng.random(BLOCK) < 0.3
    word = int(rng.integers(8))
    mask = rng.integers(0, 2**64, 1, np.uint64)
    marked = np.zeros(BLOCK, bool)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)
    marked[word * 64 : word * 64 + 64] = bits
    host = Bitmap(flags, heads & ~hit)
    seen = read_word(host, word, mask, UNKNOWN)
    assert seen.pfn.tolist() == np.flatnonzero(heads & marked).tolist()
    assert seen.weight.tolist() == hit[heads & marked].astype(int).tolist()


@pytest.mark.parametrize(
    ("orders", "kind"),
    [
        ([], EMPTY),
        ([0] * 40, USED),
        ([0] * 64, SMALL),
        ([-1] * 128 + [0], USED),  # a frame of another word is in use
    ],
)
def test_a_word_of_small_pages_that_has_become_hot_is_checked(orders: list[int], kind: int) -> None:
    """Freed frames read as accessed, too."""
    flags, heads = layout(orders)
    host = Bitmap(flags, np.zeros(BLOCK, bool))
    mask = np.full(1, 2**64 - 1, np.uint64)
    seen = read_word(host, 0, mask, SMALL, check=True)
    assert seen.pfn.tolist() == np.flatnonzero(heads[:64]).tolist()
    assert seen.kind.tolist() == [kind]
    host.flags_read = 0
    read_word(host, 0, mask, SMALL)
    assert host.flags_read == 0


@pytest.mark.parametrize(
    ("kind", "word", "idle"), [(UNKNOWN, 0, True), (UNKNOWN, 0, False), (USED, 3, False)]
)
def test_a_huge_page_is_told_from_any_part_of_it(kind: int, word: int, idle: bool) -> None:
    """Of a block that was never looked at the first frame alone can be marked, and tails read as
    accessed whatever happens to them."""
    flags, heads = layout([9])
    host = Bitmap(flags, heads & idle)
    mask = np.full(1, 1 if kind == UNKNOWN else 0x0101010101010101, np.uint64)
    seen = read_word(host, word, mask, kind)
    assert seen.kind.tolist() == [HUGE]
    assert seen.pfn.tolist() == ([] if word else [0])
    assert seen.weight.tolist() == ([] if word else [int(not idle)])


@pytest.mark.parametrize("orders", [[8, 8], [7] * 4, [6] * 8, [6, 8, 7, 6, 6]])
@pytest.mark.parametrize("word", range(8))
@pytest.mark.parametrize("kind", [UNKNOWN, USED, MIXED])
def test_large_folios_are_not_taken_for_one_huge_page(
    orders: list[int], word: int, kind: int
) -> None:
    flags, heads = layout(orders)
    start = word * 64
    mask = np.full(1, 0x0101010101010101, np.uint64)
    if kind == UNKNOWN:  # only what is there is marked
        mask = np.packbits(heads[start : start + 64], bitorder="little").view(np.uint64) & mask
    for host in (Bitmap(flags, heads), Bitmap(flags, np.zeros_like(heads))):
        seen = read_word(host, word, mask, kind)
        assert seen.kind[0] != HUGE
        assert not heads[seen.gone].any()


@given(st.sets(st.integers(0, 300), min_size=1))
def test_runs_cover_each_block_once_and_fit_one_call(blocks: set[int]) -> None:
    starts = np.array(sorted(blocks), np.uint64) * np.uint64(BLOCK)
    covered: list[int] = []
    for begin, end in runs(starts):
        assert 0 < end - begin <= 64
        assert int(starts[end - 1] - starts[begin]) == (end - begin - 1) * BLOCK
        covered += range(begin, end)
    assert covered == list(range(len(starts)))


@given(st.integers(1, 2000), st.integers(1, 300))
def test_a_sweep_takes_each_block_once_and_is_everywhere_early(count: int, slice_: int) -> None:
    turns = [in_turn(count, at, min(at + slice_, count)) for at in range(0, count, slice_)]
    order = np.concatenate(turns)
    assert sorted(order.tolist()) == list(range(count))
    half = np.sort(order[: -(-count // 2)])
    assert np.diff(half).max(initial=0) <= STRIDE


def test_the_table_of_blocks_keeps_apart_what_shares_a_byte() -> None:
    spans = (Span(0, 0, 1024), Span(1, 1024, 1100), Span(1, 1400, 3000))
    table = BlockTable(spans, {0})
    every = np.arange(table.count)
    # The block that begins at frame 1024 belongs to two spans, and is there once.
    assert table.first(every).tolist() == [0, 512, 1024, 1536, 2048, 2560]
    assert table.fast(every).tolist() == [True, True, False, False, False, False]
    assert table.heads(every).tolist() == [BLOCK] * 6
    assert table.pages(every).tolist() == [0] * 6
    some = np.array([1, 3])
    table.take(some)
    table.list(np.array([3]), True)
    table.learn(every, every.astype(np.uint8), every.astype(np.uint8))
    for folios, pages, told in ((511, 511, 511), (511, 10, 511), (1, 512, 509), (77, 499, 501)):
        table.learn_layout(
            np.array([4]), np.array([folios], np.uint16), np.array([pages], np.uint16)
        )
        assert (table.heads(every)[4], table.pages(every)[4]) == (folios, told)
    for looks in range(1, 12):
        calm = table.settle(every, every == 2)
        assert calm[2] == 0
        assert calm[0] == (looks if looks <= 7 else 4 + (looks - 8) % 4)
    assert table.kind(every).tolist() == [0, 1, 2, 3, 4, 5]
    assert table.share(every).tolist() == [0, 1, 2, 3, 4, 5]
    assert table.heads(every).tolist() == [BLOCK, 0, BLOCK, 1, 77, BLOCK]
    assert table.pages(every).tolist() == [0, 0, BLOCK, BLOCK, 501, BLOCK]
    assert np.flatnonzero(table.busy(every)).tolist() == [1, 3]
    assert np.flatnonzero(table.listed(every)).tolist() == [3]
    table.release(some)
    table.list(np.array([3]), False)
    assert not (table.busy(every) | table.listed(every)).any()
    assert table.kind(every).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_list_of_active_blocks_is_bounded_and_the_longest_waiting_come_first() -> None:
    table = BlockTable((Span(0, 0, 100 * BLOCK),), {0})
    active = Active(table, 10)
    active.add(np.array([5, 7, 9]), 1)
    active.add(np.array([7, 8]), 2)
    table.take(np.array([7]))
    blocks, since = active.front(2)
    assert (blocks.tolist(), since.tolist()) == ([5, 9], [1, 1])
    active.give_back(blocks[:1], since[:1])
    table.list(blocks[1:], False)
    table.release(np.array([7]))
    assert len(active) == 3
    blocks, since = active.front(10)
    assert (blocks.tolist(), since.tolist()) == ([7, 8, 5], [1, 2, 1])
    active.give_back(blocks, since)
    active.add(np.arange(20, 60), 3)
    assert len(active) == 10


# -- what the sampler reports --------------------------------------------------------------------


def test_batches_are_as_promised_and_say_what_is_so() -> None:
    host = machine(
        workloads=(
            Workload(kind="uniform", size="200MiB", accesses=1e-6),
            Workload(kind="uniform", size="100MiB"),
        ),
        folios={"2MiB": "30%"},
    )
    hot_only(host, 1, hot=4096)
    source = sampler(host)
    hot, cold = pages_of(host, 1), pages_of(host, 0)
    truly_hot = set(hot[host.rates(hot) > 0].tolist())
    for _ in range(4):
        batches = sample(host, source)
        for batch in batches:
            assert batch.source == "page_idle"
            assert batch.cold_evidence
            assert 0 < len(batch.pfn) == len(batch.weight) <= 32_768
            assert (np.diff(batch.pfn.astype(np.int64)) > 0).all()
            assert set(np.unique(batch.weight).tolist()) <= {0, 1}
            assert batch.t0 < batch.t1 <= host.monotonic()
    flags = host.flags(np.sort(looked(batches)))
    assert ((flags & (KPF.LRU | KPF.COMPOUND_TAIL)) == KPF.LRU).all()
    huge = host.flags(np.sort(accessed(batches))) & KPF.COMPOUND_HEAD != 0
    small = np.sort(accessed(batches))[~huge]
    assert set(small.tolist()) <= truly_hot
    assert not set(small.tolist()) & set(cold.tolist())
    heads = host.flags(hot) & KPF.COMPOUND_TAIL == 0
    assert set(hot[heads & (host.rates(hot) > 0)].tolist()) <= set(accessed(batches).tolist())
    source.close()


def test_with_a_budget_for_all_everything_is_looked_at_every_cycle() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="300MiB", accesses=1e-6),), folios={})
    source = sampler(host)
    sample(host, source)
    frames = pages_of(host, 0).tolist()
    for _ in range(3):
        assert sorted(looked(sample(host, source)).tolist()) == frames
    status = source.status()
    assert status.coverage == pytest.approx(1.0)
    assert status.round_time == pytest.approx(1.0, abs=0.2)


def test_what_was_marked_late_in_a_call_is_read_late_in_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Marking and reading take most of the second between two calls."""
    host = machine(
        fast="512MiB",
        slow="512MiB",
        workloads=(Workload(kind="uniform", size="900MiB", accesses=1e-6),),
        folios={},
    )

    def slow(original: Callable[..., Any]) -> Callable[..., Any]:
        def look(*args: Any) -> Any:
            host.sleep(0.05)
            return original(*args)

        return look

    monkeypatch.setattr(idle_marks, "mark_full", slow(idle_marks.mark_full))
    monkeypatch.setattr(page_idle, "read_full", slow(page_idle.read_full))
    source = sampler(host, window=Window(min="1s", max="1.01s"))
    frames = pages_of(host, 0).tolist()
    for call in range(8):
        host.sleep(10 + call - host.monotonic())
        seen = np.concatenate(
            [np.zeros(0, np.uint64), *(batch.pfn for batch in source.sample(PLENTY))]
        )
        if call >= 3:
            assert sorted(seen.tolist()) == frames


def test_freed_frames_are_not_reported_for_long() -> None:
    """A free frame reads as accessed; at most one look may be deceived."""
    host = machine(
        workloads=(Workload(kind="uniform", size="128MiB", accesses=1e8),), folios={"2MiB": "20%"}
    )
    source = sampler(host)
    for _ in range(6):
        sample(host, source)
    host.exit(0)
    sample(host, source)
    late = [accessed(sample(host, source)) for _ in range(10)]
    assert sum(len(frames) for frames in late[4:]) == 0


@pytest.mark.parametrize("budget", [PLENTY, 0.02])
def test_frames_that_are_free_now_are_reported_as_gone_once(budget: float) -> None:
    host = guest()
    source = sampler(host)
    for _ in range(40):
        sample(host, source, budget)
    freed = pages_of(host, 1)
    host.exit(1)
    gone = [batch.gone for _ in range(90) for batch in sample(host, source, budget)]
    every = np.concatenate(gone)
    assert len(every) == len(np.unique(every))
    assert len(np.intersect1d(freed, every)) > 0.99 * len(freed)
    assert not len(np.intersect1d(pages_of(host, 0), every))


def test_memory_that_fills_is_found() -> None:
    host = machine(
        workloads=(Workload(kind="uniform", size="128MiB", accesses=1e8),), folios={"2MiB": "20%"}
    )
    host.exit(0)
    source = sampler(host)
    for _ in range(5):
        assert not looked(sample(host, source)).size
    host.start(0)
    frames = pages_of(host, 0)
    heads = frames[host.flags(frames) & KPF.COMPOUND_TAIL == 0]
    found: set[int] = set()
    for _ in range(8):
        found |= set(accessed(sample(host, source)).tolist())
    assert len(found & set(heads.tolist())) > 0.95 * len(heads)


def test_several_threads_see_the_same() -> None:
    def run(threads: int) -> list[int]:
        host = machine(workloads=(Workload(kind="uniform", size="300MiB"),), folios={"2MiB": "10%"})
        hot_only(host, 0, hot=30_000)
        source = sampler(host, threads=threads)
        for _ in range(3):
            batches = sample(host, source)
        source.close()
        return sorted(accessed(batches).tolist())

    assert run(1) == run(3)


def test_a_caller_that_leaves_early_gets_the_rest_later() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="300MiB", accesses=1e-6),), folios={})
    source = sampler(host)
    sample(host, source)
    stream = source.sample(PLENTY)
    first = next(stream)
    stream.close()  # type: ignore[attr-defined]
    host.sleep(1.0)
    rest = looked(sample(host, source))
    both = set(first.pfn.tolist()) | set(rest.tolist())
    assert both == set(pages_of(host, 0).tolist())


def test_a_kernel_error_loses_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    host = machine(workloads=(Workload(kind="uniform", size="300MiB", accesses=1e-6),), folios={})
    source = sampler(host)
    sample(host, source)

    def fail(start: int, words: np.ndarray) -> None:
        raise KernelError(5, "I/O error", "bitmap")

    with monkeypatch.context() as patch:
        patch.setattr(host, "read_idle", fail)
        with pytest.raises(KernelError):
            sample(host, source)
    assert set(looked(sample(host, source)).tolist()) == set(pages_of(host, 0).tolist())


@pytest.mark.parametrize("call", ["set_idle", "set_idle_words", "flags"])
def test_blocks_that_could_not_be_marked_are_not_lost(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    host = guest()
    source = sampler(host)
    for _ in range(3):
        sample(host, source, 0.1)

    def fail(*_: Any) -> None:
        raise KernelError(5, "I/O error", call)

    with monkeypatch.context() as patch:
        patch.setattr(host, call, fail)
        with pytest.raises(KernelError):
            list(on_a_share(host, source, 0.1, 30))
    every = np.arange(source._table.count)
    flying = [look.blocks for look in source._flight]
    assert set(every[source._table.busy(every)]) == set(np.concatenate([every[:0], *flying]))


def test_the_fast_tier_s_share_is_estimated_over_all_blocks() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="400MiB", accesses=1e8),), folios={})
    source = sampler(host)
    for _ in range(4):
        sample(host, source)
    share = source.status().fast_share
    assert share == pytest.approx(host.access_shares()[0], abs=0.02)


# -- what it costs, and how soon it finds --------------------------------------------------------


def guest() -> SimulatedHost:
    """1 GiB and 1 GiB, emulated: 400 MiB on the slow node of which 64 MiB are hot."""
    host = machine(
        fast="1GiB",
        slow="1GiB",
        workloads=(
            Workload(kind="uniform", size="960MiB", accesses=1e-6),
            Workload(kind="uniform", size="400MiB"),
        ),
        folios={},
        costs=EMULATED,
    )
    hot_only(host, 1, hot=16_384)
    return host


@pytest.mark.parametrize(("share", "cycles"), [(0.03, 12), (0.1, 5), (0.3, 4)])
def test_a_hot_set_is_seen_twice_within_a_few_cycles(share: float, cycles: int) -> None:
    host = guest()
    source = sampler(host)
    frames = pages_of(host, 1)
    hot = frames[host.rates(frames) > 0]
    assert len(hot) == 16_384
    times = np.zeros(int(frames[-1]) + 1, np.uint8)
    for _ in range(cycles):
        times[accessed(sample(host, source, share)).astype(np.int64)] += 1
    assert (times[hot.astype(np.int64)] >= 2).mean() > 0.95
    strangers = np.flatnonzero(times)
    assert set(strangers.tolist()) <= set(hot.tolist())


@pytest.mark.parametrize(("share", "cycles"), [(0.1, 5), (0.3, 3)])
def test_a_shift_is_followed(share: float, cycles: int) -> None:
    host = guest()
    source = sampler(host)
    for _ in range(12):
        sample(host, source, share)
    found = host.programs[1]
    old = found.pattern

    class Shifted:
        def rates(self, index: np.ndarray, now: float) -> np.ndarray:
            return old.rates((index - 50_000) % found.pages, now)

        def expected(self, index: np.ndarray, since: np.ndarray, now: float) -> np.ndarray:
            return old.expected((index - 50_000) % found.pages, since, now)

    found.pattern = Shifted()
    frames = pages_of(host, 1)
    hot = frames[host.rates(frames) > 0].astype(np.int64)
    times = np.zeros(int(frames[-1]) + 1, np.uint8)
    sample(host, source, share)  # marked before the shift
    for _ in range(cycles):
        times[accessed(sample(host, source, share)).astype(np.int64)] += 1
    assert (times[hot] >= 2).mean() > 0.9


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_the_budget_holds(share: float) -> None:
    host = guest()
    source = sampler(host)
    before = host.cpu_times()
    for _ in range(20):
        list(source.sample(share))
        host.sleep(1.0)
    used = (host.cpu_times() - before).total
    assert 0.5 * 20 * share < used < 1.1 * 20 * share


def test_a_hot_set_in_one_piece_is_found_long_before_a_round_is_over() -> None:
    """64 MiB become hot among 24 GiB, of which a budget of 3 % of a core covers a round in
    minutes."""
    host = machine(
        fast="8GiB",
        slow="24GiB",
        workloads=(
            Workload(kind="uniform", size="6GiB", accesses=1e-6),
            Workload(kind="uniform", size="23GiB", accesses=1e-6),
        ),
        folios={},
        costs=EMULATED,
    )
    source = sampler(host)
    for _ in range(400):
        sample(host, source, 0.03)
    status = source.status()
    round_time = status.round_time
    hot_only(host, 1, hot=16_384)
    frames = pages_of(host, 1)
    hot = frames[host.rates(frames) > 0]
    found = np.zeros(len(hot), np.uint8)
    calls = 0
    while (found >= 2).mean() < 0.9:
        found += np.isin(hot, accessed(sample(host, source, 0.03)))
        calls += 1
        assert calls < 0.5 * round_time
    assert status.find_time is not None
    assert max(round_time, calls) < status.find_time < 3 * round_time
    assert round_time > 30  # or there was nothing to be early for


def test_huge_pages_that_were_silent_are_known_in_a_crowd_that_comes_and_goes() -> None:
    """64 MiB of huge pages become hot beside 10 GiB of them that are accessed now and then."""
    host = machine(
        fast="8GiB",
        slow="24GiB",
        workloads=(
            Workload(kind="uniform", size="7GiB", accesses=1e-6),
            Workload(kind="uniform", size="10GiB", accesses=1500),
            Workload(kind="uniform", size="12GiB", accesses=1e-6),
        ),
        folios={"2MiB": "100%"},
        costs=EMULATED,
    )
    source = sampler(host)
    for _ in range(20):
        sample(host, source, 0.2)
    for _ in range(100):
        sample(host, source, 0.005)
    hot_only(host, 2, hot=16_384)
    frames = pages_of(host, 2)
    heads = frames[(host.rates(frames) > 0) & (frames % BLOCK == 0)]
    assert len(heads) == 32
    seen = [np.isin(heads, accessed(sample(host, source, 0.005))) for _ in range(500)]
    hits = np.cumsum(seen, axis=0)
    assert np.all(hits[-1] >= 1)
    waited = np.argmax(hits >= 2, axis=0) - np.argmax(hits >= 1, axis=0)
    assert np.count_nonzero((hits[-1] >= 2) & (waited <= 10)) >= 0.9 * len(heads)


def slow_looks(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every look take so many CPU seconds more, as tierd's own part does under emulation."""

    def slow(original: Callable[..., Any]) -> Callable[..., Any]:
        def look(*args: Any) -> Any:
            host._system += seconds
            return original(*args)

        return look

    for module, name in (
        (idle_marks, "mark_full"),
        (page_idle, "read_full"),
        (page_idle, "read_words"),
    ):
        monkeypatch.setattr(module, name, slow(getattr(module, name)))


def on_a_share(
    host: SimulatedHost, source: Sampler, share: float, cycles: int
) -> Iterator[list[SampleBatch]]:
    """Cycles of a second with that share of a core, of which four cycles' worth can be saved."""
    tokens = 0.0
    for _ in range(cycles):
        tokens = min(tokens + share, CPU_BURST * share)
        before = host.cpu_times()
        batches = list(source.sample(tokens))
        tokens -= (host.cpu_times() - before).total
        yield batches
        host.sleep(1.0)


def test_second_looks_are_on_credit_and_wait_for_no_long_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looks cost nearly all that there is for two cycles, and the window is three seconds."""
    host = guest()
    slow_looks(host, monkeypatch, 0.02)
    source = sampler(host, cpu="7%", window=Window(min="3s", max="3.1s"))
    hot_only(host, 1, hot=1)
    for _ in on_a_share(host, source, 0.07, 60):
        assert source.status().confirmed == 0
    hot_only(host, 1, hot=16_384)
    begun, before = host.monotonic(), host.cpu_times()
    seen: list[int] = []
    sure: list[int] = []
    for cycle, batches in enumerate(on_a_share(host, source, 0.07, 60)):
        seen += [cycle] if len(accessed(batches)) else []
        sure += [cycle] * (source.status().confirmed > 4)
    assert sure
    assert seen[0] < sure[0] <= seen[0] + 3
    assert source._tuner._found > begun
    seconds = host.monotonic() - begun
    assert (host.cpu_times() - before).total < 0.07 * seconds * 1.1  # the credit was paid back


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_look_that_has_proved_right_counts_for_all_frames(
    goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hot by a few frames and then by all of them: twice. A load that is over by then: not."""
    host = guest()
    slow_looks(host, monkeypatch, 0.02)
    source = sampler(host, cpu="7%")
    hot_only(host, 1, hot=1)
    for batches in on_a_share(host, source, 0.07, 60):
        assert all(batch.cold_evidence for batch in batches)
    hot_only(host, 1, hot=16_384)
    for batches in on_a_share(host, source, 0.07, 60):
        if not goes_on and len(accessed(batches)):
            hot_only(host, 1, hot=1)
        before = [batch for batch in batches if not batch.cold_evidence]
        if before:
            break
    assert bool(before) is goes_on
    for batch in before:
        assert batch.repeated
        assert batch.t0 < batch.t1
        assert len(batch.pfn) > 4 * 0.97 * BLOCK
        assert np.all(batch.weight == 1)
        # First what was seen, as states mean what the next look at them finds.
        main = batches[next(i for i, each in enumerate(batches) if each is batch) - 1]
        assert main.cold_evidence
        assert np.isin(batch.pfn, main.pfn[main.weight > 0]).all()


@pytest.mark.parametrize("share", [0.04, 0.07])
def test_full_and_sparse_looks_take_turns_where_there_is_little_for_both(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks cost about four cycles of the smaller share whatever their size."""
    host = guest()
    slow_looks(host, monkeypatch, 0.02)
    source = sampler(host, cpu=f"{share:.0%}")
    turns = []
    for _ in on_a_share(host, source, share, 200):
        new = [e for e in source._flight if e.marked > source._last_call and not e.urgent]
        turns.append({look.words is None for look in new})
    settled = [each for each in turns[50:] if each]
    assert len(settled) > 40
    assert np.mean([each == {False} for each in settled]) > 0.5
    assert 0.05 < np.mean([True in each for each in settled]) < 0.4


def before_a_program_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[SimulatedHost, PageIdleSampler]:
    """A small share has got to know a machine where looks are dear; program 1 is not there."""
    host = guest()
    slow_looks(host, monkeypatch, 0.02)
    host.exit(1)
    source = sampler(host, cpu="7%")
    for _ in on_a_share(host, source, 0.07, 40):
        pass
    return host, source


def test_full_looks_have_their_turn_while_memory_is_filled_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = guest()
    slow_looks(host, monkeypatch, 0.02)
    source = sampler(host, cpu="4%")
    monkeypatch.setattr(type(source._chooser), "filling", True)
    full = []
    for _ in on_a_share(host, source, 0.04, 200):
        new = [e for e in source._flight if e.marked > source._last_call and not e.urgent]
        full += [any(look.words is None for look in new)] * bool(new)
    assert np.mean(full) > 0.04


def test_blocks_that_are_used_elsewhere_than_where_it_was_looked_are_not_looked_at_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kernel page in the first word of each block that has filled."""
    host, source = before_a_program_begins(monkeypatch)
    monkeypatch.setattr(
        idle_marks, "there_in_words", lambda _, first: np.zeros(len(first), np.uint64)
    )
    host.start(1)
    hot_only(host, 1, hot=1)
    urgent = 0
    for _ in on_a_share(host, source, 0.07, 60):
        urgent += any(look.urgent and look.words is not None for look in source._flight)
    assert urgent < 15
    blocks = source._table.holding(pages_of(host, 1))[0]
    assert np.mean(source._table.kind(blocks) == EMPTY) < 0.1


def test_a_share_that_never_pays_for_second_looks_goes_on_looking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = guest()
    slow_looks(host, monkeypatch, 0.02)
    source = sampler(host, cpu="0.3%")
    last = 0
    for cycle, batches in enumerate(on_a_share(host, source, 0.003, 1500)):
        last = cycle if batches else last
    assert last > 1300


def calls_to_find_what_was_filled() -> int:
    """Until a small budget has seen an access in 90 % of the blocks of a program that begins."""
    host = guest()
    host.exit(1)
    source = sampler(host)
    for _ in range(100):
        sample(host, source, 0.01)
    host.start(1)
    hot_only(host, 1, hot=pages_of(host, 1).size)
    blocks = np.unique(pages_of(host, 1) // np.uint64(BLOCK))
    found = np.zeros(0, np.uint64)
    calls = 0
    while np.isin(blocks, found).mean() < 0.9:
        found = np.union1d(found, accessed(sample(host, source, 0.01)) // np.uint64(BLOCK))
        calls += 1
    return calls


def test_memory_that_has_just_been_filled_comes_before_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = calls_to_find_what_was_filled()
    monkeypatch.setattr(idle_choice, "FILLED", 2**60)  # it is not noticed
    assert calls * 1.3 < calls_to_find_what_was_filled()


def test_memory_that_is_filled_during_a_look_is_not_taken_for_hot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, source = before_a_program_begins(monkeypatch)
    with monkeypatch.context() as filling:
        filling.setattr(idle_marks, "occupied", lambda _, first: np.ones(len(first), np.bool_))
        filling.setattr(source._chooser, "_filling", source._table.count)
        cycles = on_a_share(host, source, 0.07, 5)
        while not any(look.filled.any() for look in source._flight):
            next(cycles)
    blocks = np.concatenate([look.blocks[look.filled] for look in source._flight])
    host.start(1)
    frames = pages_of(host, 1)
    marked = np.isin(frames // np.uint64(BLOCK), source._table.first(blocks) // np.uint64(BLOCK))
    assert np.count_nonzero(marked) > 100 * BLOCK
    hot_only(host, 1, hot=1)
    taken = [
        np.intersect1d(frames[marked], accessed(batches))
        for batches in on_a_share(host, source, 0.07, 12)
    ]
    assert sum(map(len, taken)) < 8


def found_where_one_program_ends_and_another_begins(
    monkeypatch: pytest.MonkeyPatch, *, wary: bool
) -> int:
    """2 MiB blocks found hot, whose frames were one program's when looks saw accesses, free when
    the next one began, and had been filled by another when it ended."""
    host = guest()
    source = sampler(host, window=Window(min="2s", max="2.1s"))
    hot_only(host, 1, hot=1)
    for _ in range(4):
        sample(host, source)
    host.sleep(2.0)
    sample(host, source, -1.0)  # what is under way is read
    table = source._table
    blocks = table.holding(pages_of(host, 1))[0]
    with source._sums.changing(blocks):
        table.learn(blocks, np.full(len(blocks), SMALL, np.uint8), np.full(len(blocks), 255))
    for changed in (True, False):
        table.settle(blocks, np.full(len(blocks), changed))
    monkeypatch.setattr(idle_choice, "RECENT", 16 if wary else -1)
    host.exit(1)
    list(source.sample(PLENTY))
    host.start(1)
    host.sleep(2.0)
    list(source.sample(-1.0))
    return source.status().confirmed


def test_a_program_that_begins_where_another_ended_is_not_taken_for_hot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert found_where_one_program_ends_and_another_begins(monkeypatch, wary=False) > 50
    assert found_where_one_program_ends_and_another_begins(monkeypatch, wary=True) == 0


def test_blocks_that_are_hot_in_part_and_have_changed_are_counted() -> None:
    """Ten small blocks: five are as asked for, of which one is being looked at."""
    host, source = looked_at()
    (span,) = (each for each in topology_of(host).spans if each.node == 1)
    slow = source._table.holding(np.arange(span.start, span.end, BLOCK, dtype=np.uint64))[0][:10]
    table, kind = source._table, np.full(10, SMALL, np.uint8)
    kind[0] = HUGE
    share = np.full(10, 100)
    share[[1, 2]] = 0, 8
    table.learn(slow, kind, share)
    table.settle(slow, np.ones(10, np.bool_))
    for _ in range(2):
        table.settle(slow[3:5], np.zeros(2, np.bool_))
    quick = source._table.holding(pages_of(host, 0)[:BLOCK])[0][:1]
    table.learn(quick, kind[1:2], share[:1])
    table.settle(quick, np.ones(1, np.bool_))
    active = Active(table)
    active.add(slow, 1)
    active.add(quick, 1)
    assert table.fast(quick).all()
    assert not table.fast(slow).any()
    table.take(slow[5:6])
    assert active.changing() == 4 * (BLOCK + 4)


def test_it_is_wary_for_a_while_after_much_memory_was_freed_or_taken() -> None:
    host = guest()
    source = sampler(host)
    wary = []
    for cycle in range(70):
        if cycle == 20:
            host.exit(1)
        elif cycle == 45:
            host.start(1)
            hot_only(host, 1, hot=1)
        sample(host, source)
        wary.append(source._chooser.wary)
    for begin in (20, 45):
        assert not wary[begin - 1]
        assert all(wary[begin : begin + idle_choice.RECENT])
        assert not wary[begin + idle_choice.RECENT + 1]


def test_free_memory_is_looked_at_once_in_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    host = guest()
    source = sampler(host)
    asked = []
    original = host.node_memory
    monkeypatch.setattr(host, "node_memory", lambda: asked.append(1) or original())
    sample(host, source)  # begins twice: a glance, and looks
    sample(host, source, -1.0)  # in debt
    assert len(asked) == 2


@pytest.mark.parametrize("part", [False, True], ids=["none", "some"])
def test_full_looks_have_their_turn_sooner_where_blocks_that_are_hot_in_part_have_changed(
    monkeypatch: pytest.MonkeyPatch, part: bool
) -> None:
    host, source = before_a_program_begins(monkeypatch)
    host.start(1)
    hot_only(host, 1, hot=1)
    for _ in on_a_share(host, source, 0.07, 60):
        pass
    monkeypatch.setattr(type(source._chooser), "filling", False)
    monkeypatch.setattr(source._active, "changing", lambda: 1e4 * part)
    full = []
    for _ in on_a_share(host, source, 0.07, 150):
        new = [e for e in source._flight if e.marked > source._last_call and not e.urgent]
        full += [any(look.words is None for look in new)] * bool(new)
    assert np.mean(full) == pytest.approx(1 / (4 if part else 8), abs=0.05)


def test_a_second_sparse_look_that_tells_the_same_leaves_the_witness_alone() -> None:
    host, source = looked_at()
    blocks = source._table.holding(pages_of(host, 0)[:BLOCK])[0][:1]
    starts = source._table.first(blocks)
    word, mask = np.zeros(1, np.uint8), np.array([2**64 - 1], np.uint64)

    def tell(share: int, before: int) -> None:
        source._table.learn(blocks, np.array([SMALL], np.uint8), np.array([before], np.uint8))
        hit = np.full(64, share // 255, np.uint8)
        seen = Seen(
            np.array([SMALL], np.uint8),
            *(np.zeros(1, np.uint16),) * 2,
            np.array([share], np.uint8),
            starts + np.arange(64, dtype=np.uint64),
            hit,
        )
        none = np.zeros(0, np.int64)
        look = Look(blocks, word, mask, 0.0, none, 0.0, False, np.array([False]))
        source._compare(look, seen)

    for share, before, noted in ((255, 0, 1), (255, 255, 1), (0, 255, 0)):
        tell(share, before)
        assert len(source._witnesses._block) == noted


def test_second_looks_come_before_what_is_around_others_and_are_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those on the list of active blocks are not left to wait there, and what finds no room in the
    queue is put on it."""
    _, source = looked_at()
    table, chooser = source._table, source._chooser
    every = np.arange(table.count)
    every = every[~table.busy(every)][:12]
    source._active.add(every[:2], 1)
    chooser.look_around(every[6:7])
    chooser.look_twice(every[:4])
    enough = float(source._costs.word_units(every[:3]).sum())
    assert chooser.next_around(enough).tolist() == every[:3].tolist()
    assert every[3] in chooser.next_around(1e6)
    table.release(every)

    def rise(blocks: np.ndarray) -> None:
        n = len(blocks)
        table.learn(blocks, np.full(n, HUGE, np.uint8), np.zeros(n, np.uint8))
        kinds = [np.full(n, each, kind) for each, kind in ((HUGE, np.uint8), (1, np.uint16))]
        share = np.full(n, 255, np.uint8)
        seen = Seen(*kinds, kinds[1] * BLOCK, share, table.first(blocks), np.ones(n, np.uint8))
        words, masks = np.zeros(n, np.uint8), np.ones(n, np.uint64)
        none = np.zeros(0, np.int64)
        list(source._apply(Look(blocks, words, masks, 0.0, none, 0.0, False, words > 0), seen, 1.0))

    slow = np.flatnonzero(~table.fast(np.arange(table.count)))
    slow = slow[~table.listed(slow)][:8]
    monkeypatch.setattr(idle_choice, "MOST_AROUND", 5)
    rise(slow)
    assert chooser._second.tolist() == slow[:5].tolist()
    assert table.listed(slow).tolist() == [False] * 5 + [True] * 3


def test_a_mixture_that_has_become_a_huge_page_is_judged_as_one() -> None:
    """Told by its tails: the look counts for nothing, and the next, at the head, is the first."""
    _, source = looked_at()
    table = source._table
    block = np.flatnonzero(~table.fast(np.arange(table.count)))[:1]
    table.learn(block, np.array([MIXED], np.uint8), np.array([100], np.uint8))
    calm = table.calm(block)
    assert calm > 0
    one, huge = np.ones(1, np.uint16), np.array([HUGE], np.uint8)
    none, masks = np.zeros(0, np.int64), np.array([2**64 - 1], np.uint64)
    for word, share in ((3, 0), (0, 255)):
        pfn = table.first(block)[: int(not word)]
        seen = Seen(
            huge, one, one * BLOCK, np.array([share], np.uint8), pfn, np.ones(len(pfn), np.uint8)
        )
        words = np.array([word], np.uint8)
        look = Look(block, words, masks, 0.0, none, 0.0, False, np.zeros(1, bool))
        list(source._apply(look, seen, 1.0))
        assert table.share(block) == share
        assert table.calm(block) == (calm if word else 0)


def test_what_waits_in_a_crowd_for_a_full_look_gets_a_sparse_one() -> None:
    _, source = looked_at()
    every = np.arange(source._table.count)
    source._active.add(every[~source._table.listed(every)], 1)
    waiting = len(source._active) * BLOCK
    assert len(source._chooser.next("sweep", waiting, 1)[0]) == 0
    assert len(source._chooser.next("sweep", waiting / 100, 1)[0]) > 0
    source._table.release(every)
    assert len(source._chooser.next("sweep", waiting, 2, alone=True)[0]) > 0


def test_cold_memory_is_looked_at_as_well() -> None:
    """Or nothing could ever be demoted."""
    host = guest()
    source = sampler(host)
    seen: set[int] = set()
    for _ in range(20):
        seen |= set(looked(sample(host, source, 0.1)).tolist())
    cold = pages_of(host, 0)
    assert len(seen & set(cold.tolist())) > 0.9 * len(cold)


# -- the window ------------------------------------------------------------------------------------


def drive(tuner: WindowTuner, active: object, total: int, seconds: float, mixed: float) -> None:
    """Calls a second apart; `active` is a function of the window in effect."""
    now = 0.0
    while now < seconds:
        pages = active(tuner.effective(1.0))  # type: ignore[operator]
        tuner.note(total, pages, mixed * pages)
        tuner.step(now, 1.0, total)
        now += 1.0


def test_a_window_that_shows_most_of_the_machine_gets_shorter() -> None:
    tuner = WindowTuner(0.2, 30.0, 100_000)
    drive(tuner, lambda w: 1e6 * (1 - np.exp(-3 * w)), 1_000_000, 60, 1.0)
    assert tuner.window == pytest.approx(0.2)


def test_a_window_grows_until_enough_is_seen() -> None:
    tuner = WindowTuner(0.2, 30.0, 100_000)
    drive(tuner, lambda w: 30_000 * w, 1_000_000, 600, 1.0)
    assert 1.5e5 <= 30_000 * tuner.effective(1.0) <= 2.1e5 or tuner.window == 30.0


def test_a_sharp_picture_leaves_the_window_alone() -> None:
    tuner = WindowTuner(0.2, 30.0, 100_000)
    drive(tuner, lambda w: 16_384.0, 1_000_000, 300, 0.01)
    assert tuner.effective(1.0) == 1.0


def test_a_longer_window_that_shows_no_more_is_given_up() -> None:
    tuner = WindowTuner(0.2, 30.0, 100_000)
    windows: list[float] = []

    def active(window: float) -> float:
        windows.append(window)
        return 16_384.0

    drive(tuner, active, 1_000_000, 600, 1.0)
    assert max(windows) <= 1.6
    assert np.mean(np.array(windows) > 1.1) < 0.2


@pytest.mark.parametrize("begin", [0.0, 100.0, 600.0])
@pytest.mark.parametrize(("found", "held"), [(0.0, 20.0), (35.0, 55.0), (600.0, 60.0)])
def test_the_window_stays_while_hot_blocks_are_found_but_not_for_ever(
    begin: float, found: float, held: float
) -> None:
    """Until `begin` the picture is sharp and nothing is found."""
    tuner = WindowTuner(0.2, 30.0, 100_000)
    now = 0.0
    while tuner.window == 1.0:
        tuner.note(1_000_000, 16_384.0, 16_384.0 if now >= begin else 0.0)
        tuner.step(now, 1.0, 1_000_000, found=begin <= now <= begin + found)
        now += 1.0
    assert now - begin == pytest.approx(held, abs=6.0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0.1, 5))
def test_the_window_stays_within_its_bounds(actives: list[float], gap: float) -> None:
    tuner = WindowTuner(0.3, 7.0, 100_000)
    for number, active in enumerate(actives):
        tuner.note(1_000_000, active, active)
        tuner.step(number * gap, gap, 1_000_000)
        assert 0.3 <= tuner.window <= 7.0


def test_a_window_of_several_cycles_is_waited_for() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="100MiB", accesses=1e-6),), folios={})
    source = sampler(host, window=Window(min="3s", max="3.1s"))
    spans = [batch.t1 - batch.t0 for _ in range(12) for batch in sample(host, source)]
    assert len(spans) >= 3
    assert min(spans) > 2.4
    assert max(spans) == pytest.approx(3.0, abs=0.6)


def test_a_window_much_shorter_than_a_cycle_is_waited_for_within_the_call() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="100MiB", accesses=1e-6),), folios={})
    source = sampler(host, window=Window(min="100ms", max="200ms"))
    sample(host, source)
    sample(host, source)
    spans = [batch.t1 - batch.t0 for _ in range(5) for batch in sample(host, source)]
    assert spans
    assert max(spans) < 0.3


@pytest.mark.parametrize("every", [1, 4])
def test_the_wait_for_a_second_look_is_what_blocks_that_have_become_hot_really_wait(
    every: int,
) -> None:
    """Full looks are begun in one of so many calls."""
    spans = [Span(0, 0, 512 * 100), Span(1, 512 * 100, 512 * 10_000)]
    table = BlockTable(spans, [0])
    active = Active(table)
    came: dict[int, int] = {}
    waits: list[int] = []
    for turn in range(300):
        new = np.arange(100 + 10 * turn, 110 + 10 * turn)
        table.learn(new, np.full(10, SMALL, np.uint8), np.full(10, 255, np.uint8))
        active.add(new, turn)
        came |= dict.fromkeys(new.tolist(), turn)
        # Ten blocks' worth in a call; from time to time nothing can be paid for.
        if turn % every:
            continue
        paid = 0.0 if turn % 8 < 3 and every == 1 else 5200.0 * 8 / 5 / SLOW_SHARE
        chosen = active.choose(turn, paid * every)
        waits += [turn - came[block] + 1 for block in chosen.tolist()]
        table.release(chosen)
    assert active.wait == pytest.approx(np.mean(waits[-1000:]), rel=0.3)


def looked_at() -> tuple[SimulatedHost, PageIdleSampler]:
    """128 MiB of small pages, all of them accessed, and a sampler that knows them."""
    host = machine(workloads=(Workload(kind="uniform", size="128MiB", accesses=1e8),), folios={})
    source = sampler(host)
    for _ in range(4):
        sample(host, source)
    return host, source


def test_frames_that_were_moved_away_are_not_taken_for_hot_ones() -> None:
    """A free frame reads as accessed, and a block that was hot as a whole would be believed."""
    host, source = looked_at()
    frames = pages_of(host, 0)
    frames = frames[host.flags(frames) & KPF.LRU != 0]
    where = host.machine.frames
    node = where.node[where.locate(frames)].astype(np.int32)
    result = host.move_phys_pages(frames, 1 - node, node, MoveOption(0))
    gone = frames[result.status == 1 - node]
    assert len(gone) > 1000
    source.forget(gone)
    for _ in range(4):
        assert not np.isin(gone, looked(sample(host, source))).any()


def test_a_block_that_was_moved_away_and_has_filled_again_is_seen_in_full() -> None:
    host, source = looked_at()
    gone = pages_of(host, 0)
    host.exit(0)
    source.forget(gone)
    host.start(0)
    heads = set(pages_of(host, 0).tolist())
    for _ in range(3):
        seen = sample(host, source)
    assert len(heads & set(accessed(seen).tolist())) > 0.95 * len(heads)


def test_batches_are_sorted_wherever_a_round_begins() -> None:
    """Huge pages are looked at by words; a first call that got no further than the middle."""
    host = machine(
        workloads=(Workload(kind="uniform", size="128MiB", accesses=1e8),), folios={"2MiB": "100%"}
    )
    source = sampler(host)
    for budget in (0.002, PLENTY, PLENTY, PLENTY):
        for batch in sample(host, source, budget):
            assert (np.diff(batch.pfn.astype(np.int64)) > 0).all()
