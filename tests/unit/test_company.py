# SPDX-License-Identifier: Apache-2.0
"""What a frame's neighbours say of it counts as far as it has been right so far."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.policy import workloads
from bench.policy.core import Tierd
from bench.policy.run import play
from tierd.engine import scout
from tierd.host import Span
from tierd.hotness import CHUNK, HeatMap
from tierd.hotness.company import KINDS, MEMORY, MOST, Company
from tierd.hotness.forecast import Forecast
from tierd.hotness.packed import GROUP
from tierd.hotness.store import Store

FRAMES = 16_384
PFN = np.arange(FRAMES, dtype=np.uint64)
RATE = np.where(PFN // 1024 % 4 == 0, 0.3, 0.03)
"""Accesses per window, in stretches of 4 MiB."""
SCATTERED = np.random.default_rng(7).permutation(RATE)


def look(
    heat: HeatMap, rate: np.ndarray, rng: np.random.Generator, pfn: np.ndarray, **options: Any
) -> None:
    """One pass over frames that are accessed at these rates."""
    heat.tick()
    hit = rng.random(len(pfn)) < -np.expm1(-rate)
    for at in range(0, len(pfn), 32_768):
        heat.observe(pfn[at : at + 32_768], hit[at : at + 32_768].astype(np.uint8), **options)


def watched(*rates: np.ndarray, looks: int = 20, seed: int = 1, **options: Any) -> HeatMap:
    """Nodes whose frames are accessed at these rates, each a `FRAMES` long."""
    rng = np.random.default_rng(seed)
    bases = [node * CHUNK for node in range(len(rates))]
    heat = HeatMap([Span(n, base, base + FRAMES) for n, base in enumerate(bases)])
    pfn = np.concatenate([PFN + np.uint64(base) for base in bases])
    for _ in range(looks):
        look(heat, np.concatenate(rates), rng, pfn, **options)
    heat.tick()
    return heat


def neighbours(heat: HeatMap, pfn: np.ndarray = PFN) -> np.ndarray:
    return heat.neighbours(pfn, heat.states(pfn))


def error(heat: HeatMap, rate: np.ndarray, pfn: np.ndarray = PFN) -> tuple[float, float]:
    """Mean squared errors of what is expected of frames: by their own states, with neighbours."""
    own = heat.forecast.rate(heat.states(pfn))
    both = own * neighbours(heat, pfn)
    return float(np.mean((own - rate) ** 2)), float(np.mean((both - rate) ** 2))


def test_neighbours_that_are_used_alike_tell_what_a_frame_s_own_looks_cannot() -> None:
    heat = watched(RATE)
    own, both = error(heat, RATE)
    assert both < 0.5 * own
    idle = heat.states(PFN) & 15 == 0
    factor = neighbours(heat)
    assert np.median(factor[idle & (RATE > 0.1)]) > 1.2 * np.median(factor[idle & (RATE < 0.1)])


@pytest.mark.parametrize("hot", [0.3, 1.0, 3.0, 5.0])
def test_neighbours_that_have_nothing_to_do_with_one_another_do_not_count(hot: float) -> None:
    heat = watched(np.where(SCATTERED > 0.1, hot, hot / 10))
    assert np.all(neighbours(heat) == 1.0)


def test_what_is_accessed_all_the_time_is_not_thought_to_be_accessed_more() -> None:
    rate = RATE * 10
    heat = watched(rate)
    own, both = error(heat, rate)
    assert both < 1.5 * own
    hot = rate > 1
    assert np.percentile(neighbours(heat)[hot], 99) < 1.2


def test_each_node_has_its_own_neighbours() -> None:
    """Where pages were brought together from everywhere, they say nothing."""
    heat = watched(SCATTERED, RATE)
    assert np.all(neighbours(heat) == 1.0)
    there = neighbours(heat, PFN + np.uint64(CHUNK))
    assert np.percentile(there, 99) > 1.5 * np.percentile(there, 1)


def test_a_pass_over_a_few_hot_frames_changes_little() -> None:
    """The sampler looks again and again at what has just become hot."""
    heat = watched(RATE)
    before = neighbours(heat)
    for _ in range(8):
        look(heat, RATE[:512], np.random.default_rng(5), PFN[:512])
    heat.tick()
    elsewhere = PFN >= 1024
    assert np.median(np.abs(neighbours(heat) - before)[elsewhere]) < 0.15
    assert error(heat, RATE[elsewhere], PFN[elsewhere])[1] < 0.6 * error(heat, RATE)[0]


@pytest.mark.parametrize("apart", [512, 16])
def test_frames_without_known_neighbours_are_judged_by_themselves(apart: int) -> None:
    """Nobody looks at the tails of large folios."""
    heat = HeatMap([Span(0, 0, 2 * FRAMES)])
    rng = np.random.default_rng(1)
    heads = PFN[::apart] + np.uint64(FRAMES)
    pfn, rate = np.concatenate([PFN, heads]), np.concatenate([RATE, RATE[::apart]])
    for _ in range(20):
        look(heat, rate, rng, pfn)
    heat.tick()
    assert np.ptp(neighbours(heat)) > 0.5
    assert np.all(neighbours(heat, heads) == 1.0)


def test_nothing_is_made_of_neighbours_before_anything_was_learned() -> None:
    assert np.all(neighbours(watched(RATE, looks=1)) == 1.0)


def test_a_source_that_sees_no_idle_frames_teaches_nothing() -> None:
    assert np.all(neighbours(watched(RATE, learn=False)) == 1.0)


def test_the_order_of_the_question_does_not_matter() -> None:
    heat = watched(RATE, SCATTERED)
    pfn = np.concatenate([PFN, PFN + np.uint64(CHUNK)])
    mixed = np.random.default_rng(3).permutation(len(pfn))
    assert np.array_equal(neighbours(heat, pfn[mixed]), neighbours(heat, pfn)[mixed])


def test_a_large_machine_learns_from_a_part_of_what_it_looks_at() -> None:
    frames = 12 * CHUNK
    pfn = np.arange(frames, dtype=np.uint64)
    rate = np.where(pfn // 1024 % 4 == 0, 0.3, 0.03)
    heat = HeatMap([Span(1000, 0, frames)])
    rng = np.random.default_rng(1)
    for _ in range(12):
        look(heat, rate, rng, pfn)
    heat.tick()
    assert heat._company._new_looks.max() == 0
    own, both = error(heat, rate[::7], pfn[::7])
    assert both < 0.75 * own


def test_no_more_is_learned_in_a_pass_than_is_worth_the_while() -> None:
    company = Company(Store([Span(0, 0, CHUNK)]), Forecast(CHUNK))
    assert sum(company.wants(1024) for _ in range(1000)) == MOST // 1024
    company.learn()
    company.learn()  # a pass without looks
    wanted = [company.wants(1024) for _ in range(1000)]
    assert sum(wanted) == pytest.approx(MOST // 1024, abs=1)
    assert np.diff(np.flatnonzero(wanted)).max() < 200  # from all over the pass


def test_old_experience_makes_room_for_new() -> None:
    heat = watched(RATE, looks=40)
    rng = np.random.default_rng(2)
    for _ in range(3 * MEMORY // FRAMES):
        look(heat, SCATTERED, rng, PFN)
    heat.tick()
    assert np.all(neighbours(heat) == 1.0)


@given(
    st.integers(0, 200),
    st.integers(1, 300),
    st.integers(0, 2**32),
    st.sampled_from([0.05, 0.5, 0.95]),
)
@settings(max_examples=60)
def test_neighbours_are_counted_as_one_would_by_hand(
    begin: int, frames: int, seed: int, known: float
) -> None:
    rng = np.random.default_rng(seed)
    store = Store([Span(3, begin, begin + frames)])
    states = rng.integers(64, 1 << 16, frames).astype(np.uint16)
    states[rng.random(frames) > known] = 0
    store.packed.replace(0, states, np.count_nonzero(states))
    offset = np.sort(rng.permutation(frames)[: rng.integers(1, frames + 1)])
    accessed, looks = Company(store, Forecast(frames))._neighbours(0, offset, states[offset])
    for at, hits, there in zip(offset.tolist(), accessed.tolist(), looks.tolist(), strict=True):
        first = (begin + at) // GROUP * GROUP - begin
        whole = first >= 0 and first + GROUP <= frames
        others = [i for i in range(first, first + GROUP) if i != at] if whole else []
        known = [int(states[i]) for i in others if states[i]]
        assert there == 4 * len(known)
        assert hits == sum(f"{state & 15:b}".count("1") for state in known)


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=15)
def test_hotter_neighbours_never_mean_less(seed: int, looks: int) -> None:
    rate = np.random.default_rng(seed).gamma(0.3, 0.5, FRAMES // GROUP).repeat(GROUP)
    table = watched(rate, looks=looks, seed=seed)._company._factors
    assert table.shape[-1] == KINDS
    assert np.all(np.diff(table, axis=-1) >= -1e-12)
    assert np.all(table > 0)


class TestCandidates:
    """Sixteen regions that change their weights, most pages seen accessed once in five windows."""

    @staticmethod
    def hits(**options: int) -> float:
        load = workloads.phases(16_384, 11, count=3, **options)
        return float(np.mean(play(Tierd(), load, 16, 11).hits[60:]))

    def test_stretches_are_found_that_single_pages_do_not_show(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        together = self.hits()
        monkeypatch.setattr(Company, "tells", False)
        assert together > self.hits() + 0.02

    def test_the_planner_is_told_what_neighbours_make_of_each(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        describe = scout.Scout._describe
        corrected = 0

        def checked(self: scout.Scout, found: Any, rate: np.ndarray, *more: Any) -> Any:
            nonlocal corrected
            expected = self._heat.forecast.rate(found.state)
            if more[2] is scout.Direction.PROMOTE:
                factor = self._heat.neighbours(found.pfn, found.state)
                expected, corrected = expected * factor, corrected + np.sum(factor != 1)
            folios = describe(self, found, rate, *more)
            told = dict(zip(found.pfn.tolist(), expected.tolist(), strict=True))
            mine = [told[pfn] for pfn in folios.pfn.tolist()]
            assert folios.rate == pytest.approx(mine)
            return folios

        monkeypatch.setattr(scout.Scout, "_describe", checked)
        self.hits(period=30)
        assert corrected > 1000


@pytest.mark.parametrize(("idle", "more"), [(0.0, 1.0), (1.4, 1.3)])
def test_uniform_access_beside_idle_memory_is_left_alone(
    idle: float, more: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random access over twice the fast tier, with `idle` times as much idle memory on the slower
    one. There neighbours tell what is in use, and the fast tier's tell nothing new, so that
    candidates are expected to be worth more than victims: it costs at most `more` times the moves
    until it settles."""
    frames = 4800
    rate = np.concatenate((np.full(2 * frames, 0.35), np.full(int(idle * frames), 0.001)))

    def moves() -> tuple[int, int]:
        tierd, rng = Tierd(), np.random.default_rng(1)
        tierd.start(np.arange(len(rate)) < 0.95 * frames, int(0.96 * frames), int(0.6 * frames))
        moved = [
            sum(map(len, tierd.step(rng.random(len(rate)) < -np.expm1(-rate)))) for _ in range(60)
        ]
        return sum(moved), sum(moved[40:])

    with_them, late = moves()
    assert late < 0.01 * 20 * 0.6 * frames
    monkeypatch.setattr(Company, "tells", False)
    without, late = moves()
    assert late < 0.01 * 20 * 0.6 * frames
    assert with_them <= more * without
