# SPDX-License-Identifier: Apache-2.0
"""What looks cost: units of work, and the CPU seconds per unit as measured."""

from __future__ import annotations

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

LEARN: Final = 4000.0
"""Units after which a cost counts as known."""
FIRST_COST: Final = 2e-6
"""CPU seconds per unit before anything was measured: what emulation takes, 5 times too much
for real hardware, so that the first call does not overrun."""

_WORD_UNITS: Final = np.full(USED + 1, UNIT_WORD)
_WORD_UNITS[[HUGE, EMPTY]] = UNIT_HUGE, UNIT_PEEK


def full_units(kind: NDArray[np.uint8], heads: NDArray[np.uint16]) -> NDArray[np.float64]:
    """float64[n]: what a full look at blocks of these kinds and numbers of folios costs."""
    units = heads.astype(np.float64) + UNIT_BLOCK
    units[kind == HUGE] = UNIT_HUGE
    units[kind == EMPTY] = UNIT_PEEK
    return units


class Costs:
    """CPU seconds per unit of a full look and of a sparse one: the first is the kernel's work,
    the second calls, and how much dearer those are differs between machines."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._cost = {False: FIRST_COST, True: FIRST_COST}
        self._learned = {False: 0.0, True: 0.0}
        """Units that this was learned from, of the last few looks."""

    @property
    def full(self) -> float:
        """CPU seconds of a unit of a full look."""
        return self._cost[False]

    @property
    def dearer(self) -> float:
        """A unit of a sparse look over one of a full look."""
        return self._cost[True] / self._cost[False]

    def full_units(self, blocks: Blocks) -> NDArray[np.float64]:
        """float64[n]: what a full look at each block costs."""
        return full_units(self._table.kind(blocks), self._table.heads(blocks))

    def word_units(self, blocks: Blocks) -> NDArray[np.float64]:
        """float64[n]: what a sparse look at each block costs, in units of a full one."""
        return _WORD_UNITS[self._table.kind(blocks)] * self.dearer

    def words(self, blocks: Blocks) -> float:
        """What sparse looks at all of these blocks cost, in units of their own."""
        return float(_WORD_UNITS[self._table.kind(blocks)].sum())

    def learn(self, full: float, sparse: float, used: float) -> None:
        """So many units of full and sparse looks took `used` CPU seconds."""
        units = {False: full, True: sparse}
        expected = sum(units[kind] * self._cost[kind] for kind in units)
        if not expected:
            return
        factor = used / expected
        for kind, count in units.items():
            # The first few thousand units count in full, later ones beside those before them.
            weight = min(count / LEARN, 1.0) if self._learned[kind] < LEARN else 0.0
            weight = max(weight, min(count / 20_000, 0.5))
            self._learned[kind] += count
            self._cost[kind] *= 1 + weight * (factor - 1)
            self._cost[kind] = max(self._cost[kind], 1e-9)
