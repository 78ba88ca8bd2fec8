# SPDX-License-Identifier: Apache-2.0
"""MovePlan -> MoveResult: one verified outcome per folio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tierd.host import Pfns
from tierd.planner import Moves, Reason


@dataclass(frozen=True, slots=True)
class MoveResult:
    """What became of `moves`, entry by entry.

    moved: bool[n]; landed: int32[n], the node each is on now or -1 where unknown;
    new_pfn: uint64[n], NO_PFN where it did not move or the kernel did not say.
    failed: base pages that did not move, by reason; not-attempted entries count as BUDGET.
    seconds: wall time of the calls.
    why: int8[n], index into `planner.REASONS` for an entry that stayed, -1 for one that moved;
    None from a mover that cannot tell entries apart.
    """

    moves: Moves
    moved: NDArray[np.bool_]
    landed: NDArray[np.int32]
    new_pfn: Pfns
    failed: Mapping[Reason, int]
    seconds: float
    why: NDArray[np.int8] | None = None


class Mover(Protocol):
    @property
    def name(self) -> str: ...

    def move(self, moves: Moves, deadline: float) -> MoveResult:
        """Move in short batches, in order, until done or until `deadline` (host clock)."""
