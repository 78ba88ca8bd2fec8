# SPDX-License-Identifier: Apache-2.0
"""What two bytes remember of one page frame, and how a look changes them.

A state is a ``uint16``::

    15            6 5   4 3        0
    +--------------+-----+----------+
    | q, 10 bits   | age | looks    |
    +--------------+-----+----------+

- *looks*: the outcomes of the last four looks, the newest in bit 0. What is hot now.
- *q*: share of looks that found the frame accessed, in 1/1024, never 0 for a known frame.
  What is hot usually.
- *age*: how much evidence stands behind q. It sets the gain, so that a new frame is known after
  a few looks and an old one is not thrown off by one of them.

States below 16 have q = 0: the frame is unknown, it was never looked at.

The mean of yes/no outcomes with gain 1/64 is slow when the program changes its mind. So a run of
outcomes that q calls all but impossible (four idle looks of a frame that is accessed in 95 % of
them) is taken for what it is, a change: q restarts from the run and age from zero. This is
Bayesian change-point detection cut down to what fits in a table.

One look is one table lookup: `transitions` holds the successor of every state. Rounding to ten
bits would freeze small values of q, so rounding is dithered over `PHASES` tables, one per pass.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

STATES: Final = 1 << 16
UNKNOWN: Final = 0
KNOWN_FROM: Final = 1 << 6
"""Every known state is at least this (q >= 1/1024)."""

Q_ONE: Final = 1024
Q_MAX: Final = Q_ONE - 1
Q_SHIFT: Final = 6
AGE_SHIFT: Final = 4
LOOKS_MASK: Final = 15

AGES: Final = 4
CODES: Final = STATES >> AGE_SHIFT
"""Kinds of state when the looks are left out: q and age."""

GAINS: Final = (1 / 4, 1 / 10, 1 / 24, 1 / 64)
"""Gain of one look by age; about the inverse of the number of looks behind q."""

_SPAN: Final = (4, 10, 24)
"""Looks that a frame spends at each age before the last, on average."""

HAZARDS: Final = (2e-6, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 6e-1)
"""Prior probability that a frame changes its mind between two looks. The first is for a program
that goes on as it did: among millions of frames chance makes many a run."""

CHANGING: Final = (0.0, 6e-4, 2e-3, 6e-3, 2e-2, 6e-2, 2e-1, 5e-1)
"""Share of the frames that are thought to change, from which each hazard holds."""

OLDEST: Final = (3, 3, 3, 3, 3, 3, 2, 0)
"""Age beyond which evidence does not count, by hazard: when most frames change, so may any."""

FIRST: Final = (1 / 16, 1 / 2)
"""q after a first look that found the frame idle, accessed: most memory is idle."""

PHASES: Final = 16


def phase_of(number: int) -> int:
    """Dither phase of the number-th pass. Steps of the golden ratio: equidistributed also for
    a block that is looked at in every k-th pass only."""
    return int(number * 0.6180339887498949 % 1.0 * PHASES)


def hazard_of(share: float) -> int:
    """Index into `HAZARDS` where that share of the frames changes."""
    return max(bisect_right(CHANGING, share) - 1, 0)


def successors(
    state: NDArray[np.uint16],
    hit: NDArray[np.bool_],
    phase: int,
    cooling: int = 0,
    heating: int = 0,
) -> NDArray[np.uint16]:
    """uint16[n]: the state after a look, accessed or not (bool[n]); as `transitions` has it, each
    worked out for itself. For a few: it takes 0.1 ms and more, the table 0.5 ms once a pass."""
    new = np.empty_like(state)
    for outcome, hazard in ((False, cooling), (True, heating)):
        rows = np.flatnonzero(hit == outcome)
        old = state[rows]
        looks = old & np.uint16(LOOKS_MASK)
        after = _step(outcome, phase, hazard, old >> np.uint16(AGE_SHIFT))
        after = after[np.arange(len(old)), _RUN[int(outcome)][looks] - 1]
        after |= _SHIFTED[int(outcome)][looks]
        after[old < KNOWN_FROM] = _first(outcome)
        new[rows] = after
    return new


def _first(hit: bool) -> int:
    return round(FIRST[hit] * Q_ONE) << Q_SHIFT | int(hit)


@lru_cache(maxsize=2)
def transitions(phase: int, cooling: int = 0, heating: int = 0) -> NDArray[np.uint16]:
    """uint16[2 * STATES]: the state after a look. Index: accessed * STATES + state.

    cooling, heating: indices into `HAZARDS`, for hot frames that become cold and the reverse.
    Made anew for each pass, in half a millisecond: tables for all phases and hazards would be
    8 MiB and more.
    """
    table = np.empty((2, CODES, LOOKS_MASK + 1), np.uint16)
    for hit, hazard in ((False, cooling), (True, heating)):
        after = np.take(_step(hit, phase, hazard), _RUN[int(hit)] - 1, axis=1)
        np.bitwise_or(after, _SHIFTED[int(hit)], out=table[int(hit)])
        unknown = KNOWN_FROM >> AGE_SHIFT
        table[int(hit), :unknown] = _first(hit)
    flat = table.reshape(-1)
    flat.setflags(write=False)
    return flat


def _step(
    hit: bool, phase: int, hazard: int, code: NDArray[np.uint16] | slice = slice(None)
) -> NDArray[np.uint16]:
    """uint16[n, 4]: state without its looks after a look that made the run of like outcomes
    1, 2, 3 or 4 long, by q and age before it (`code`). Of the looks nothing else counts."""
    less, more, young, older = (part[code] for part in _steps(hit, hazard))
    q, age = _CODE_Q[code], _CODE_AGE[code]
    goal = Q_MAX if hit else 1
    exact = q + _CODE_GAIN[code] * (goal - q)
    up = exact - np.floor(exact) + (phase + 0.5) / PHASES >= 1.0
    grown = _grows(age, q, phase) > 0
    after: NDArray[np.uint16] = np.where(up[:, None], more, less)
    after |= np.where(grown[:, None], older, young)
    return after


@lru_cache(maxsize=2)
def _steps(hit: bool, hazard: int) -> tuple[NDArray[np.uint16], ...]:
    """Four uint16[CODES, 4], the parts of `_step` that are the same in all phases: q where the
    dither does not and where it does round it up, age where it does not and where it does grow."""
    goal = Q_MAX if hit else 1
    exact = np.floor(_CODE_Q + _CODE_GAIN * (goal - _CODE_Q))
    change = _change(hit, hazard)
    fresh = (_LENGTHS + 0.5) / (_LENGTHS + 1.0) if hit else 0.5 / (_LENGTHS + 1.0)
    parts = []
    for up in (0, 1):
        moved = np.clip(exact + up, 1, Q_MAX)[:, None]
        restart = np.rint(change * fresh * Q_ONE + (1 - change) * moved)
        moved = np.maximum(moved, restart) if hit else np.minimum(moved, restart)
        parts.append(moved.astype(np.uint16) << np.uint16(Q_SHIFT))
    for grown in (0, 1):
        older = np.minimum(_CODE_AGE + grown, 3)[:, None]
        older = np.where(change > 0.5, 0, np.minimum(older, OLDEST[hazard]))
        parts.append(older.astype(np.uint16) << np.uint16(AGE_SHIFT))
    return tuple(parts)


def _grows(age: NDArray[np.int64], q: NDArray[np.int64], phase: int) -> NDArray[np.int64]:
    """1 where the frame grows older in this phase: in one of `_SPAN[age]` looks. What the phases
    are too few for, the low bits of q decide."""
    tick = phase + PHASES * (q & 1)
    every = np.asarray([*_SPAN, 2 * PHASES])[age]
    return ((tick * 7 % (2 * PHASES)) < 2 * PHASES / every).astype(np.int64)


def _runs(hit: bool) -> NDArray[np.int64]:
    """int64[16]: how many of the newest outcomes are alike, 1..4, after a look, by the looks
    with it."""
    looks = _after(hit)
    same = looks if hit else ~looks & LOOKS_MASK
    run = np.ones_like(looks)
    for length in (2, 3, 4):
        mask = (1 << length) - 1
        run = np.where(same & mask == mask, length, run)
    return run


def _after(hit: bool) -> NDArray[np.int64]:
    """int64[16]: looks after one more, by the looks before it."""
    return (np.arange(LOOKS_MASK + 1) << 1 | int(hit)) & LOOKS_MASK


_CODE_Q: Final = np.arange(CODES) >> (Q_SHIFT - AGE_SHIFT)
_CODE_AGE: Final = np.arange(CODES) & (AGES - 1)
_CODE_GAIN: Final = np.asarray(GAINS)[_CODE_AGE]
_LENGTHS: Final = np.arange(1, 5)
_RUN: Final = (_runs(False), _runs(True))
_SHIFTED: Final = (_after(False).astype(np.uint16), _after(True).astype(np.uint16))


def _change(hit: bool, hazard: int) -> NDArray[np.float64]:
    """float64[CODES, 4]: probability that a run of like outcomes, 1 to 4 long, is a change of
    mind and not chance (Bayes).

    One outcome is never enough, and a frame of age 0 follows its looks fast anyway.
    """
    q, age = (_CODE_Q / Q_ONE)[:, None], _CODE_AGE[:, None]
    # The run itself has moved q already: what it was before counts.
    kept = (1 - np.asarray(GAINS)[age]) ** (_LENGTHS - 1)
    chance = 1 - (1 - q) / kept if hit else 1 - q / kept
    chance = np.where(_LENGTHS >= 2, np.maximum(chance, 1 / Q_ONE) ** _LENGTHS, 1.0)
    probability: NDArray[np.float64] = HAZARDS[hazard] / (HAZARDS[hazard] + chance)
    return np.where((_LENGTHS >= 2) & (age > 0), probability, 0.0)


def _rates() -> NDArray[np.float64]:
    """float64[1024] accesses per window by q: with Poisson accesses a share q of the windows
    sees one at the rate -ln(1 - q). Yes/no saturates, rates do not."""
    q: NDArray[np.float64] = np.arange(Q_ONE) / Q_ONE
    return -np.log1p(-q)


RATES: Final = _rates()


def rate(state: NDArray[np.uint16]) -> NDArray[np.float64]:
    """float64[n]: accesses per window, 0 for unknown frames."""
    result: NDArray[np.float64] = RATES[state >> np.uint16(Q_SHIFT)]
    return result


def code(state: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """uint16[n], below `CODES`: q and age of each state."""
    return state >> np.uint16(AGE_SHIFT)


def evidence() -> NDArray[np.float64]:
    """float64[4]: looks that stand behind q, by age; an average with gain g has as much evidence
    as 2/g - 1 of them."""
    looks: NDArray[np.float64] = 2 / np.asarray(GAINS) - 1
    return looks


@lru_cache(maxsize=8)
def _bounds(errors: float) -> NDArray[np.float64]:
    """float64[4096] by state >> 4: `rate_bound`. Wilson's interval for q: unlike the normal one
    it stays inside 0..1, is sane for few looks, and grows with q."""
    code = np.arange(STATES >> AGE_SHIFT)
    n = evidence()[code & 3]
    q = (code >> 2) / Q_ONE
    square = errors * errors
    middle = (q + square / (2 * n)) / (1 + square / n)
    half = errors / (1 + square / n) * np.sqrt(q * (1 - q) / n + square / (4 * n * n))
    bound: NDArray[np.float64] = np.clip(middle + half, 0.0, Q_MAX / Q_ONE)
    return -np.log1p(-bound)


def rate_bound(state: NDArray[np.uint16], errors: float) -> NDArray[np.float64]:
    """float64[n]: what the rate is at most (errors > 0) or at least (errors < 0), accesses per
    window, with a confidence of that many standard errors."""
    result: NDArray[np.float64] = _bounds(round(errors, 2))[state >> np.uint16(AGE_SHIFT)]
    return result


_COUNT: Final = np.array([bin(code).count("1") for code in range(16)], np.uint8)


def recent(state: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """uint8[n]: in how many of the last four looks each frame was accessed."""
    result: NDArray[np.uint8] = _COUNT[state & np.uint16(LOOKS_MASK)]
    return result


def again(state: NDArray[np.uint16], hit: NDArray[np.bool_]) -> int:
    """How many frames in these states, before a look that found them accessed or not (bool[n]), are
    accessed in two of their last four looks after it."""
    before = (state & np.uint16(LOOKS_MASK >> 1)) != 0
    return int(np.count_nonzero(before & hit))


def settled(state: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """bool[n]: whether some dozen looks or more stand behind each state."""
    old: NDArray[np.bool_] = (state & np.uint16(2 << AGE_SHIFT)) != 0
    return old


def _edges() -> NDArray[np.int64]:
    """Lower bounds of the levels in q: 0 alone is level 0 (unknown), then each level is at
    least an eighth hotter by rate than the one before."""
    edges = [0, 1]
    while True:
        wanted = RATES[edges[-1]] * 1.125
        nearest = int(np.searchsorted(RATES, wanted))
        following = max(nearest, edges[-1] + 1)
        if following > Q_MAX:
            return np.array(edges)
        edges.append(following)


LEVEL_EDGES: Final = _edges()
LEVELS: Final = len(LEVEL_EDGES)


def level_state(level: int) -> int:
    """The lowest state of a level; one beyond the hottest level gives STATES."""
    return int(LEVEL_EDGES[level]) << Q_SHIFT if level < LEVELS else STATES


def level_rate(level: int) -> float:
    """Accesses per window at the lower edge of a level; of the hottest state beyond them."""
    return float(RATES[LEVEL_EDGES[level]]) if level < LEVELS else float(RATES[Q_MAX])
