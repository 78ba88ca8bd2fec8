# SPDX-License-Identifier: Apache-2.0
"""What every plan keeps, whatever the candidates: budgets, room, floors, caps, identity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tierd.benefit import Worth
from tierd.hotness import level_state, rate
from tierd.planner import (
    FREE_TO_GO,
    REASONS,
    UNLIMITED,
    Direction,
    Folios,
    Limits,
    MovePlan,
    Owners,
    Reason,
    Ways,
    code,
    plan,
)
from tierd.policy import Margin, Target

FAST, SLOW = (0, 1), (2, 3)
SIZES = (1, 1, 1, 4, 16)


@dataclass(frozen=True)
class Case:
    target: Target
    hot: Folios
    cold: Folios
    owners: Owners
    ways: Ways
    limits: Limits

    def plan(self) -> MovePlan:
        return plan(self.target, self.hot, self.cold, self.owners, self.ways, self.limits)


def folios(
    rng: np.random.Generator, n: int, first: int, classes: int, direction: Direction
) -> Folios:
    here, there = (SLOW, FAST) if direction is Direction.PROMOTE else (FAST, SLOW)
    state = rng.integers(64, 65536, n).astype(np.uint16)
    refused = np.where(rng.random(n) < 0.1, code(Reason.BUSY), FREE_TO_GO).astype(np.int8)
    return Folios(
        pfn=(first + rng.permutation(n)).astype(np.uint64),
        pages=rng.choice(SIZES, n).astype(np.uint32),
        node=rng.choice(here, n).astype(np.int32),
        state=state,
        rate=rate(state),
        owner=rng.integers(-1, classes, n).astype(np.int16),
        refused=refused,
        allowed={node: rng.random(n) < 0.9 for node in there},
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    classes = draw(st.integers(0, 3))
    n = classes + 1
    few = st.integers(0, 60)
    room = {node: draw(few) for node in FAST}
    need = {node: 0 if room[node] else draw(few) for node in FAST}
    owners = Owners(
        resident=rng.integers(0, 200, n),
        floor=np.append(rng.choice([0, 50, 150], classes), 0).astype(np.int64),
        cap=np.append(rng.choice([20, 100, UNLIMITED], classes), UNLIMITED).astype(np.int64),
        weight=np.append(rng.choice([0.5, 1.0, 4.0], classes), 1.0),
        promote=np.append(rng.random(classes) < 0.8, True),
        demote=np.append(rng.random(classes) < 0.8, True),
        excluded=np.append(rng.random(classes) < 0.1, False),
        stopped=rng.random(n) < 0.1,
    )
    margin = Margin(draw(st.sampled_from([1.0, 1.5])), 0.1)
    return Case(
        target=Target(0, 30, level_state(30), 100, need, room, margin, 0.0, 0.0),
        hot=folios(rng, draw(st.integers(0, 80)), 10_000, classes, Direction.PROMOTE),
        cold=folios(rng, draw(st.integers(0, 80)), 0, classes, Direction.DEMOTE),
        owners=owners,
        ways=Ways(
            promote={node: FAST if node == 2 else FAST[::-1] for node in SLOW},
            demote=dict.fromkeys(FAST, SLOW),
            room={node: draw(few) for node in SLOW},
            pieces={
                node: draw(st.dictionaries(st.sampled_from((4, 16)), st.sampled_from([0, 16, 40])))
                for node in FAST
            },
        ),
        limits=Limits(draw(st.integers(0, 100)), draw(st.integers(0, 100))),
    )


def rows(part: Folios, pfn: np.ndarray) -> np.ndarray:
    order = np.argsort(part.pfn)
    return order[np.searchsorted(part.pfn[order], pfn)]


@given(cases())
@settings(max_examples=80)
def test_budgets_and_room_are_never_exceeded(case: Case) -> None:
    made = case.plan()
    assert made.promote.pages.sum() <= case.limits.promote
    assert made.demote.pages.sum() <= case.limits.demote
    for node in SLOW:
        assert made.demote.pages[made.demote.target == node].sum() <= case.ways.room[node]
    for node in FAST:
        freed = int(made.demote.pages[made.demote.source == node].sum())
        owed = min(case.target.need[node], freed)
        came = int(made.promote.pages[made.promote.target == node].sum())
        assert came <= case.target.room[node] + freed - owed
        for size, frames in case.ways.pieces[node].items():
            came, freed = (
                int(moves.pages[(where == node) & (moves.pages == size)].sum())
                for moves, where in (
                    (made.promote, made.promote.target),
                    (made.demote, made.demote.source),
                )
            )
            assert came <= frames + freed


@given(cases())
@settings(max_examples=80)
def test_floors_and_caps_hold(case: Case) -> None:
    made = case.plan()
    n = len(case.owners.floor)
    after = case.owners.resident.copy()
    for moves, part, sign in ((made.promote, case.hot, 1), (made.demote, case.cold, -1)):
        owner = part.owner[rows(part, moves.pfn)]
        np.add.at(after, np.where(owner < 0, n - 1, owner), sign * moves.pages.astype(np.int64))
    # Residency is an estimate: without a floor more may go than it says are there.
    bound = np.where(
        case.owners.floor > 0, np.minimum(case.owners.resident, case.owners.floor), -999
    )
    assert (after >= bound).all()
    assert (after <= np.maximum(case.owners.resident, case.owners.cap)).all()


@given(cases())
@settings(max_examples=80)
def test_only_candidates_that_may_move_are_planned_and_each_once(case: Case) -> None:
    made = case.plan()
    sides = (
        (made.promote, case.hot, case.owners.promote & ~case.owners.stopped),
        (made.demote, case.cold, case.owners.demote),
    )
    for moves, part, may in sides:
        assert len(np.unique(moves.pfn)) == len(moves.pfn)
        row = rows(part, moves.pfn)
        assert (part.pfn[row] == moves.pfn).all()
        assert (part.pages[row] == moves.pages).all()
        assert (part.node[row] == moves.source).all()
        assert (part.refused[row] == FREE_TO_GO).all()
        assert may[part.owner[row]].all()
        assert not case.owners.excluded[part.owner[row]].any()
        for node, allowed in part.allowed.items():
            assert allowed[row][moves.target == node].all()


@given(cases())
@settings(max_examples=60)
def test_every_candidate_for_promotion_is_planned_or_counted_under_a_reason(case: Case) -> None:
    made = case.plan()
    skipped = sum(n for (way, _), n in made.skipped.items() if way is Direction.PROMOTE)
    assert made.promote.pages.sum() + skipped == case.hot.pages.sum()
    assert all(reason in REASONS for _, reason in made.skipped)


def exchanges_only(case: Case) -> Case:
    """No headroom to restore, no free room, no classes: every demotion is half of a pair."""
    return replace(
        case,
        target=replace(case.target, need=dict.fromkeys(FAST, 0), room=dict.fromkeys(FAST, 0)),
        owners=Owners.unclassed(),
        hot=replace(case.hot, owner=np.full(len(case.hot), -1, np.int16)),
        cold=replace(case.cold, owner=np.full(len(case.cold), -1, np.int16)),
    )


def pairs(case: Case) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rates of guests and victims of each faster node, hottest first."""
    made = case.plan()
    guest = case.hot.rate[rows(case.hot, made.promote.pfn)]
    victim = case.cold.rate[rows(case.cold, made.demote.pfn)]
    for node in FAST:
        guests, victims = guest[made.promote.target == node], victim[made.demote.source == node]
        yield np.sort(guests)[::-1], np.sort(victims)[::-1]


