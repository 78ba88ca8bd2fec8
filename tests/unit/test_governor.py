# SPDX-License-Identifier: Apache-2.0
"""Budgets bind, classes that undo their promotions stop and restart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierd.governor import (
    MOST_OWED,
    OTHERS_SHARE,
    PIECES_LEAST,
    PRESSURE_FLOOR,
    RETRY_LEAST,
    RETRY_MOST,
    BackOff,
    Budget,
    Pieces,
    Thrash,
    TokenBucket,
)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), max_size=40), st.floats(1, 1e9))
def test_no_stretch_of_time_spends_more_than_rate_and_burst(
    steps: list[tuple[float, float]], rate: float
) -> None:
    bucket = TokenBucket(rate, rate, 0.0)
    now = spent = 0.0
    for gap, share in steps:
        now += gap
        bucket.refill(now)
        amount = max(bucket.tokens, 0.0) * share
        bucket.spend(amount)
        spent += amount
        assert spent <= rate * (now + 1.0) * 1.000001


def test_a_debt_is_paid_before_the_next_byte() -> None:
    bucket = TokenBucket(10, 10, 0.0)
    bucket.spend(30)
    bucket.refill(1.5)
    assert bucket.tokens == -5
    bucket.refill(1.0)  # a clock that seems to go back changes nothing
    assert bucket.tokens == -5


MOST = {"memory": 0.1}


def test_pressure_halves_the_rate_and_lets_it_recover() -> None:
    back_off = BackOff()
    assert back_off.update({}, MOST) == 1.0
    assert back_off.update({"memory": 0.5}, MOST) == 0.5
    assert back_off.causes == ("memory",)
    for _ in range(20):
        back_off.update({"memory": 0.5}, MOST)
    assert back_off.share == PRESSURE_FLOOR
    for _ in range(20):
        back_off.update({"memory": 0.0}, MOST)
    assert back_off.share == 1.0
    assert back_off.causes == ()


def test_only_the_resources_that_the_policy_names_matter() -> None:
    high = {"memory": 0.9, "cpu": 0.9, "io": 0.9}
    back_off = BackOff()
    assert back_off.update(high, {}) == 1.0
    assert back_off.update(high, {"io": 0.95}) == 1.0
    back_off.update(high, {"io": 0.5, "cpu": 0.5})
    assert back_off.causes == ("io", "cpu")


@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5000)),
        min_size=1,
        max_size=60,
    )
)
def test_whatever_the_pressure_no_stretch_moves_more_than_rate_and_burst(
    steps: list[tuple[float, float, float, int]],
) -> None:
    """Each step: seconds passed, pressure, its limit, bytes wanted."""
    rate, interval = 1000, 1.0
    budget = Budget(rate, rate, 0.1, interval, 0.0)
    now, spent = 0.0, [(0.0, 0)]
    for gap, pressure, most, wanted in steps:
        now += gap
        allowance = budget.begin(now, {"memory": pressure}, {"memory": most})
        assert PRESSURE_FLOOR <= allowance.share <= 1
        assert allowance.promote_rate <= rate
        used = min(wanted, allowance.promote)
        budget.spent(used, 0, 0.0)
        spent.append((now, used))
    for i in range(len(spent)):
        total = 0
        for when, used in spent[i:]:
            total += used
            # Bytes are whole: each refill may round by one.
            assert total <= rate * (when - spent[i][0]) + rate + 1


def test_the_allowance_follows_rate_pressure_and_what_was_spent() -> None:
    budget = Budget(1000, 500, 0.1, 1.0, 0.0)
    first = budget.begin(0.0, {}, MOST)
    assert (first.promote, first.demote) == (1000, 500)
    budget.spent(1000, 100, 0.05)
    second = budget.begin(1.0, {"memory": 0.9}, MOST)
    assert (second.promote, second.demote) == (500, 250)
    assert second.promote_rate == 500
    assert (second.share, second.causes) == (0.5, ("memory",))
    assert budget.tokens == (500, 500)


def test_cpu_that_was_used_is_missing_in_the_next_cycles() -> None:
    budget = Budget(1, 1, 0.1, 1.0, 0.0)
    assert budget.cpu == pytest.approx(0.4)
    budget.spent(0, 0, 0.5)
    budget.begin(1.0, {}, {})
    assert budget.cpu == pytest.approx(0.0, abs=1e-9)
    budget.begin(5.0, {}, {})
    assert budget.cpu == pytest.approx(0.4)


def step(thrash: Thrash, now: float, promoted: int, wasted: int, *, persists: bool) -> bool:
    thrash.update(
        now,
        np.array([promoted, 0]),
        np.array([wasted, 0]),
        np.array([4.0 if wasted else 0.0, 0.0]),
        np.array([persists, True]),
    )
    assert not thrash.stopped[1]
    return bool(thrash.stopped[0])


def test_a_class_that_undoes_its_promotions_stops_and_restarts_when_its_pattern_lasts() -> None:
    thrash = Thrash(1, 10**6, 10_000)
    for now in range(25):  # it flips every four seconds, and what was promoted goes back
        stopped = step(thrash, now, 5_000, 4_500, persists=now % 4 != 0)
    assert stopped
    for now in range(25, 40):
        assert step(thrash, now, 0, 0, persists=now % 4 != 0)
    # The next flips were due at 40 and 44; none comes.
    stops = [step(thrash, now, 0, 0, persists=True) for now in range(40, 46)]
    assert stops == [True, False, False, False, False, False]


def test_a_class_whose_pattern_lasts_is_not_stopped_for_what_it_wasted_before() -> None:
    thrash = Thrash(1, 10**6, 10_000)
    for now in range(9):
        assert not step(thrash, now, 5_000, 0, persists=now % 4 != 0)
    for now in range(9, 13):
        assert not step(thrash, now, 5_000, 0, persists=True)
    # Its promotions lived for four seconds: until 8 + 1.2 * 4 + 2 * 4 it is of the pattern before.
    stops = [step(thrash, now, 5_000, 4_500, persists=True) for now in range(13, 30)]
    assert not any(stops[:7])
    # Who goes on wasting is stopped all the same, again and again.
    assert 5 <= sum(stops) < len(stops)


@pytest.mark.parametrize("uptime", [0.0, 86_400.0])
def test_how_long_the_host_has_been_up_is_no_pattern_s_life(uptime: float) -> None:
    thrash = Thrash(1, 10**6, 10_000)
    for now in range(25):
        stopped = step(thrash, uptime + now, 5_000, 4_500, persists=now % 4 != 0)
    assert stopped
    stops = [step(thrash, uptime + now, 0, 0, persists=True) for now in range(25, 32)]
    assert not stops[-1]


def test_nobody_looked_is_no_sign_that_a_pattern_lasts() -> None:
    thrash = Thrash(1, 10**6, 10_000)
    for now in range(25):
        step(thrash, now, 5_000, 4_500, persists=now % 4 != 0)
    none = np.zeros(2, np.int64)
    for now in range(25, 45):
        thrash.update(float(now), none, none, np.zeros(2), None)
        assert thrash.stopped[0]


def test_a_class_that_goes_on_flipping_is_tried_again_less_and_less_often() -> None:
    thrash = Thrash(1, 10**6, 10_000)
    stopped, begins = False, []
    for now in range(600):
        was = stopped
        moved = (0, 0) if was else (5_000, 4_500)
        stopped = step(thrash, now, *moved, persists=now % 4 != 0)
        if was and not stopped:
            begins.append(now)
    waits = np.diff([0, *begins])
    assert len(begins) == 3
    assert (np.diff(waits) > 50).all()


def test_it_is_told_which_classes_begin_again() -> None:
    thrash = Thrash(1, 10**6, 10_000)
    life = np.array([4.0, 0.0])
    none, yes = np.zeros(2, np.int64), np.ones(2, np.bool_)
    for now in range(5):
        wasted = np.array([9_000, 0])
        again = thrash.update(float(now), np.array([5_000, 0]), wasted, life, ~yes)
        assert not again.any()
    assert thrash.stopped.tolist() == [True, False]
    began = [thrash.update(float(now), none, none, 0 * life, yes) for now in range(5, 20)]
    assert np.sum(began, axis=0).tolist() == [1, 0]
    assert not thrash.stopped.any()


def test_a_little_waste_stops_nobody() -> None:
    thrash = Thrash(1, 10**6, 10_000)
    assert not any(step(thrash, now, 10, 10, persists=False) for now in range(50))


HUGE = 512


def attempt(
    pieces: Pieces, moved: Sequence[bool], now: float, *, made: int = 0, size: int = HUGE
) -> list[bool]:
    """Large folios that were to go to node 0, each of which moved or found no room; those of them
    that are not to be tried again. made: frames that such folios had just left there."""
    here = np.array(moved)
    target, pages = np.zeros(len(here), np.int32), np.full(len(here), size, np.uint32)
    return pieces.learn(target, pages, here, ~here, {(0, size): made}, now).tolist()


def limit(pieces: Pieces, now: float, *, free: int = 10_000, size: int = HUGE) -> int | None:
    """Frames of node 0 for such folios; None for no limit."""
    return pieces.frames({0: free}, now)[0].get(size)


def test_large_folios_get_as_much_as_came_of_the_last_attempts() -> None:
    pieces = Pieces()
    assert limit(pieces, 0.0) is None
    assert attempt(pieces, [True, False, False, False], 0.0) == [False] * 4
    assert limit(pieces, 0.0) == PIECES_LEAST
    assert limit(pieces, 0.0, size=16) is None
    assert pieces.frames({1: 10_000}, 0.0) == {1: {}}
    attempt(pieces, [True] * 4, 1.0)
    assert limit(pieces, 1.0) == 4 * PIECES_LEAST


def test_where_no_large_folio_found_room_none_is_tried_for_ever_longer() -> None:
    pieces = Pieces()
    limit(pieces, 0.0)
    attempt(pieces, [False, False], 0.0)
    assert limit(pieces, RETRY_LEAST - 1) == 0
    assert limit(pieces, RETRY_LEAST - 1, size=16) is None
    assert limit(pieces, RETRY_LEAST) == PIECES_LEAST
    now, waits = RETRY_LEAST, []
    for _ in range(6):
        attempt(pieces, [False], now)
        began = now
        while not limit(pieces, now):
            now += RETRY_LEAST
        waits.append(now - began)
    assert waits == sorted(waits)
    assert waits[0] == 2 * RETRY_LEAST
    assert waits[-1] == RETRY_MOST
    attempt(pieces, [True], now)
    attempt(pieces, [False], now)
    assert limit(pieces, now + RETRY_LEAST) == PIECES_LEAST


def test_large_folios_are_tried_again_as_soon_as_more_is_free() -> None:
    pieces = Pieces()
    limit(pieces, 0.0, free=1000)
    attempt(pieces, [False], 0.0)
    assert limit(pieces, 1.0, free=1000 + PIECES_LEAST - 1) == 0
    assert limit(pieces, 1.0, free=1000 + PIECES_LEAST) == PIECES_LEAST


def test_what_failed_for_other_reasons_says_nothing_about_room() -> None:
    pieces = Pieces()
    limit(pieces, 0.0)
    attempt(pieces, [False], 0.0)
    one = np.ones(1, np.int32)
    nothing = np.zeros(1, np.bool_)
    pieces.learn(0 * one, HUGE * one.astype(np.uint32), nothing, nothing, {}, RETRY_LEAST)
    attempt(pieces, [False], RETRY_LEAST)
    assert limit(pieces, 2 * RETRY_LEAST) == 0


def test_room_that_large_folios_made_says_nothing_about_what_is_free() -> None:
    pieces = Pieces()
    attempt(pieces, [False], 0.0)
    assert attempt(pieces, [True, True], RETRY_LEAST, made=2 * HUGE) == [False, False]
    assert limit(pieces, RETRY_LEAST) == PIECES_LEAST
    # Somebody else was faster: the folio is left alone.
    assert attempt(pieces, [True, False], RETRY_LEAST, made=2 * HUGE) == [False, True]
    # Of three one had no such room, and two came: free room had nothing for it.
    assert attempt(pieces, [True, True, False], RETRY_LEAST, made=2 * HUGE) == [False] * 3
    assert limit(pieces, 2 * RETRY_LEAST) == 0
    # Meanwhile there are only pairs, and those that fail do not make the wait longer.
    assert attempt(pieces, [False, True], 2 * RETRY_LEAST, made=HUGE) == [True, False]
    assert limit(pieces, 3 * RETRY_LEAST) == PIECES_LEAST


def test_upkeep_beyond_its_part_of_a_cycle_is_paid_in_the_next_ones() -> None:
    budget = Budget(1, 1, cpu=0.04, interval=1.0, now=0.0)
    left = []
    for cycle in range(1, 6):
        budget.begin(float(cycle), {}, {})
        before = budget.cpu
        if cycle == 1:
            budget.upkeep(0.08)
        budget.upkeep(0.0)
        left.append(before - budget.cpu)
        budget.spent(0, 0, budget.cpu)
    # Half of a cycle's 40 ms at most: the other half is left to sampling in every cycle.
    assert left == pytest.approx([0.02, 0.02, 0.02, 0.02, 0.0])


def test_decisions_wait_while_earlier_ones_are_not_paid_for() -> None:
    budget = Budget(1, 1, cpu=0.04, interval=1.0, now=0.0)
    waiting = []
    for cycle in range(1, 9):
        budget.begin(float(cycle), {}, {})
        budget.upkeep(0.004)
        waiting.append(budget.in_arrears(urgent=False))
        budget.decided(0.0 if waiting[-1] else 0.05)
    # A second one on credit, and then as often as they are paid for.
    assert waiting == [False, False, True, True, False, True, True, False]


@pytest.mark.parametrize("upkeep", [0.45, 0.5])
@pytest.mark.parametrize("wanted", [0.0, 1e-6, 0.5], ids=["none", "hardly any", "many"])
def test_upkeep_of_half_of_the_share_and_decisions_keep_within_it(
    upkeep: float, wanted: float
) -> None:
    """On a host so slow that what is done in every cycle takes half of the share."""
    budget = Budget(1, 1, cpu=0.04, interval=1.0, now=0.0)
    decisions, used, sampled = 0.0, 0.0, []
    for cycle in range(1, 201):
        budget.begin(float(cycle), {}, {})
        budget.upkeep(upkeep * 0.04)
        decided = 0.0 if budget.in_arrears(urgent=False) else wanted * 0.04
        budget.decided(decided)
        sampled.append(max(budget.cpu, 0.0))
        budget.spent(0, 0, sampled[-1])
        decisions += decided
        used += upkeep * 0.04 + decided + sampled[-1]
    # What was saved before the first cycle, and what decisions owe yet.
    assert 200 * 0.04 - 0.04 < used <= 200 * 0.04 + 4 * 0.04 + 1.5 * 0.04
    assert min(sampled) >= 0.375 * 0.04 - 1e-9
    if wanted == 0.5:
        assert decisions == pytest.approx(200 * 0.125 * 0.04, rel=0.15)


def test_upkeep_beyond_its_part_does_not_put_decisions_off_for_ever() -> None:
    budget = Budget(1, 1, cpu=0.04, interval=1.0, now=0.0)
    decisions = 0
    for cycle in range(1, 101):
        budget.begin(float(cycle), {}, {})
        budget.upkeep(0.03)
        waits = budget.in_arrears(urgent=False)
        decisions += not waits
        budget.decided(0.0 if waits else 0.02)
        budget.spent(0, 0, max(budget.cpu, 0.0))
    # They are paid with an eighth of the share, 5 ms a cycle.
    assert decisions == pytest.approx(100 * 0.005 / 0.02, abs=3)


def test_a_cycle_that_was_late_pays_for_the_upkeep_of_its_time() -> None:
    budget = Budget(1, 1, cpu=0.03, interval=1.0, now=0.0)
    used = 0.0
    for cycle in range(1, 101):
        budget.begin(2.0 * cycle, {}, {})
        budget.upkeep(0.025)
        budget.decided(0.0)
        sampled = max(budget.cpu, 0.0)
        budget.spent(0, 0, sampled)
        used += 0.025 + sampled
    assert used <= 0.03 * 200 + 4 * 0.03


def test_upkeep_that_never_ends_is_forgiven_beyond_a_bound() -> None:
    budget = Budget(1, 1, cpu=0.04, interval=1.0, now=0.0)
    for cycle in range(1, 1000):
        budget.begin(float(cycle), {}, {})
        budget.upkeep(1.0)
    paying = 0
    while True:
        paying += 1
        budget.begin(1000.0 + paying, {}, {})
        before = budget.cpu
        budget.upkeep(0.0)
        if budget.cpu == before:
            break
    assert paying == pytest.approx(MOST_OWED / OTHERS_SHARE, abs=2)
