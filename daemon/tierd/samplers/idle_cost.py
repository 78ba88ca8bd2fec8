# SPDX-License-Identifier: Apache-2.0
"""What looks cost: units of work, and the CPU seconds per unit as measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.samplers.idle_blocks import Blocks, BlockTable
from tierd.samplers.idle_looks import EMPTY, HUGE, USED

UNIT_BLOCK: Final = 4.0
"""Cost of a full look beside that of its LRU frames."""
UNIT_WORD: Final = 24.0
UNIT_HUGE: Final = 10.0
UNIT_PEEK: Final = 6.0
"""Cost of a sparse look, of one at a huge page, of a peek at an empty block."""

FIRST_COST: Final = 2e-6
"""CPU seconds per unit before anything was measured: what emulation takes, 5 times too much
for real hardware, so that the first call does not overrun. Believed as one look would be."""
FIRST_LOOK: Final = 1e-3
"""CPU seconds that a look takes besides, however small it is. Under emulation it was 6 to 25 times
as much, so this is believed hardly at all: it may be wrong by a factor of `DOUBT`."""
DOUBT: Final = 30.0
FORGET: Final = 0.95
"""What is left of older observations at each new one."""

_WORD_UNITS: Final = np.full(USED + 1, UNIT_WORD)
_WORD_UNITS[[HUGE, EMPTY]] = UNIT_HUGE, UNIT_PEEK


def full_units(kind: NDArray[np.uint8], heads: NDArray[np.uint16]) -> NDArray[np.float64]:
    """float64[n]: what a full look at blocks of these kinds and numbers of folios costs."""
    units = heads.astype(np.float64) + UNIT_BLOCK
    units[kind == HUGE] = UNIT_HUGE
    units[kind == EMPTY] = UNIT_PEEK
    return units


class Line:
    """CPU seconds of a look by its size: a part for each look and one for each unit, fitted to
    what looks took by least squares of relative errors, the last twenty or so."""

    def __init__(self) -> None:
        self.look = FIRST_LOOK
        self.unit = FIRST_COST
        self._sums = np.zeros(5)
        self._cold = True

    def expected(self, units: float) -> float:
        """CPU seconds of one look."""
        return self.look + self.unit * units

    def learn(self, units: float, seconds: float) -> None:
        """A look at so many units took so long. The first of all is not representative: code
        and caches are cold."""
        if self._cold:
            self._cold = False
            return
        weight = 1 / max(seconds, 1e-5) ** 2
        news = (1.0, units, units * units, seconds, units * seconds)
        self._sums = FORGET * self._sums + weight * np.array(news)
        trust = 1 / (DOUBT * FIRST_LOOK) ** 2, 1 / FIRST_COST**2
        w, x, xx, y, xy = self._sums + np.array(
            [trust[0], 0.0, trust[1], trust[0] * FIRST_LOOK, trust[1] * FIRST_COST]
        )
        slope = (w * xy - x * y) / (w * xx - x * x)
        self.unit = min(max(float(slope), FIRST_COST / 100), float(xy / xx))
        self.look = max(float((y - self.unit * x) / w), 0.0)


class Costs:
    """CPU seconds of a full look and of a sparse one. A unit of the first is the kernel's work,
    of the second calls, and how much dearer those are differs between machines; what each look
    takes besides is tierd's own, and under emulation as much as thousands of units."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._full, self._sparse = Line(), Line()

    @property
    def full(self) -> float:
        """CPU seconds of a unit of a full look."""
        return self._full.unit

    @property
    def looks(self) -> float:
        """CPU seconds that a full look and a sparse one take whatever their size."""
        return self.full_look + self.sparse_look

    @property
    def full_look(self) -> float:
        """CPU seconds that a full look takes whatever its size."""
        return self._full.look

    @property
    def sparse_look(self) -> float:
        """CPU seconds that a sparse look takes whatever its size."""
        return self._sparse.look

    @property
    def dearer(self) -> float:
        """A unit of a sparse look over one of a full look."""
        return self._sparse.unit / self._full.unit

    def full_units(self, blocks: Blocks) -> NDArray[np.float64]:
        """float64[n]: what a full look at each block costs."""
        return full_units(self._table.kind(blocks), self._table.heads(blocks))

    def word_units(self, blocks: Blocks) -> NDArray[np.float64]:
        """float64[n]: what a sparse look at each block costs, in units of a full one."""
        return _WORD_UNITS[self._table.kind(blocks)] * self.dearer

    def words(self, blocks: Blocks) -> float:
        """What sparse looks at all of these blocks cost, in units of their own."""
        return float(_WORD_UNITS[self._table.kind(blocks)].sum())

    def learn(self, looks: Sequence[tuple[bool, float]], used: float) -> None:
        """Looks at once (whether it was full, its units) took `used` CPU seconds in all."""
        lines = [self._full if full else self._sparse for full, _ in looks]
        expected = [line.expected(units) for line, (_, units) in zip(lines, looks, strict=True)]
        for line, (_, units), share in zip(lines, looks, expected, strict=True):
            line.learn(units, used * share / sum(expected))
