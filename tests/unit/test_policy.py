# SPDX-License-Identifier: Apache-2.0
"""Capacity fitting, headroom, and caution that is learned."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tierd.hotness import LEVELS
from tierd.policy import CALM, EAGER, STRICT, Caution, Room, TierHeat, decide, fit

counts = st.lists(st.integers(0, 1000), min_size=LEVELS, max_size=LEVELS)


@given(counts, st.integers(0, 100_000))
def test_what_is_above_the_threshold_fits_and_one_level_more_would_not(
    histogram: list[int], capacity: int
) -> None:
    level = fit(np.array(histogram), capacity)
    assert 1 <= level <= LEVELS
    assert sum(histogram[level:]) <= capacity
    if level > 1:
        assert sum(histogram[level - 1 :]) > capacity


def tier(
    free: int, *, known: int = 0, target: bool = True, low: int = 20, high: int = 40
) -> TierHeat:
    histogram = np.zeros(LEVELS, np.int64)
    histogram[5] = known
    return TierHeat((Room(0, 1000, free, 20, 40, target),), histogram)


def test_below_the_low_mark_the_high_one_is_restored_and_nothing_comes_in() -> None:
    target = decide([tier(10, known=900), tier(500)], [Caution()])[0]
    assert target.need == {0: 30}
    assert target.room == {0: 0}


def test_between_the_marks_nothing_is_due() -> None:
    target = decide([tier(30), tier(500)], [Caution()])[0]
    assert (target.need, target.room) == ({0: 0}, {0: 0})


def test_room_above_the_high_mark_is_there_to_be_used() -> None:
    assert decide([tier(100), tier(500)], [Caution()])[0].room == {0: 60}
    assert decide([tier(100, target=False), tier(500)], [Caution()])[0].room == {0: 0}


def test_when_all_fits_all_known_frames_belong_in_the_fast_tier() -> None:
    target = decide([tier(500, known=300), tier(500, known=100)], [Caution()])[0]
    assert (target.capacity, target.level) == (760, 1)


def test_three_tiers_have_two_boundaries_and_the_slower_holds_more() -> None:
    tiers = [tier(100, known=300), tier(100, known=300), tier(100, known=600)]
    first, second = decide(tiers, [Caution(), Caution()])
    assert first.capacity < second.capacity
    assert first.level >= second.level


def quiet(caution: Caution, cycles: int) -> None:
    for _ in range(cycles):
        caution.update((1.0, 0.001))


def test_caution_begins_eager_and_grows_calm() -> None:
    caution = Caution()
    assert caution.update(None).errors < 2 * EAGER
    quiet(caution, 200)
    assert abs(caution.errors - CALM) < 0.1


def test_moves_that_bring_nothing_make_strict_and_good_ones_eager() -> None:
    caution = Caution()
    quiet(caution, 100)
    for _ in range(20):
        caution.learn(100, promised=50.0, gained=1.0)
    assert caution.errors == STRICT
    for _ in range(40):
        caution.learn(100, promised=50.0, gained=45.0)
    assert caution.errors == EAGER


def test_a_shift_of_the_hot_set_makes_eager_at_once_but_not_for_ever() -> None:
    caution = Caution()
    quiet(caution, 200)
    caution.update((0.7, 0.001))
    assert caution.changing > 0.25
    assert caution.errors == EAGER
    for _ in range(40):
        caution.update((0.7, 0.001))
    assert caution.changing < 0.001
    assert caution.errors > 1.5


def test_noise_is_no_shift() -> None:
    caution = Caution()
    quiet(caution, 200)
    assert caution.update((0.95, 0.03)).errors > 3.5
