# SPDX-License-Identifier: Apache-2.0
"""Progress of a scan round and round over all memory. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

STRIDE: Final = 16
"""Passes of a sweep in a round."""

_ORDER: Final = np.array([int(f"{at:04b}"[::-1], 2) for at in range(STRIDE)])
"""Which blocks of each `STRIDE` a pass takes: at any time those taken are spread evenly."""


def in_turn(count: int, at: int, end: int) -> NDArray[np.int64]:
    """int64[end - at]: of `count` blocks those that a sweep takes as its `at`-th to `end`-th of a
    round: every `STRIDE`-th, beginning elsewhere in each pass. `end` is at most `count`."""
    whole, rest = divmod(count, STRIDE)
    length = whole + (rest > _ORDER)  # blocks in each pass
    begin = np.concatenate(([0], np.cumsum(length)))
    turn = np.arange(at, end)
    number = np.searchsorted(begin, turn, side="right") - 1
    blocks: NDArray[np.int64] = (turn - begin[number]) * STRIDE + _ORDER[number]
    return blocks


class Round:
    """How far the present round over all blocks has come, and how the last one went."""

    def __init__(self, blocks: int, now: float) -> None:
        self._blocks = max(blocks, 1)
        self._began = now
        self._passed = 0
        self._looked = 0
        self._last: tuple[int, float] | None = None

    def looked(self, frames: int) -> None:
        """So many frames were looked at."""
        self._looked += frames

    def passed(self, blocks: int, now: float) -> None:
        """So many blocks have had their turn; `now` in seconds."""
        self._passed += blocks
        if self._passed >= self._blocks:
            self._last = (self._looked, now - self._began)
            self._passed, self._looked, self._began = 0, 0, now

    def status(self, now: float, known: int) -> tuple[float, float]:
        """Share of the known frames that were looked at, and seconds of a round; before the
        first round is over, what is known so far."""
        if self._last is not None:
            looked, seconds = self._last
            elapsed = now - self._began
            if elapsed > seconds:  # the load or the budget has changed: this one takes longer
                seconds = elapsed * self._blocks / max(self._passed, 1)
        else:
            part = self._passed / self._blocks
            looked, seconds = self._looked, (now - self._began) / part if part else 0.0
        return min(looked / known, 1.0) if known else 0.0, seconds
