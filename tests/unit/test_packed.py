# SPDX-License-Identifier: Apache-2.0
"""States take memory by the folio and are the same as in a plain array."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierd.host import NO_PFN, Span
from tierd.hotness import CHUNK, Draws, HeatMap, store
from tierd.hotness.packed import BLOCK, GROUP, MOST_ROWS, ROWS, Packed


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small machines are packed, too."""
    monkeypatch.setattr(store, "FEW", 0)


def packed(*frames: int) -> Packed:
    return Packed(np.array(frames), np.zeros(len(frames), np.int64))


def check(states: Packed, chunk: int, model: np.ndarray) -> None:
    """Every way to read them tells the same."""
    offset = np.random.default_rng(1).permutation(len(model))
    assert np.array_equal(states.whole(chunk), model)
    assert np.array_equal(states.cells(chunk)[states.find(chunk, offset)], model[offset])
    where = states.scattered(np.full(len(offset), chunk), offset)
    assert np.array_equal(states.all[where], model[offset])
    for low, high in ((64, (1 << 16) - 1), (64, 500), (30_000, 50_000)):
        where, found = states.between(chunk, low, high)
        assert np.array_equal(where, np.flatnonzero((model >= low) & (model <= high)))
        assert np.array_equal(found, model[where])
    group = np.arange(-1, len(model) // GROUP + 1)
    words, there = states.groups(chunk, group)
    assert there.sum() == len(model) // GROUP
    whole = model[: len(model) // GROUP * GROUP].reshape(-1, GROUP)
    assert np.array_equal(words[there].view(np.uint16), whole)


def some(rng: np.random.Generator, blocks: int, tails: float) -> np.ndarray:
    """Offsets of the first frames of some blocks, and of other frames of a part of these."""
    block = rng.permutation(ROWS)[:blocks]
    own = block[rng.random(blocks) < tails]
    inner = rng.integers(0, BLOCK, (len(own), 5))
    return np.unique(np.concatenate((block * BLOCK, (own[:, None] * BLOCK + inner).ravel())))


@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(
            st.sampled_from(["put", "scatter", "clear", "replace"]),
            st.sampled_from([1, 9, 60, 200, ROWS]),
            st.sampled_from([0.0, 0.3, 1.0]),
        ),
        min_size=1,
        max_size=8,
    ),
)
@settings(max_examples=60)
def test_states_are_those_of_a_plain_array(seed: int, steps: list[tuple[str, int, float]]) -> None:
    rng = np.random.default_rng(seed)
    states = packed(CHUNK, CHUNK, CHUNK)
    model, other = np.zeros((2, CHUNK), np.uint16)
    for step, blocks, tails in steps:
        offset = some(rng, blocks, tails)
        value = rng.integers(64, 1 << 16, len(offset)).astype(np.uint16)
        if step == "put":
            states.cells(1)[states.room(1, offset)] = value
            model[offset] = value
        elif step == "scatter":
            model[offset] = other[offset] = value
            chunk, twice = np.repeat([1, 2], len(offset)), np.tile(offset, 2)
            states.all[states.scattered_room(chunk, twice)] = np.tile(value, 2)
            check(states, 2, other)
        elif step == "clear":
            # All of some blocks, as when memory is freed, and a few frames elsewhere.
            freed = (offset[:8, None] // BLOCK * BLOCK + np.arange(BLOCK)).ravel()
            offset = np.unique(np.concatenate((offset[8:], freed)))
            model[offset] = 0
            states.clear(1, offset, np.count_nonzero(model))
        else:
            model[:] = 0
            model[offset] = value
            states.replace(1, model.copy(), np.count_nonzero(model))
        check(states, 1, model)
    assert not states.whole(0).any()


@given(st.integers(1, 2000), st.integers(0, GROUP - 1), st.integers(0, 2**32))
@settings(max_examples=30)
def test_a_chunk_that_is_cut_short_is_plain(frames: int, before: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = Packed(np.array([frames, CHUNK]), np.array([before, 0]))
    model = rng.integers(0, 1 << 16, frames).astype(np.uint16)
    states.replace(0, model, np.count_nonzero(model))
    offset = rng.permutation(frames)[: frames // 2]
    model[offset] = 0
    states.clear(0, offset, np.count_nonzero(model))
    assert np.array_equal(states.whole(0), model)
    assert np.array_equal(
        states.between(0, 1, 1 << 15)[0], np.flatnonzero((model >= 1) & (model <= 1 << 15))
    )
    _, there = states.groups(0, np.arange(-1, frames // GROUP + 2))
    assert there.sum() == max(frames - before, 0) // GROUP
    assert not states.whole(1).any()


def test_frames_in_a_row_are_put_where_they_are_found() -> None:
    states = packed(CHUNK)
    first = slice(3 * BLOCK, 4 * BLOCK)
    states.cells(0)[states.room(0, first)] = 70
    assert not np.any(states.whole(0)[: 3 * BLOCK])
    assert np.all(states.whole(0)[first] == 70)
    whole = slice(0, CHUNK)
    states.cells(0)[states.room(0, whole)] = 80  # plain now
    assert states.room(0, whole) == whole
    assert np.all(states.whole(0) == 80)


def used(states: Packed) -> int:
    """Rows of the first chunk."""
    return int(states._rows[0]) if states._sheet[0] else ROWS


def test_a_chunk_is_plain_only_while_that_is_no_waste() -> None:
    states = packed(CHUNK)
    tails = np.arange(ROWS) * BLOCK + 1
    states.room(0, tails[:MOST_ROWS])
    assert used(states) == MOST_ROWS
    states.cells(0)[states.room(0, tails)] = 99
    assert used(states) == ROWS
    assert np.array_equal(np.flatnonzero(states.whole(0)), tails)
    states.clear(0, tails[:9], ROWS - 9)
    assert used(states) == ROWS  # too little to look for it
    states.clear(0, tails[9:140], ROWS - 140)
    assert used(states) == ROWS - 140
    assert np.array_equal(np.flatnonzero(states.whole(0)), tails[140:])


def test_rows_in_which_nothing_is_known_any_more_are_used_again() -> None:
    states = packed(CHUNK)
    for block in range(ROWS):  # small folios in one block, then in the next
        offset = block * BLOCK + np.arange(BLOCK)
        states.cells(0)[states.room(0, offset[1:])] = 99
        states.clear(0, offset[2:], 1)
        states.cells(0)[states.room(0, offset[5:6])] = 77
        states.clear(0, offset[1:2], 1)
        states.clear(0, offset[5:6], 0)
    assert used(states) == 0
    assert not states.whole(0).any()


def test_a_row_that_is_given_up_to_make_room_is_not_written_to() -> None:
    """Of the frames that room is made for, some may be in it."""
    states = packed(CHUNK)
    every = np.arange(MOST_ROWS) * BLOCK + 1
    states.cells(0)[states.room(0, every)] = 99
    states._loose[0] = -CHUNK  # not searched for yet
    states.clear(0, every[:9], MOST_ROWS - 9)
    new = np.concatenate((every[5:7], np.arange(MOST_ROWS, MOST_ROWS + 3) * BLOCK + 8))
    states.cells(0)[states.room(0, new)] = 88
    assert used(states) == MOST_ROWS - 9 + 5
    assert np.array_equal(np.flatnonzero(states.whole(0) == 88), new)


def resident(heat: HeatMap) -> int:
    """Bytes of all states that are in memory, as the kernel says."""
    cells = heat._store.packed.all
    first, pages = cells.ctypes.data // mmap.PAGESIZE, cells.nbytes // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(8 * first)
        entries = np.frombuffer(pagemap.read(8 * pages), np.uint64)
    return int(np.count_nonzero(entries >> np.uint64(63))) * mmap.PAGESIZE


def test_a_host_of_huge_pages_takes_a_page_for_256_of_them() -> None:
    frames = 64 * CHUNK
    heat = HeatMap([Span(0, 0, frames)])
    heads = np.arange(0, frames, BLOCK, dtype=np.uint64)
    heat.tick()
    heat.observe(heads, np.zeros(len(heads), np.uint8))
    assert np.all(heat.states(heads) > 0)
    assert resident(heat) <= 64 * mmap.PAGESIZE  # rather than 16 MiB


def test_what_becomes_a_huge_page_gives_its_memory_back() -> None:
    frames = 16 * CHUNK
    heat = HeatMap([Span(0, 0, frames)])
    heat.tick()
    pfn = np.arange(frames, dtype=np.uint64)
    heat.observe(pfn, np.zeros(frames, np.uint8))
    assert resident(heat) == 2 * frames
    # Half of all blocks, then half of the rest, and all but one.
    heat.forget(pfn[(pfn // BLOCK % 2 == 0) & (pfn % BLOCK != 0)])
    assert resident(heat) <= 1.1 * frames
    heat.forget(pfn[(pfn // BLOCK % 4 == 1) & (pfn % BLOCK != 0)])
    assert resident(heat) <= 0.6 * frames
    assert np.count_nonzero(heat.states(pfn)) == frames // 4 + frames * 3 // 4 // BLOCK
    assert heat.histogram([0])[0] == frames - np.count_nonzero(heat.states(pfn))
    heat.forget(pfn[pfn > 0])
    assert resident(heat) == 16 * mmap.PAGESIZE


@pytest.mark.parametrize("each", [8, 32])
def test_rows_of_a_few_frames_are_given_back_too(each: int) -> None:
    """Blocks of large folios, or of which little was looked at."""
    frames = 4 * CHUNK
    heat = HeatMap([Span(0, 0, frames)])
    pfn = np.arange(0, frames, BLOCK // each, dtype=np.uint64)
    heat.tick()
    heat.observe(pfn, np.zeros(len(pfn), np.uint8))
    assert resident(heat) == 2 * frames
    for block in range(0, frames, 8 * BLOCK):  # folios become huge pages, by and by
        these = pfn[(pfn >= block) & (pfn < block + 8 * BLOCK)]
        heat.forget(these[these % BLOCK != 0])
    assert np.count_nonzero(heat.states(pfn)) == frames // BLOCK
    assert resident(heat) <= frames // 4


SHEETS = (Span(0, 0, CHUNK), Span(1, CHUNK, 2 * CHUNK))
PLAIN = tuple(Span(span.node, span.start, span.end - 1) for span in SHEETS)
"""Cut short, chunks are plain always."""

Step = tuple[str, int]


def do(heats: tuple[HeatMap, HeatMap], rng: np.random.Generator, step: str, blocks: int) -> None:
    """The same to both; not to the last word of a chunk, which is not whole in both."""
    block = np.sort(rng.permutation(2 * ROWS)[:blocks])
    frame = block[:, None] * BLOCK + np.arange(BLOCK)
    few = np.unique(block[:, None] * BLOCK + rng.integers(0, BLOCK, (len(block), 8)))
    looked = {"full": frame.ravel(), "heads": frame[:, 0], "few": few, "forget": frame.ravel()}
    pfn = looked.get(step, frame[:, 1:].ravel())
    pfn = pfn[pfn % CHUNK < CHUNK - GROUP].astype(np.uint64)
    hit = (rng.random(len(pfn)) < rng.choice([0.05, 0.5, 0.95])).astype(np.uint8)
    new = rng.permutation(2 * CHUNK)[: len(pfn)].astype(np.uint64)
    new[new % CHUNK >= CHUNK - GROUP] = NO_PFN
    for heat in heats:
        if step == "move":
            heat.move(pfn[::7], new[::7])
        elif step in ("forget", "collapse"):
            heat.forget(pfn)
        else:
            heat.tick()
            heat.observe(pfn, hit)


@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(
            st.sampled_from(["full", "heads", "few", "few", "forget", "collapse", "move"]),
            st.sampled_from([1, 9, 60, 300, 2 * ROWS]),
        ),
        min_size=2,
        max_size=10,
    ),
)
@settings(max_examples=20, deadline=None)
def test_heat_is_the_same_however_it_lies(seed: int, steps: list[Step]) -> None:
    rng = np.random.default_rng(seed)
    heats = sheets, plain = HeatMap(SHEETS), HeatMap(PLAIN)
    pfn = np.arange(2 * CHUNK, dtype=np.uint64)
    for step, blocks in steps:
        do(heats, rng, step, blocks)
        state = sheets.states(pfn)
        assert np.array_equal(state, plain.states(pfn))
        for node in (0, 1):
            levels = [heat.histogram([node]) for heat in heats]
            levels[1][0] += 1
            assert np.array_equal(*levels)
            assert levels[0][0] == np.count_nonzero(state[node * CHUNK :][:CHUNK] == 0)
        for align in (1, 2, 16, 512):
            found = [heat.search.coldest([0, 1], 300, align=align) for heat in heats]
            assert np.array_equal(found[0].pfn, found[1].pfn)
        found = [heat.search.hottest([0, 1], 3000) for heat in heats]
        assert np.array_equal(found[0].pfn, found[1].pfn)
        assert np.array_equal(found[0].state, state[found[0].pfn.astype(np.intp)])
        drawn = sheets.search.pick([0, 1], 50, Draws(1))
        assert np.array_equal(drawn.state, state[drawn.pfn.astype(np.intp)])
        assert np.all(drawn.state > 0)
        asked = np.sort(rng.permutation(CHUNK - GROUP)[:2000])
        around = [heat._company._neighbours(0, asked, state[asked]) for heat in heats]
        assert np.array_equal(*around)


def test_the_coldest_are_not_huge_pages_before_others() -> None:
    """Of the same heat those come first that come first in memory."""
    heat = HeatMap([Span(0, 0, CHUNK)])
    pfn = np.arange(CHUNK, dtype=np.uint64)
    looked = pfn[(pfn // BLOCK % 4 != 3) | (pfn % BLOCK == 0)]
    heat.tick()
    heat.observe(looked, np.zeros(len(looked), np.uint8))
    assert np.array_equal(heat.search.coldest([0], 64).pfn, looked[:64])


def test_a_kernel_without_huge_pages_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory(mmap.mmap):
        def madvise(self, option: int, *part: int) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(mmap, "mmap", Memory)
    assert not packed(CHUNK).whole(0).any()
