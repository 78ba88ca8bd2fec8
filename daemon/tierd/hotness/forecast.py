# SPDX-License-Identifier: Apache-2.0
"""`Forecast`: what a state has meant so far, learned from what the next looks found.

The share q that a state remembers is not what to expect of the frame. Of the frames that look
hottest, some only had luck, and the more alike all frames are, the more of them: those fall back
towards the mean (Galton). How far is an empirical question with an answer at hand, because every
look is an experiment: the frame was in some state, and was found accessed or not. So for each
kind of state, which is a level of q and an age, the share of looks is kept that found its frames
accessed. Two frames are compared by that. Where all frames are alike, as under uniform access,
every kind of state comes to mean the same, and nothing is worth moving.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.hotness.state import (
    AGE_SHIFT,
    AGES,
    LEVEL_EDGES,
    LEVELS,
    Q_MAX,
    Q_ONE,
    Q_SHIFT,
    STATES,
    recent,
)

SEEN: Final = 5
"""Of the last four looks 0..4 found the frame accessed."""

CELLS: Final = LEVELS * AGES * SEEN

PRIOR: Final = 8.0
"""Looks' worth of trust in q itself while a kind of state is new."""

MOST: Final = 4096.0
"""Looks that are remembered per kind of state: new ones push old ones out, so that what is seen
often is learned anew within a few passes when the program changes."""

FADE: Final = 0.98
"""What is left of the memory after a pass in any case."""


ENOUGH: Final = 16_384
"""Looks from which it is worth the while to learn from them, and an eighth of all frames at most:
a host that looks at a few frames in each pass need not pay for it each time."""


class Forecast:
    """Learned share of looks that find a frame accessed, by level, age and recent looks."""

    def __init__(self, frames: int) -> None:
        """frames: of all memory."""
        self._enough = min(ENOUGH, frames // 8)
        self._looks = np.zeros((LEVELS, AGES, SEEN))
        self._hits = np.zeros((LEVELS, AGES, SEEN))
        self._new = np.zeros((2, CELLS), np.int64)
        self._entered = 0
        self._changed = 0.0
        self.table: NDArray[np.float64] = np.repeat(_MIDDLE, AGES * SEEN)
        """float64[CELLS]: the share by kind of state."""

    def enter(self, state: NDArray[np.uint16], hit: NDArray[np.bool_]) -> tuple[int, float, int]:
        """Learn from looks at frames in `state` (before the look). Returns of those that were
        well known how many there were, how many were expected to be accessed, how many were."""
        kind = _CELL[state] + np.multiply(hit, CELLS, dtype=np.intp)
        new = np.bincount(kind, minlength=2 * CELLS).reshape(2, CELLS)
        self._new += new
        self._entered += len(state)
        idle, met = new
        settled = _SETTLED * (idle + met)
        return int(settled.sum()), float(settled @ self.table), int(met @ _SETTLED)

    def rate(self, state: NDArray[np.uint16]) -> NDArray[np.float64]:
        """float64[n]: accesses per window to be expected of frames in `state`, 0 of unknown
        ones. Yes/no windows saturate, rates do not."""
        share = np.minimum(self.share(state), Q_MAX / Q_ONE)
        rate: NDArray[np.float64] = -np.log1p(-share)
        return rate

    def share(self, state: NDArray[np.uint16]) -> NDArray[np.float64]:
        """float64[n]: share of the looks at frames in `state` that will find them accessed."""
        share: NDArray[np.float64] = self.table[_CELL[state]]
        return share

    def learn(self, changed: float = 0.0) -> None:
        """Make the forecasts of the next pass from what has been entered, as soon as that is
        enough. changed: share of the frames, 0..1, whose states are about what they were; so is
        the memory."""
        self._changed = 1 - (1 - self._changed) * (1 - changed)
        if self._entered < self._enough:
            return
        changed, self._changed, self._entered = self._changed, 0.0, 0
        idle, met = self._new.reshape(2, LEVELS, AGES, SEEN)
        keep = np.clip(
            (MOST - idle - met) / np.maximum(self._looks, 1.0), 0.0, FADE * (1 - changed)
        )
        self._looks = keep * self._looks + idle + met
        self._hits = keep * self._hits + met
        self._new[:] = 0
        looks, hits = self._looks, self._hits
        pooled = _share(looks.sum(axis=2), hits.sum(axis=2), _MIDDLE[:, None])
        share = _share(looks, hits, pooled[:, :, None])
        share[0] = 0.0  # unknown
        self.table = share.reshape(-1)


def _share(
    looks: NDArray[np.float64], hits: NDArray[np.float64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Like `looks`, whose first axis is the level: shares that rise with it."""
    weight = looks + PRIOR
    value = (hits + PRIOR * prior) / weight
    kinds = (value.reshape(LEVELS, -1).T, weight.reshape(LEVELS, -1).T)
    return rising(*kinds).T.reshape(looks.shape)


def rising(value: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Isotonic regression of each row (pool adjacent violators): the nearest values that never
    fall.

    More heat never means less, so what looks like that is chance; and what chance cannot tell
    apart becomes equal. All rows at once: pools that fall are joined until none does.
    """
    begin = np.arange(value.size)
    much, total = weight.ravel(), (value * weight).ravel()
    mean = value.ravel()
    while True:
        first = np.ones(len(begin), np.bool_)
        np.greater(mean[1:], mean[:-1], out=first[1:])
        first[begin % value.shape[1] == 0] = True
        if first.all():
            break
        joined = np.flatnonzero(first)
        begin, much = begin[joined], np.add.reduceat(much, joined)
        total = np.add.reduceat(total, joined)
        mean = total / much
    length = np.diff(np.append(begin, value.size))
    return np.repeat(mean, length).reshape(value.shape)


def _cells() -> NDArray[np.uint16]:
    """uint16[STATES]: kind of each state: level, age, accessed looks of the last four."""
    state = np.arange(STATES).astype(np.uint16)
    level = np.searchsorted(LEVEL_EDGES, state >> Q_SHIFT, side="right") - 1
    age = (state >> AGE_SHIFT) & (AGES - 1)
    return ((level * AGES + age) * SEEN + recent(state)).astype(np.uint16)


_CELL: Final = _cells()
_WIDTH: Final = np.diff(np.append(LEVEL_EDGES, Q_ONE))
_MIDDLE: Final = (LEVEL_EDGES + (_WIDTH - 1) / 2) / Q_ONE
_SETTLED: Final = (np.arange(CELLS) // SEEN % AGES >= 2).astype(np.int64)
