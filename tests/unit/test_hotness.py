# SPDX-License-Identifier: Apache-2.0
"""Heat: what looks leave behind, the histogram, the search; against a plain model."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierd.host import NO_PFN, Span, frames_from
from tierd.hotness import (
    CHUNK,
    LEVELS,
    HeatMap,
    heatmap,
    level_rate,
    rate,
    rate_bound,
    recent,
    store,
)
from tierd.hotness.search import READS
from tierd.hotness.state import (
    CHANGING,
    KNOWN_FROM,
    LEVEL_EDGES,
    PHASES,
    Q_SHIFT,
    STATES,
    phase_of,
    successors,
    transitions,
)

SPANS = (
    Span(0, 1000, 1500),
    Span(0, CHUNK - 100, CHUNK + 300),
    Span(1, 3 * CHUNK, 3 * CHUNK + 800),
)


def frames(spans: tuple[Span, ...] = SPANS) -> np.ndarray:
    return np.concatenate([np.arange(s.start, s.end, dtype=np.uint64) for s in spans])


def look(heat: HeatMap, pfn: np.ndarray, hit: np.ndarray) -> None:
    heat.tick()
    heat.observe(pfn, hit.astype(np.uint8))


def recount(heat: HeatMap, node: int, spans: tuple[Span, ...] = SPANS) -> np.ndarray:
    pfn = np.concatenate([frames((s,)) for s in spans if s.node == node])
    q = heat.states(pfn) >> Q_SHIFT
    return np.bincount(np.searchsorted(LEVEL_EDGES, q, side="right") - 1, minlength=LEVELS)


HOTTEST = level_rate(LEVELS)


def follow(outcomes: str, hazard: int = 0) -> int:
    """State of a frame after looks: 1 accessed, 0 idle."""
    state = 0
    for number, outcome in enumerate(outcomes):
        state = int(transitions(phase_of(number), hazard, hazard)[int(outcome) * STATES + state])
    return state


def test_a_frame_is_unknown_until_it_is_looked_at() -> None:
    heat = HeatMap(SPANS)
    assert heat.histogram((0, 1))[0] == heat.frames == len(frames())
    pfn = np.array([1000, 1001], np.uint64)
    look(heat, pfn, np.array([0, 1]))
    assert (heat.states(pfn) >= KNOWN_FROM).all()
    assert heat.states(np.array([1002, 5], np.uint64)).tolist() == [0, 0]
    assert heat.histogram((0,))[0] == 898


@pytest.mark.parametrize("hit", [0, 1])
@pytest.mark.parametrize("phase", range(PHASES))
def test_no_look_makes_a_frame_unknown_and_one_step_keeps_the_order(hit: int, phase: int) -> None:
    for hazard in range(len(CHANGING)):
        table = transitions(phase, hazard, hazard)[hit * STATES : (hit + 1) * STATES]
        assert (table >= KNOWN_FROM).all()
        known = np.arange(KNOWN_FROM, STATES, dtype=np.uint16)
        after = table[known]
        assert ((after & 15) == (((known & 15) << 1 | hit) & 15)).all()
        step = after.astype(int) >> Q_SHIFT
        before = known.astype(int) >> Q_SHIFT
        assert (step >= before).all() if hit else (step <= before).all()


@pytest.mark.parametrize("phase", range(PHASES))
def test_successors_are_those_of_the_table(phase: int) -> None:
    rng = np.random.default_rng(phase)
    state = rng.integers(0, STATES, 4000).astype(np.uint16)
    state[:100] = rng.integers(0, KNOWN_FROM, 100)
    hit = rng.random(len(state)) < 0.5
    for hazard in range(len(CHANGING)):
        table = transitions(phase, hazard, len(CHANGING) - 1 - hazard)
        after = successors(state, hit, phase, hazard, len(CHANGING) - 1 - hazard)
        assert np.array_equal(after, table[hit * STATES + state])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.98])
def test_the_share_settles_at_the_true_one(share: float) -> None:
    rng = np.random.default_rng(3)
    heat = HeatMap((Span(0, 0, 4096),))
    pfn = np.arange(4096, dtype=np.uint64)
    for _ in range(300):
        look(heat, pfn, rng.random(4096) < share)
    q = 1 - np.exp(-rate(heat.states(pfn)))
    assert q.mean() == pytest.approx(share, abs=0.02)
    assert q.std() < 0.06


def test_a_change_of_mind_is_believed_after_a_run_that_chance_cannot_explain() -> None:
    cold = follow("0" * 100)
    assert rate(np.array([cold], np.uint16))[0] < 0.02
    assert rate(np.array([follow("0" * 100 + "11")], np.uint16))[0] > 0.5
    assert rate(np.array([follow("1" * 100 + "000")], np.uint16))[0] < 0.5 * HOTTEST
    assert rate(np.array([follow("0" * 100 + "1")], np.uint16))[0] < 0.1
    mixed = "01" * 50
    before = rate(np.array([follow(mixed)], np.uint16))[0]
    assert rate(np.array([follow(mixed + "1111")], np.uint16))[0] < 1.3 * before


def test_where_much_changes_less_is_believed_of_the_past() -> None:
    rare = "0001" * 30
    steady = rate(np.array([follow(rare + "111")], np.uint16))[0]
    eager = transitions(0, 0, len(CHANGING) - 1)
    state = follow(rare)
    for _ in range(3):
        state = int(eager[STATES + state])
    assert rate(np.array([state], np.uint16))[0] > 1.5 * steady


@given(st.data())
@settings(max_examples=60)
def test_the_histogram_always_counts_every_frame_in_its_level(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    heat = HeatMap(SPANS)
    every = frames()
    for _ in range(data.draw(st.integers(1, 6))):
        some = every[rng.random(len(every)) < rng.random()]
        action = data.draw(st.sampled_from(["look", "look", "forget", "move"]))
        if action == "look":
            look(heat, some, rng.random(len(some)) < 0.5)
        elif action == "forget":
            heat.forget(rng.permutation(some))
        else:
            old, new = np.split(rng.permutation(some)[: len(some) // 2 * 2], 2)
            heat.move(old, np.where(rng.random(len(new)) < 0.1, NO_PFN, new))
    for node in (0, 1):
        assert heat.histogram((node,)).tolist() == recount(heat, node).tolist()


@given(st.integers(0, 2**32), st.integers(1, 400))
@settings(max_examples=60)
def test_the_search_finds_the_hottest_and_the_coldest(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    heat = HeatMap(SPANS)
    pfn = frames()
    share = rng.random(len(pfn)) ** 3
    for _ in range(rng.integers(1, 12)):
        these = rng.random(len(pfn)) < 0.8
        look(heat, pfn[these], (rng.random(len(pfn)) < share)[these])
    state = heat.states(pfn)
    node = np.where(pfn < 2 * CHUNK, 0, 1)
    for nodes in ((0,), (1,), (0, 1)):
        mine = np.isin(node, nodes)
        hot = np.sort(state[mine & (recent(state) >= 2)])[::-1]
        found = heat.search.hottest(nodes, count)
        assert found.state.tolist() == hot[:count].tolist()
        assert (heat.states(found.pfn) == found.state).all()
        cold = np.sort(state[mine & (state >= KNOWN_FROM)])
        assert heat.search.coldest(nodes, count).state.tolist() == cold[:count].tolist()


def test_a_search_that_may_read_a_part_finds_as_many_there_and_goes_on() -> None:
    heat = HeatMap((Span(0, 0, 16 * CHUNK),))
    every = np.arange(16 * CHUNK, dtype=np.uint64)
    hottest, hot = every % 8192 == 0, every % 1024 == 0  # 16 and 128 in each chunk
    for number in range(8):
        look(heat, every, hottest | hot & (number % 2 == 0))
    heat.search.limit = 3 * READS * CHUNK
    seen: set[int] = set()
    for _ in range(16):
        found = heat.search.hottest((0,), 100)
        assert len(found) == 100
        assert np.count_nonzero(found.pfn % 8192 == 0) == 48
        seen.update(np.unique(found.pfn // CHUNK).tolist())
    assert seen == set(range(16))


def test_what_has_just_become_hot_is_found_before_its_turn() -> None:
    """In one of 32 chunks, of which a search reads three; all the others hold as much."""
    heat = HeatMap((Span(0, 0, 32 * CHUNK),))
    every = np.arange(32 * CHUNK, dtype=np.uint64)
    for _ in range(8):
        look(heat, every, every % 1024 == 0)
    heat.search.limit = 3 * READS * CHUNK
    for _ in range(32):  # until what there was at first has been read
        heat.search.hottest((0,), 100)
        heat.search.begin()
    for where in (25, 3, 17):
        new = (every // CHUNK == where) & (every % CHUNK < 100)
        for _ in range(3):
            look(heat, every[new], np.ones(100, bool))
        found = heat.search.hottest((0,), 500)
        assert np.isin(every[new & (every % 1024 > 0)], found.pfn).all()
        assert len(np.unique(found.pfn // CHUNK)) == 3


def test_an_aligned_search_finds_what_may_be_the_head_of_a_large_folio() -> None:
    heat = HeatMap(SPANS)
    look(heat, frames(), np.zeros(len(frames())))
    assert not len(heat.search.coldest((0, 1), 10_000, align=64))
    heads = frames() % 64 == 0
    heat.forget(frames()[~heads & (frames() % 128 < 64)])
    found = heat.search.coldest((0, 1), 10_000, align=64)
    assert sorted(found.pfn.tolist()) == [f for f in frames().tolist() if f % 128 == 0]


def test_heat_follows_a_page_and_leaves_its_old_frame() -> None:
    heat = HeatMap(SPANS)
    old, new = np.array([1400, 1003], np.uint64), np.array([3 * CHUNK + 7, NO_PFN], np.uint64)
    look(heat, np.sort(old), np.array([1, 1]))
    state = heat.states(old)
    heat.move(old, new)
    assert heat.states(old).tolist() == [0, 0]
    assert heat.states(new).tolist() == [state[0], 0]


def test_frames_of_runs_follow_each_other() -> None:
    first, count = np.array([512, 7, 64], np.uint64), np.array([3, 0, 1], np.uint32)
    assert frames_from(first, count).tolist() == [512, 513, 514, 64]
    assert not len(frames_from(first[:0], count[:0]))


def test_regions_speak_for_their_frames_but_not_past_the_next() -> None:
    heat = HeatMap((Span(0, 0, 100),))
    heat.observe(np.array([0, 4, 50], np.uint64), np.array([1, 0, 1], np.uint8), granularity=16)
    state = heat.states(np.arange(100, dtype=np.uint64))
    hot = np.flatnonzero(recent(state)).tolist()
    assert hot == [*range(4), *range(50, 66)]
    assert np.flatnonzero(state).tolist() == [*range(20), *range(50, 66)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("learn", [False, True])
@given(st.integers(0, 2**32), st.sampled_from([1, 40, 300]))
@settings(max_examples=10, deadline=None)
def test_few_frames_of_many_chunks_are_entered_as_those_of_each_are(
    packed: bool, learn: bool, seed: int, each: int
) -> None:
    rng = np.random.default_rng(seed)
    spans = (Span(0, 77, 3 * CHUNK + 5), Span(1, 4 * CHUNK, 7 * CHUNK))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "FEW", 0 if packed else 64)
        at_once, by_chunk = HeatMap(spans), HeatMap(spans)
    for _ in range(4):
        # Some outside all spans, some in the chunk of five frames; of one chunk so many that it is
        # worked on apart.
        some = rng.integers(0, 8 * CHUNK, 8 * each), rng.integers(CHUNK, 2 * CHUNK, 5000)
        pfn = np.concatenate((*some, 3 * CHUNK + rng.integers(0, 5, 2)))
        pfn = np.unique(pfn).astype(np.uint64)
        weight = (rng.random(len(pfn)) < 0.4).astype(np.uint8)
        at_once.tick()
        by_chunk.tick()
        seen = at_once.observe(pfn, weight, learn=learn)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(heatmap, "APART", 1)
            apart = by_chunk.observe(pfn, weight, learn=learn)
        for node in (0, 1):
            told, alone = (
                np.sum([astuple(one)[1:] for one in every if one.node == node], axis=0)
                for every in (seen, apart)
            )
            assert told == pytest.approx(alone)
            assert np.array_equal(at_once.histogram([node]), by_chunk.histogram([node]))
        assert np.array_equal(at_once.states(pfn), by_chunk.states(pfn))
        assert np.array_equal(at_once._store.levels, by_chunk._store.levels)
        assert at_once._store.gained == pytest.approx(by_chunk._store.gained, abs=1e-4)
        assert at_once.forecast._new == pytest.approx(by_chunk.forecast._new)


def test_a_search_knows_whether_it_has_read_all_there_was() -> None:
    heat = HeatMap([Span(0, 0, 8 * CHUNK)])
    heat.search.hottest([0], 100)
    assert heat.search.exhausted  # nothing is known
    pfn = np.arange(0, 8 * CHUNK, 16, dtype=np.uint64)
    hot = pfn < CHUNK // 2
    for _ in range(4):
        look(heat, pfn, hot)
    heat.search.hottest([0], 10)
    assert not heat.search.exhausted  # there are more than that
    for _ in range(4):
        look(heat, pfn, np.zeros(len(pfn), bool))
    assert not len(heat.search.hottest([0], 10_000).pfn)
    assert heat.search.exhausted
    assert not len(heat.search.hottest([0], 10).pfn)
    assert not heat.search.exhausted  # those that were once the hottest are all in one chunk
    heat.search.limit = 2 * CHUNK * READS
    assert not len(heat.search.hottest([0], 10_000).pfn)
    assert not heat.search.exhausted


@pytest.mark.parametrize("dense", [False, True])
def test_neighbours_are_learned_from_full_looks_at_a_few_blocks_not_from_sparse_ones(
    dense: bool,
) -> None:
    heat = HeatMap([Span(0, 0, 4 * CHUNK)])
    step = 1 if dense else 8
    block = np.arange(0, 512 * step * 2, step)
    pfn = (np.arange(3)[:, None] * CHUNK + block).reshape(-1).astype(np.uint64)
    for _ in range(4):
        look(heat, pfn, np.arange(len(pfn)) % 3 == 0)
    assert bool(heat._company._around.any()) is dense


def test_frames_accessed_again_are_counted() -> None:
    heat, pfn = HeatMap(SPANS), frames()[:8]
    outcomes = np.array([[0, 0, 1, 1, 0, 1, 0, 1], [0] * 8, [0] * 8, [1, 0, 1, 0, 0, 1, 0, 1]])
    told = []
    for hit in outcomes:
        heat.tick()
        told += heat.observe(pfn, hit.astype(np.uint8))
    assert [each.again for each in told] == [0, 0, 0, 3]
    heat.tick()
    (seen,) = heat.observe(pfn, np.ones(8, np.uint8))
    assert seen.again == 4  # the first look is too long ago, but not those accessed in the last


def test_nothing_is_learned_in_a_pass_without_looks() -> None:
    heat = HeatMap(SPANS)
    for _ in range(3):
        look(heat, frames(), np.ones(len(frames()), bool))
    heat.tick()
    before = heat.forecast._changed
    for _ in range(5):
        heat.tick(cooling=0.5)
    assert heat.forecast._changed == before
    heat.observe(frames()[:10], np.ones(10, np.uint8))
    heat.tick(cooling=0.5)
    assert heat.forecast._changed > before


def test_what_was_expected_and_met_is_told_of_well_known_frames() -> None:
    heat = HeatMap((Span(0, 0, 1000),))
    pfn = np.arange(1000, dtype=np.uint64)
    rng = np.random.default_rng(1)
    for _ in range(60):
        look(heat, pfn, rng.random(1000) < 0.8)
    heat.tick()
    (seen,) = heat.observe(pfn, (pfn < 400).astype(np.uint8))
    assert (seen.looked, seen.accessed) == (1000, 400)
    assert 900 <= seen.settled <= 1000
    assert seen.expected == pytest.approx(0.8 * seen.settled, rel=0.05)
    assert 350 <= seen.met <= 400


@given(st.integers(KNOWN_FROM, STATES - 1), st.floats(0.1, 6))
def test_bounds_enclose_the_rate_and_grow_with_it(state: int, errors: float) -> None:
    one = np.array([state], np.uint16)
    assert rate_bound(one, -errors)[0] <= rate(one)[0] + 1e-9 <= rate_bound(one, errors)[0] + 2e-9
    hotter = np.array([min(state + 64, STATES - 1)], np.uint16)
    if (hotter[0] >> 4) & 3 == (state >> 4) & 3:
        assert rate_bound(hotter, -errors)[0] >= rate_bound(one, -errors)[0]


def test_levels_are_ordered_and_cover_all_heat() -> None:
    rates = [level_rate(level) for level in range(1, LEVELS)]
    assert rates == sorted(rates)
    assert LEVELS <= 64
