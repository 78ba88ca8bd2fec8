# SPDX-License-Identifier: Apache-2.0
"""What room a plan begins with, what it means for the next one, and what is left of it once part of
it was done. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from tierd.config import Headroom
from tierd.host import NodeMemory
from tierd.movers import MoveResult
from tierd.planner import MovePlan, Moves, Reason
from tierd.policy import Room, Target

PASSING: Final = frozenset(
    {
        Reason.BUDGET,
        Reason.PRESSURE,
        Reason.COOLDOWN,
        Reason.NO_ROOM,
        Reason.BUSY,
        Reason.THRASH,
    }
)
"""Reasons that time alone may do away with."""


def room_of(memory: NodeMemory, marks: Headroom, page: int, *, target: bool) -> Room:
    """One node in frames of `page` bytes. The headroom marks never lie below the kernel's own
    watermark. target: see `Room`."""
    low, high = (
        int(max(memory.total * share, memory.high_watermark)) // page
        for share in (marks.low, marks.high)
    )
    return Room(memory.node, memory.total // page, memory.free // page, low, high, target)


def is_final(made: MovePlan) -> bool:
    """Whether another plan would not move anything either, for what is known by now."""
    waits = any(reason in PASSING for _, reason in made.skipped)
    return not (len(made.promote.pfn) or len(made.demote.pfn) or waits)


def frames_by_node(moves: Moves) -> dict[int, int]:
    """Base pages that moves bring to each node."""
    return {
        node: int(moves.pages[moves.target == node].sum())
        for node in np.unique(moves.target).tolist()
    }


def large_left(result: MoveResult) -> dict[tuple[int, int], int]:
    """Base pages that moves have taken off each node in folios of each size, but for single
    pages."""
    moves = result.moves
    large = result.moved & (moves.pages > 1)
    each = zip(moves.source[large].tolist(), moves.pages[large].tolist(), strict=True)
    return {(node, size): size * count for (node, size), count in Counter(each).items()}


def with_less_room(target: Target, filled: Mapping[int, int]) -> Target:
    """The same target, with what other plans take subtracted from its room."""
    room = {node: max(frames - filled.get(node, 0), 0) for node, frames in target.room.items()}
    return replace(target, room=room)


def fit_promotions(promote: Moves, demoted: MoveResult) -> Moves:
    """Drop the last promotions to each node for which a planned demotion made no room."""
    keep = np.ones(len(promote.pfn), np.bool_)
    failed = ~demoted.moved
    for node in np.unique(demoted.moves.source[failed]):
        missing = int(demoted.moves.pages[failed & (demoted.moves.source == node)].sum())
        rows = np.flatnonzero(promote.target == node)[::-1]
        ahead = np.cumsum(promote.pages[rows]) - promote.pages[rows]
        keep[rows[ahead < missing]] = False
    return Moves(promote.pfn[keep], promote.pages[keep], promote.source[keep], promote.target[keep])
