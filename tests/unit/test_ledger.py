# SPDX-License-Identifier: Apache-2.0
"""tierd remembers its own moves, in a few bytes each, and each only once."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tierd.ledger import LIMIT, YOUNG, Ledger


def entries(first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pfn = np.arange(first, first + count, dtype=np.uint64)
    return pfn[::-1], np.zeros(count, np.int16), np.ones(count, np.uint32)


def test_the_ledger_knows_recent_moves_and_finds_each_only_once() -> None:
    ledger = Ledger()
    ledger.add(1.0, *entries(100, 10))
    ledger.add(5.0, *entries(200, 10))
    asked = np.array([205, 104, 7], np.uint64)
    assert ledger.recent(asked, 0.0).tolist() == [True, True, False]
    assert ledger.recent(asked, 2.0).tolist() == [True, False, False]
    assert np.array_equal(ledger.leave(asked, 0.0), [5.0, 1.0, np.nan], equal_nan=True)
    assert not ledger.recent(asked, 0.0).any()
    assert np.isnan(ledger.leave(asked, 0.0)).all()
    ledger.prune(2.0)
    assert len(ledger) == 10
    assert not ledger.recent(np.array([101], np.uint64), 0.0).any()


def test_what_was_moved_for_a_class_that_begins_again_is_no_waste_any_more() -> None:
    ledger = Ledger()
    pfn, _, pages = entries(100, 10)
    owner = np.where(pfn < 105, -1, 2).astype(np.int16)
    ledger.add(1.0, pfn, owner, pages)
    ledger.absolve(2)
    assert ledger.recent(np.array([103, 107], np.uint64), 0.0).tolist() == [True, False]
    left = ledger.leave(np.array([103, 107], np.uint64), 0.0)
    assert np.array_equal(left, [1.0, np.nan], equal_nan=True)


def test_the_ledger_is_bounded() -> None:
    ledger = Ledger()
    for number in range(5):
        ledger.add(float(number), *entries(number << 20, LIMIT // 2))
    assert len(ledger) <= LIMIT


@dataclass
class Move:
    time: float
    owner: int
    pages: int
    left: bool = False


class Plain:
    """The same by the book: a dictionary of the last move into each frame."""

    def __init__(self) -> None:
        self.moves: dict[int, Move] = {}

    def find(self, pfn: int, since: float) -> Move | None:
        move = self.moves.get(pfn)
        return move if move is not None and move.time >= since else None

    def prune(self, before: float) -> None:
        self.moves = {pfn: move for pfn, move in self.moves.items() if move.time >= before}


FRAMES = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "leave", "absolve", "prune"]), FRAMES, st.integers(-1, 2)
    ),
    max_size=40,
)


@given(STEPS, st.booleans())
def test_it_answers_as_a_dictionary_of_all_moves_would(
    steps: list[tuple[str, list[int], int]], far: bool
) -> None:
    ledger, plain = Ledger(), Plain()
    spread = 2**40 if far else 3  # farther apart than 32 bits tell
    for now, (what, frames, number) in enumerate(steps):
        pfn = np.array(frames, np.uint64) * np.uint64(spread)
        since = float(now - 12)
        if what == "add":
            pages = np.where(pfn % np.uint64(2), 1, 512).astype(np.uint32)
            owner = np.where(pfn > 30 * spread, number, -1).astype(np.int16)
            ledger.add(float(now), pfn, owner, pages)
            for at, each in enumerate(pfn.tolist()):
                plain.moves[each] = Move(float(now), int(owner[at]), int(pages[at]))
        elif what == "leave":
            found = [plain.find(each, since) for each in pfn.tolist()]
            times = [move.time if move and not move.left else np.nan for move in found]
            assert np.array_equal(ledger.leave(pfn, since), times, equal_nan=True)
            for move in found:
                if move:
                    move.left = True
        elif what == "absolve":
            ledger.absolve(number)
            for move in plain.moves.values():
                move.left |= move.owner == number
        else:
            ledger.prune(since)
            plain.prune(since)
        found = [plain.find(each, since) for each in pfn.tolist()]
        assert ledger.recent(pfn, since).tolist() == [bool(m and not m.left) for m in found]
        assert ledger.owners(pfn, since).tolist() == [m.owner if m else -1 for m in found]
        assert len(ledger) >= len(plain.moves)


def test_a_frame_that_was_entered_again_is_counted_once_after_a_while() -> None:
    ledger = Ledger()
    for number in range(3 * YOUNG):
        ledger.add(float(number), *entries(100, 10))
    assert len(ledger) < 10 * 2 * YOUNG
    assert ledger.pages == len(ledger)
    ledger.leave(np.arange(100, 110, dtype=np.uint64), 0.0)
    ledger.prune(3.0 * YOUNG)
    assert (len(ledger), ledger.pages) == (0, 0)


def test_a_full_ledger_takes_seven_bytes_a_folio() -> None:
    ledger = Ledger()
    random = np.random.default_rng(5)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2 * YOUNG + 2):
            pfn = random.choice(2**31, LIMIT // 2 // YOUNG, replace=False).astype(np.uint64)
            owner, pages = np.zeros(len(pfn), np.int16), np.ones(len(pfn), np.uint32)
            ledger.add(float(number), pfn, owner, pages)
        used = tracemalloc.get_traced_memory()[0] - before - pfn.nbytes
    finally:
        tracemalloc.stop()
    assert len(ledger) > 0.8 * LIMIT
    assert used < 8 * LIMIT
