# SPDX-License-Identifier: Apache-2.0
"""Targets -> `MovePlan`: which folios go where, in which order, and why others stay."""

from __future__ import annotations

from tierd.planner.draft import plan
from tierd.planner.values import (
    FREE_TO_GO,
    REASONS,
    UNLIMITED,
    Direction,
    Folios,
    Limits,
    MovePlan,
    Moves,
    Owners,
    Reason,
    Ways,
    code,
)

__all__ = [
    "FREE_TO_GO",
    "REASONS",
    "UNLIMITED",
    "Direction",
    "Folios",
    "Limits",
    "MovePlan",
    "Moves",
    "Owners",
    "Reason",
    "Ways",
    "code",
    "plan",
]