@given(cases())
@settings(max_examples=200)
def test_a_promotion_beyond_the_room_beats_every_victim_by_the_factor(case: Case) -> None:
    """Single pages leave in pairs, so that the guests of a node can be matched with its victims;
    if they can in any way, then the hottest with the hottest."""
    case = exchanges_only(case)
    case = replace(
        case,
        hot=replace(case.hot, pages=np.ones(len(case.hot), np.uint32)),
        cold=replace(case.cold, pages=np.ones(len(case.cold), np.uint32)),
    )
    for guests, victims in pairs(case):
        assert len(guests) == len(victims)
        assert (guests >= case.target.margin.factor * victims).all()
        assert (guests - victims > case.target.margin.gain).all()


@given(cases())
@settings(max_examples=200)
def test_a_folio_of_any_size_makes_room_only_for_one_that_beats_it(case: Case) -> None:
    """Room is left over where victims are larger than guests, and colder guests may fill it."""
    case = exchanges_only(case)
    for guests, victims in pairs(case):
        if len(victims):
            assert guests[0] >= case.target.margin.factor * victims[0]
            assert guests[0] - victims[0] > case.target.margin.gain


@given(cases(), st.floats(0, 3), st.floats(0, 3))
@settings(max_examples=60)
def test_no_promotion_wins_less_than_its_cost(case: Case, alone: float, more: float) -> None:
    worth = Worth(alone, alone + more)
    made = replace(case, limits=replace(case.limits, worth=worth)).plan()
    row = rows(case.hot, made.promote.pfn)
    weighted = case.hot.rate[row] * case.owners.weight[case.hot.owner[row]]
    assert (weighted > alone).all()
    kept = case.hot.rate * case.owners.weight[case.hot.owner] > alone
    skipped = made.skipped.get((Direction.PROMOTE, Reason.BENEFIT), 0)
    assert skipped <= case.hot.pages.sum()
    if kept.all() and not more:
        assert skipped == 0 or worth.pair > 0


@given(cases(), st.integers(0, 79), st.floats(1.0, 100.0))
@settings(max_examples=60)
def test_more_heat_never_costs_a_folio_its_promotion(case: Case, which: int, more: float) -> None:
    """Among single pages of no class."""
    hot = replace(
        case.hot,
        owner=np.full(len(case.hot), -1, np.int16),
        pages=np.ones(len(case.hot), np.uint32),
    )
    case = replace(case, hot=hot, owners=Owners.unclassed())
    case = replace(case, cold=replace(case.cold, owner=np.full(len(case.cold), -1, np.int16)))
    promoted = case.plan().promote.pfn
    if not len(promoted):
        return
    chosen = promoted[which % len(promoted)]
    hotter = hot.rate.copy()
    hotter[hot.pfn == chosen] *= more
    again = replace(case, hot=replace(hot, rate=hotter)).plan().promote.pfn
    assert chosen in again


