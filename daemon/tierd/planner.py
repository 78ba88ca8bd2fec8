# SPDX-License-Identifier: Apache-2.0
"""Targets -> `MovePlan`: which folios go where, in which order, and why others stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tierd.host import Pfns


class Direction(StrEnum):
    PROMOTE = "promote"
    DEMOTE = "demote"


class Reason(StrEnum):
    """Why a candidate was not moved. Every candidate that stays is counted under one."""

    CPUSET = "cpuset"
    MEMPOLICY = "mempolicy"
    VMA = "vma"
    PINNED = "pinned"
    SHARED = "shared"
    BUSY = "busy"
    NO_ROOM = "no_room"
    COOLDOWN = "cooldown"
    BUDGET = "budget"
    MARGIN = "margin"
    EXCLUDED = "excluded"
    NEVER = "never"
    LIMIT = "limit"
    UNMAPPED = "unmapped"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Moves:
    """Folios to move in one direction, best first. All arrays have the same length.

    pfn: uint64 folio heads; pages: uint32 base pages in each; source, target: int32 nodes.
    """

    pfn: Pfns
    pages: NDArray[np.uint32]
    source: NDArray[np.int32]
    target: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class MovePlan:
    """What one cycle means to move: demotions first, then promotions into the room they make."""

    demote: Moves
    promote: Moves
    skipped: Mapping[tuple[Direction, Reason], int]
    """Base pages of candidates that the planner left where they are."""
