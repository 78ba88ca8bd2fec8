# SPDX-License-Identifier: Apache-2.0
"""What a state is taken to mean is what the looks that followed it found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierd.host import Span
from tierd.hotness import HeatMap
from tierd.hotness.forecast import AGES, CELLS, LEVELS, SEEN, Forecast

FRAMES = 20_000
PFN = np.arange(FRAMES, dtype=np.uint64)


def watched(share: np.ndarray, looks: int, seed: int = 1) -> HeatMap:
    rng = np.random.default_rng(seed)
    heat = HeatMap((Span(0, 0, FRAMES),))
    for _ in range(looks):
        heat.tick()
        heat.observe(PFN, (rng.random(FRAMES) < share).astype(np.uint8))
    heat.tick()
    return heat


def expected(heat: HeatMap) -> np.ndarray:
    return -np.expm1(-heat.forecast.rate(heat.states(PFN)))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_among_frames_that_are_all_alike_none_is_worth_more(share: float) -> None:
    """Even early, when the looks that heat remembers differ most."""
    heat = watched(np.full(FRAMES, share), 12)
    q = heat.states(PFN) / 65536
    assert q.std() > 0.04 * share
    assert np.percentile(expected(heat), [5, 95]) == pytest.approx(share, rel=0.15)


def test_frames_that_differ_are_told_apart_as_far_as_the_looks_tell() -> None:
    share = np.random.default_rng(2).beta(0.5, 2.0, FRAMES)
    heat = watched(share, 30)
    found = expected(heat)
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        some = (found >= low) & (found < high)
        assert share[some].mean() == pytest.approx(found[some].mean(), abs=0.03)


def test_frames_that_have_just_been_lucky_are_expected_to_fall_back() -> None:
    share = np.random.default_rng(3).beta(0.5, 2.0, FRAMES)
    heat = watched(share, 5)
    best = np.argsort(heat.states(PFN))[-FRAMES // 20 :]
    raw = (heat.states(PFN)[best] / 65536).mean()
    true = share[best].mean()
    assert raw > true + 0.05
    assert expected(heat)[best].mean() == pytest.approx(true, abs=0.05)


def test_what_states_mean_is_learned_anew_after_a_change() -> None:
    rng = np.random.default_rng(4)
    share = np.where(PFN < FRAMES // 4, 0.9, 0.05)
    heat = watched(share, 40)
    for _ in range(6):  # all become alike
        heat.tick(cooling=0.5, heating=0.1)
        heat.observe(PFN, (rng.random(FRAMES) < 0.4).astype(np.uint8))
    heat.tick()
    raw = np.abs(heat.states(PFN) / 65536 - 0.4).mean()
    assert raw > 0.15
    assert np.abs(expected(heat) - 0.4).mean() < 0.3 * raw


def test_a_source_that_sees_no_idle_frames_teaches_nothing() -> None:
    heat = HeatMap((Span(0, 0, FRAMES),))
    before = heat.forecast.table.copy()
    for _ in range(5):
        heat.tick()
        (seen,) = heat.observe(PFN, np.ones(FRAMES, np.uint8), learn=False)
        assert (seen.settled, seen.expected, seen.met) == (0, 0.0, 0)
    heat.tick()
    learned = heat.forecast.table
    assert np.array_equal(learned[AGES * SEEN :], before[AGES * SEEN :])


@given(st.integers(0, 2**32))
@settings(max_examples=25)
def test_more_heat_never_means_less(seed: int) -> None:
    """Of frames of the same age with the same last looks, whatever the looks found."""
    rng = np.random.default_rng(seed)
    forecast = Forecast(0)
    for _ in range(rng.integers(1, 4)):
        state = rng.integers(64, 65536, rng.integers(1, 5000)).astype(np.uint16)
        forecast.enter(state, rng.random(len(state)) < rng.random())
        forecast.learn(float(rng.random()))
    assert len(forecast.table) == CELLS
    by_level = forecast.table.reshape(LEVELS, AGES, SEEN)
    assert (np.diff(by_level, axis=0) >= -1e-12).all()
    assert ((by_level >= 0) & (by_level <= 1)).all()