@given(cases(), st.integers(0, 79), st.floats(0.0, 1.0))
@settings(max_examples=60)
def test_less_heat_never_saves_a_folio_from_demotion(case: Case, which: int, left: float) -> None:
    """Among single pages of no class."""
    cold = replace(
        case.cold,
        owner=np.full(len(case.cold), -1, np.int16),
        pages=np.ones(len(case.cold), np.uint32),
    )
    hot = replace(
        case.hot,
        owner=np.full(len(case.hot), -1, np.int16),
        pages=np.ones(len(case.hot), np.uint32),
    )
    case = replace(case, hot=hot, cold=cold, owners=Owners.unclassed())
    demoted = case.plan().demote.pfn
    if not len(demoted):
        return
    chosen = demoted[which % len(demoted)]
    colder = cold.rate.copy()
    colder[cold.pfn == chosen] *= left
    again = replace(case, cold=replace(cold, rate=colder)).plan().demote.pfn
    assert chosen in again


@given(cases())
@settings(max_examples=80)
def test_a_plan_conserves_frames(case: Case) -> None:
    """What leaves one node comes to another, no folio is in both directions, and no node takes
    more than its free frames and what leaves it first (demotions run before promotions)."""
    made = case.plan()
    assert not np.isin(made.promote.pfn, made.demote.pfn).any()
    change = Counter[int]()
    for moves in (made.promote, made.demote):
        assert (moves.source != moves.target).all()
        for source, target, pages in zip(moves.source, moves.target, moves.pages, strict=True):
            change[int(source)] -= int(pages)
            change[int(target)] += int(pages)
    assert sum(change.values()) == 0
    for node in FAST:
        assert change[node] <= case.target.room[node]
    for node in SLOW:
        assert change[node] <= case.ways.room[node]


def huge(first: int, states: list[int], node: int, there: int) -> Folios:
    """Huge pages of no class in these states."""
    n = len(states)
    state = np.array(states, np.uint16)
    return Folios(
        pfn=np.arange(first, first + 512 * n, 512, dtype=np.uint64),
        pages=np.full(n, 512, np.uint32),
        node=np.full(n, node, np.int32),
        state=state,
        rate=rate(state),
        owner=np.full(n, -1, np.int16),
        refused=np.full(n, FREE_TO_GO, np.int8),
        allowed={there: np.ones(n, bool)},
    )


def test_huge_pages_that_beat_no_huge_victim_are_short_of_margin_not_of_room() -> None:
    hot, cold = level_state(50), level_state(10)
    one = np.zeros(1, np.int64)
    owners = Owners(one, one, one + UNLIMITED, one + 1.0, one == 0, one == 0, one > 0, one > 0)
    margin = Margin(1.5, 0.1)
    target = Target(0, 30, level_state(30), 100, {0: 0}, {0: 0}, margin, 0.0, 0.0)
    ways = Ways({2: (0,)}, {0: (2,)}, room={2: 1 << 20}, pieces={0: {512: 0}})
    for victims, reason in (([hot] * 4, Reason.MARGIN), ([], Reason.NO_ROOM)):
        made = plan(
            target,
            huge(1 << 20, [hot] * 8, 2, 0),
            huge(0, victims, 0, 2),
            owners,
            ways,
            Limits(1 << 20, 1 << 20),
        )
        assert made.skipped == {(Direction.PROMOTE, reason): 8 * 512}
    made = plan(
        target,
        huge(1 << 20, [hot] * 8, 2, 0),
        huge(0, [cold] * 4, 0, 2),
        owners,
        ways,
        Limits(1 << 20, 1 << 20),
    )
    assert len(made.promote.pfn) == len(made.demote.pfn) == 4


def test_huge_pages_take_the_place_of_others_where_free_room_is_in_pieces() -> None:
    hot, cold = level_state(50), level_state(10)
    margin = Margin(1.5, 0.1)
    target = Target(0, 30, level_state(30), 100, {0: 0}, {0: 1 << 16}, margin, 0.0, 0.0)
    guests, victims = huge(1 << 20, [hot] * 4, 2, 0), huge(0, [cold] * 8, 0, 2)
    for pieces, exchanged in (({512: 0}, 4), ({512: 1024, 16: 0}, 2), ({16: 0}, 0)):
        ways = Ways({2: (0,)}, {0: (2,)}, room={2: 1 << 20}, pieces={0: pieces})
        limits = Limits(1 << 20, 1 << 20)
        made = plan(target, guests, victims, Owners.unclassed(), ways, limits)
        assert (len(made.promote.pfn), len(made.demote.pfn)) == (4, exchanged)
