# SPDX-License-Identifier: Apache-2.0
"""What became of the pairs of a cycle: did the promoted pages earn what was promised?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import NO_PFN, Pfns
from tierd.hotness import HeatMap, rate
from tierd.movers import MoveResult

PAIRS: Final = 1024
"""Pairs of a cycle that are followed up: the mean of so many is known to 2 %."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Frames that the worst promoted and the worst demoted pages of one cycle are in now.

    The margin is about the last pairs, not about the best ones, so those are followed.
    promised: mean difference of their rates as heat had it, accesses per window.
    """

    boundary: int
    time: float
    promoted: Pfns
    demoted: Pfns
    promised: float

    @classmethod
    def of(
        cls,
        boundary: int,
        now: float,
        promoted: MoveResult,
        demoted: MoveResult,
        demoted_states: NDArray[np.uint16],
        promoted_states: NDArray[np.uint16],
    ) -> Trial:
        """States are those of the moves in each plan, from before they were moved."""
        sides = []
        rates = []
        for result, states in ((promoted, promoted_states), (demoted, demoted_states)):
            known = result.moved & (result.new_pfn != NO_PFN)
            sides.append(result.new_pfn[known][-PAIRS:])
            rates.append(rate(states[: len(known)][known][-PAIRS:]))
        promised = float(rates[0].mean() - rates[1].mean()) if all(map(len, rates)) else 0.0
        return cls(boundary, now, sides[0], sides[1], promised)

    def outcome(self, heat: HeatMap) -> tuple[int, float, float]:
        """(pairs, promised, gained): accesses per window in sum, by each frame's last look."""
        pairs = min(len(self.promoted), len(self.demoted))
        if not pairs:
            return 0, 0.0, 0.0
        shares = [_share(heat.states(pfn)) for pfn in (self.promoted, self.demoted)]
        promoted, demoted = (-np.log1p(-min(share, 0.999)) for share in shares)
        return pairs, pairs * self.promised, pairs * float(promoted - demoted)


def _share(states: NDArray[np.uint16]) -> float:
    """Share of the known frames that were accessed in their last look."""
    known = states[states > 0]
    return float((known & np.uint16(1)).mean()) if len(known) else 0.0
