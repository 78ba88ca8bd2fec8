# SPDX-License-Identifier: Apache-2.0
"""Capacity fitting, headroom, and caution that is learned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierd.hotness import LEVELS
from tierd.policy import LOOKS, Changes, Room, TierHeat, changed, decide, fit

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
    target = decide([tier(10, known=900), tier(500)], [Changes()])[0]
    assert target.need == {0: 30}
    assert target.room == {0: 0}


def test_between_the_marks_nothing_is_due() -> None:
    target = decide([tier(30), tier(500)], [Changes()])[0]
    assert (target.need, target.room) == ({0: 0}, {0: 0})


def test_room_above_the_high_mark_is_there_to_be_used() -> None:
    assert decide([tier(100), tier(500)], [Changes()])[0].room == {0: 60}
    assert decide([tier(100, target=False), tier(500)], [Changes()])[0].room == {0: 0}


def test_when_all_fits_all_known_frames_belong_in_the_fast_tier() -> None:
    target = decide([tier(500, known=300), tier(500, known=100)], [Changes()])[0]
    assert (target.capacity, target.level) == (760, 1)


def test_three_tiers_have_two_boundaries_and_the_slower_holds_more() -> None:
    tiers = [tier(100, known=300), tier(100, known=300), tier(100, known=600)]
    first, second = decide(tiers, [Changes(), Changes()])
    assert first.capacity < second.capacity
    assert first.level >= second.level


@pytest.mark.parametrize(
    ("slow", "factor"), [(300, 1.4), (600, 1.4), (2400, 1.5), (9600, 1.6), (10**8, 1.6)]
)
def test_of_more_candidates_the_best_must_be_better(slow: int, factor: float) -> None:
    target = decide([tier(100, known=600), tier(500, known=slow)], [Changes()])[0]
    assert target.margin.factor == pytest.approx(factor)


def looks(share: float, settled: int, hits: float) -> TierHeat:
    """A tier of well-known frames, accessed in `share` of the looks, where `hits` were met."""
    histogram = np.zeros(LEVELS, np.int64)
    histogram[30] = settled
    return TierHeat((), histogram, settled, share * settled, int(hits))


@given(st.floats(0, 1), st.floats(0.2, 0.95), st.floats(0.0, 0.15), st.floats(0.3, 2.0))
def test_the_share_that_changed_places_is_read_from_the_accesses_that_moved(
    share: float, hot: float, cold: float, activity: float
) -> None:
    """Whatever the tiers' sizes, and however busy the program is now compared to before."""
    fast, slow = 100_000, 400_000
    gone = share * fast * (hot - cold)
    activity = min(activity, 1 / hot)
    tiers = [
        looks(hot, fast, (hot * fast - gone) * activity),
        looks(cold, slow, (cold * slow + gone) * activity),
    ]
    found = changed(tiers, 0)
    assert found is not None
    assert abs(found[0] - share) < 0.01 + 3 * found[1]


def test_between_tiers_that_are_accessed_alike_nothing_can_change_places() -> None:
    assert changed([looks(0.3, 1000, 200), looks(0.3, 1000, 400)], 0) is None
    assert changed([looks(0.3, 0, 0), looks(0.3, 1000, 400)], 0) is None


def test_a_change_is_remembered_for_four_looks_and_noise_is_none() -> None:
    changes = Changes()
    assert changes.update((0.05, 0.03)) == 0.0
    assert changes.update((0.3, 0.05)) == pytest.approx(0.2)
    assert [changes.update(None) for _ in range(LOOKS)][-2:] == [pytest.approx(0.2), 0.0]


def test_cycles_without_looks_do_not_let_a_change_be_forgotten() -> None:
    tiers = [looks(0.8, 1000, 400), looks(0.1, 4000, 800)]
    changes = Changes()
    seen = decide(tiers, [changes])[0].cooling
    assert seen > 0.3
    for _ in range(3 * LOOKS):
        assert decide(tiers, [changes], looked=False)[0].cooling == seen
    steady = [looks(0.8, 1000, 800), looks(0.1, 4000, 400)]
    assert [decide(steady, [changes])[0].cooling for _ in range(LOOKS)][-2:] == [seen, 0.0]


def test_as_much_heats_as_cools() -> None:
    tiers = [looks(0.8, 1000, 400), looks(0.1, 4000, 800)]
    target = decide(tiers, [Changes()])[0]
    assert target.cooling > 0.3
    assert target.heating == pytest.approx(target.cooling / 4)
