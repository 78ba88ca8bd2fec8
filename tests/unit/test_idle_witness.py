# SPDX-License-Identifier: Apache-2.0
"""What a few frames told counts for others only where a look at all frames bears it out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierd.samplers.idle_looks import BLOCK, HUGE, SMALL, WORDS, Seen
from tierd.samplers.idle_witness import AGE, MOST, Witnesses

NONE = np.zeros(1, np.uint64)


def seen(starts: np.ndarray, hit: np.ndarray, kind: int = SMALL) -> Seen:
    """A look at all frames (bool[n, 512]: accessed) of blocks of small pages."""
    k = len(starts)
    return Seen(
        np.full(k, kind, np.uint8),
        np.full(k, BLOCK, np.uint16),
        np.full(k, BLOCK, np.uint16),
        (hit.mean(axis=1) * 255).astype(np.uint8),
        (starts[:, None] + np.arange(BLOCK, dtype=np.uint64)).reshape(-1),
        hit.reshape(-1).view(np.uint8),
    )


def confirm(words: str, at: int) -> list[int]:
    """Words of which the frames count twice, of a block where those with a # were accessed and
    word `at` was before."""
    witnesses = Witnesses()
    block, starts = np.array([7]), np.array([7 * BLOCK], np.uint64)
    witnesses.note(block, np.array([at], np.uint8), NONE, 1)
    hit = np.repeat([each == "#" for each in words], BLOCK // WORDS)
    some, pfn = witnesses.confirm(block, starts, seen(starts, hit[None, :]), 2)
    word, count = np.unique((pfn - starts[0]) // np.uint64(64), return_counts=True)
    assert bool(some[0]) is (len(pfn) > 0)
    assert np.all(count == 64)
    return [int(each) for each in word]


def test_words_in_a_row_with_the_one_that_was_accessed_before_count() -> None:
    assert confirm("########", 3) == list(range(8))
    assert confirm("..###..#", 3) == [2, 3, 4]
    assert confirm("..###..#", 7) == [7]
    assert confirm("........", 3) == []


def test_a_pass_over_the_memory_that_was_at_that_word_is_none() -> None:
    """It goes on from there, and does not come back."""
    assert confirm("...#####", 2) == []


def test_a_few_frames_that_were_not_accessed_are_no_objection_and_do_not_count() -> None:
    witnesses = Witnesses()
    block, starts = np.array([7]), np.array([7 * BLOCK], np.uint64)
    hit = np.ones((1, BLOCK), np.bool_)
    hit[0, [3, 100]] = False
    witnesses.note(block, np.array([0], np.uint8), NONE, 1)
    _, pfn = witnesses.confirm(block, starts, seen(starts, hit), 2)
    assert set((pfn - starts[0]).tolist()) == set(range(BLOCK)) - {3, 100}


def test_the_few_frames_that_were_looked_at_before_do_not_count_again() -> None:
    witnesses = Witnesses()
    block, starts = np.array([7]), np.array([7 * BLOCK], np.uint64)
    mask = np.array([1 << 3 | 1 << 63], np.uint64)
    witnesses.note(block, np.array([2], np.uint8), mask, 1)
    _, pfn = witnesses.confirm(block, starts, seen(starts, np.ones((1, BLOCK), np.bool_)), 2)
    assert set((pfn - starts[0]).tolist()) == set(range(BLOCK)) - {131, 191}


@pytest.mark.parametrize(("calls", "counts"), [(1, True), (AGE, True), (AGE + 1, False)])
def test_what_is_old_does_not_count(calls: int, counts: bool) -> None:
    witnesses = Witnesses()
    block, starts = np.array([7]), np.array([7 * BLOCK], np.uint64)
    witnesses.note(block, np.array([2], np.uint8), NONE, 10)
    told = seen(starts, np.ones((1, BLOCK), np.bool_))
    assert bool(witnesses.confirm(block, starts, told, 10 + calls)[0][0]) is counts


def test_what_was_dropped_does_not_count() -> None:
    witnesses = Witnesses()
    blocks = np.array([7, 8])
    starts = (blocks * BLOCK).astype(np.uint64)
    witnesses.note(blocks, np.zeros(2, np.uint8), np.zeros(2, np.uint64), 1)
    witnesses.drop(np.array([8, 9]))
    told = seen(starts, np.ones((2, BLOCK), np.bool_))
    assert witnesses.confirm(blocks, starts, told, 2)[0].tolist() == [True, False]


def test_a_huge_page_has_one_bit_and_needs_no_witness() -> None:
    witnesses = Witnesses()
    block, starts = np.array([7]), np.array([7 * BLOCK], np.uint64)
    witnesses.note(block, np.array([0], np.uint8), NONE, 1)
    told = seen(starts, np.ones((1, BLOCK), np.bool_), HUGE)
    some, pfn = witnesses.confirm(block, starts, told, 2)
    assert not some.any()
    assert not len(pfn)


@given(
    noted=st.dictionaries(st.integers(0, 40), st.integers(0, WORDS - 1)),
    looked=st.sets(st.integers(0, 40), min_size=1),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_counts_was_noted_and_looked_at_and_accessed_and_does_so_once(
    noted: dict[int, int], looked: set[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    witnesses = Witnesses()
    chosen = np.array(list(noted), np.int64)
    masks = np.zeros(len(chosen), np.uint64)
    witnesses.note(chosen, np.array(list(noted.values()), np.uint8), masks, 1)
    blocks = np.array(sorted(looked), np.int64)
    starts = (blocks * BLOCK).astype(np.uint64)
    words = rng.random((len(blocks), WORDS)) < 0.7
    told = seen(starts, np.repeat(words, BLOCK // WORDS, axis=1))
    some, pfn = witnesses.confirm(blocks, starts, told, 2)
    assert np.all(np.diff(pfn.astype(np.int64)) > 0)
    assert np.isin(pfn, told.pfn[told.weight > 0]).all()
    for row, block in enumerate(blocks.tolist()):
        expected = block in noted and bool(words[row, noted[block]])
        assert bool(some[row]) is expected
        assert bool(np.any(pfn // np.uint64(BLOCK) == np.uint64(block))) is expected
    again, none = witnesses.confirm(blocks, starts, told, 2)
    assert not again.any()
    assert not len(none)


def test_the_memory_is_bounded_and_keeps_the_newest() -> None:
    witnesses = Witnesses()
    for at in range(0, 3 * MOST, MOST // 2):
        blocks = np.arange(at, at + MOST // 2)
        masks = np.zeros(len(blocks), np.uint64)
        witnesses.note(blocks, np.zeros(len(blocks), np.uint8), masks, at)
        witnesses.note(blocks, np.ones(len(blocks), np.uint8), masks, at)  # the newer word holds
    assert len(witnesses._block) == MOST
    assert witnesses._block.min() == 2 * MOST
    assert np.all(witnesses._word == 1)
