# SPDX-License-Identifier: Apache-2.0
"""What a frame's neighbours say of it counts as far as it has been right so far."""

from __future__ import annotations

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
from tierd.hotness.company import GROUP, KINDS

FRAMES = 16_384
PFN = np.arange(FRAMES, dtype=np.uint64)
RATE = np.where(PFN // 1024 % 4 == 0, 0.3, 0.03)
"""Accesses per window, in stretches of 4 MiB."""
SCATTERED = np.random.default_rng(7).permutation(RATE)


def watched(*rates: np.ndarray, looks: int = 20, seed: int = 1, idle: np.ndarray = PFN) -> HeatMap:
    """Nodes whose frames are accessed at these rates, each a `FRAMES` long; only `idle` of them
    are looked at."""
    rng = np.random.default_rng(seed)
    bases = [node * CHUNK for node in range(len(rates))]
    heat = HeatMap([Span(n, base, base + FRAMES) for n, base in enumerate(bases)])
    for _ in range(looks):
        heat.tick()
        for base, rate in zip(bases, rates, strict=True):
            hit = rng.random(FRAMES) < -np.expm1(-rate)
            heat.observe(idle + np.uint64(base), hit[idle].astype(np.uint8))
    heat.tick()
    return heat


def factors(heat: HeatMap, pfn: np.ndarray = PFN) -> np.ndarray:
    """What the neighbours make of the rate that a frame's own state says."""
    state = heat.states(pfn)
    return heat.rate(pfn, state) / heat.forecast.rate(state)


def error(heat: HeatMap, rate: np.ndarray) -> tuple[float, float]:
    """Mean squared errors of what is expected of frames: by their own states, with neighbours."""
    state = heat.states(PFN)
    own, both = heat.forecast.rate(state), heat.rate(PFN, state)
    return float(np.mean((own - rate) ** 2)), float(np.mean((both - rate) ** 2))


def test_neighbours_that_are_used_alike_tell_what_a_frame_s_own_looks_cannot() -> None:
    heat = watched(RATE)
    own, both = error(heat, RATE)
    assert both < 0.5 * own
    idle = heat.states(PFN) & 15 == 0
    factor = factors(heat)
    assert np.median(factor[idle & (RATE > 0.1)]) > 1.2 * np.median(factor[idle & (RATE < 0.1)])


def test_neighbours_that_have_nothing_to_do_with_one_another_do_not_count() -> None:
    heat = watched(SCATTERED)
    own, both = error(heat, SCATTERED)
    assert both == pytest.approx(own, rel=0.02)
    assert np.percentile(factors(heat), [1, 99]) == pytest.approx(1.0, abs=0.12)


def test_each_node_has_its_own_neighbours() -> None:
    """Where pages were brought together from everywhere, they say nothing."""
    heat = watched(SCATTERED, RATE)
    assert np.percentile(factors(heat), [1, 99]) == pytest.approx(1.0, abs=0.12)
    there = factors(heat, PFN + np.uint64(CHUNK))
    assert np.percentile(there, 99) > 1.5 * np.percentile(there, 1)


def test_a_frame_is_not_its_own_company() -> None:
    """One frame of each group is accessed all the time; the others tell no more of it than of
    one another."""
    rate = np.where(PFN % GROUP == 5, 4.0, RATE)
    factor = factors(watched(rate))
    cold = RATE < 0.1
    beside = np.median(factor[cold & (PFN % GROUP == 5)])
    assert beside == pytest.approx(np.median(factor[cold & (PFN % GROUP == 6)]), rel=0.35)


@pytest.mark.parametrize("apart", [512, 16])
def test_frames_without_known_neighbours_are_judged_by_themselves(apart: int) -> None:
    """Nobody looks at the tails of large folios."""
    heads = PFN[::apart]
    heat = watched(RATE, idle=heads)
    assert factors(heat, heads) == pytest.approx(np.ones(len(heads)))
    assert not heat.rate(PFN[1::apart], heat.states(PFN[1::apart])).any()


def test_nothing_is_made_of_neighbours_before_anything_was_learned() -> None:
    heat = watched(RATE, looks=1)
    assert factors(heat) == pytest.approx(np.ones(FRAMES))


def test_the_order_of_the_question_does_not_matter() -> None:
    heat = watched(RATE, SCATTERED)
    pfn = np.concatenate([PFN, PFN + np.uint64(CHUNK)])
    mixed = np.random.default_rng(3).permutation(len(pfn))
    rates = heat.rate(pfn, heat.states(pfn))
    assert np.array_equal(heat.rate(pfn[mixed], heat.states(pfn[mixed])), rates[mixed])


@pytest.mark.parametrize(("begin", "frames"), [(CHUNK - 40, 100), (7, 64), (3, 30), (CHUNK - 1, 2)])
def test_groups_that_are_cut_short_are_what_is_left_of_them(begin: int, frames: int) -> None:
    heat = HeatMap([Span(0, begin, begin + frames)])
    pfn = np.arange(begin, begin + frames, dtype=np.uint64)
    for look in range(12):
        heat.tick()
        heat.observe(pfn, np.full(frames, look % 2, np.uint8))
    rate = heat.rate(pfn, heat.states(pfn))
    assert rate.shape == (frames,)
    assert np.all(np.isfinite(rate) & (rate >= 0))


def test_stretches_are_found_that_single_pages_do_not_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sixteen regions that change their weights, most pages seen accessed once in five windows."""

    def hits() -> float:
        load = workloads.phases(16_384, 11, count=3)
        return float(np.mean(play(Tierd(), load, 16, 11).hits[60:]))

    together = hits()
    monkeypatch.setattr(HeatMap, "rate", lambda self, pfn, state: self.forecast.rate(state))
    monkeypatch.setattr(scout, "CHOICE", 1)
    assert together > hits() + 0.03


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=15)
def test_hotter_neighbours_never_mean_less(seed: int, looks: int) -> None:
    rate = np.random.default_rng(seed).gamma(0.3, 0.5, FRAMES // GROUP).repeat(GROUP)
    table = watched(rate, looks=looks, seed=seed)._company._factors
    assert table.shape[-1] == KINDS
    assert np.all(np.diff(table, axis=-1) >= -1e-12)
    assert np.all(table > 0)
