# SPDX-License-Identifier: Apache-2.0
"""What goes into a plan and what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.benefit import FOR_NOTHING, Worth
from tierd.host import Pfns
from tierd.sets import member


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
    PRESSURE = "pressure"
    MARGIN = "margin"
    BENEFIT = "benefit"
    EXCLUDED = "excluded"
    NEVER = "never"
    LIMIT = "limit"
    UNMAPPED = "unmapped"
    STALE = "stale"
    THRASH = "thrash"


@dataclass(frozen=True, slots=True)
class Moves:
    """Folios to move in one direction, best first. All arrays have the same length.

    pfn: uint64 folio heads; pages: uint32 base pages in each; source, target: int32 nodes.
    """

    pfn: Pfns
    pages: NDArray[np.uint32]
    source: NDArray[np.int32]
    target: NDArray[np.int32]

    @classmethod
    def none(cls) -> Moves:
        """Nothing to move."""
        return cls(
            np.zeros(0, np.uint64),
            np.zeros(0, np.uint32),
            np.zeros(0, np.int32),
            np.zeros(0, np.int32),
        )


@dataclass(frozen=True, slots=True)
class MovePlan:
    """What one cycle means to move: demotions first, then promotions into the room they make."""

    demote: Moves
    promote: Moves
    skipped: Mapping[tuple[Direction, Reason], int]
    """Base pages of candidates that the planner left where they are."""


REASONS: Final = tuple(Reason)
"""Codes in `Folios.refused` are indices into this."""

FREE_TO_GO: Final = -1
"""Code in `Folios.refused`: nothing speaks against moving the folio."""

UNLIMITED: Final = np.iinfo(np.int64).max


def code(reason: Reason) -> int:
    """Index of a reason in `REASONS`."""
    return REASONS.index(reason)


@dataclass(frozen=True, slots=True)
class Folios:
    """Candidates in one direction; parallel arrays of length n, in any order.

    pfn: uint64 heads, each once; pages: uint32; node: int32; state: uint16 of the heat, which
    decides between equals; rate: float64, accesses per window to be expected.
    owner: int16 class index, -1 for none. refused: int8, FREE_TO_GO or a code of `REASONS`.
    allowed: bool by node id, whether the owner's cpuset lets the folio be there.
    """

    pfn: Pfns
    pages: NDArray[np.uint32]
    node: NDArray[np.int32]
    state: NDArray[np.uint16]
    rate: NDArray[np.float64]
    owner: NDArray[np.int16]
    refused: NDArray[np.int8]
    allowed: Mapping[int, NDArray[np.bool_]]

    def __len__(self) -> int:
        return len(self.pfn)

    @classmethod
    def none(cls, targets: Iterable[int]) -> Folios:
        """No candidates."""
        return cls(
            np.zeros(0, np.uint64),
            np.zeros(0, np.uint32),
            np.zeros(0, np.int32),
            np.zeros(0, np.uint16),
            np.zeros(0, np.float64),
            np.zeros(0, np.int16),
            np.zeros(0, np.int8),
            dict.fromkeys(targets, np.zeros(0, np.bool_)),
        )

    def without(self, taken: Pfns) -> Folios:
        """Those that are not in `taken`."""
        if not len(taken):
            return self
        return self._kept(~member(self.pfn, taken))

    def only(self, owners: NDArray[np.bool_]) -> Folios:
        """Those of some owners; owners: bool[classes + 1], the last for folios in no class."""
        return self._kept(owners[self.owner])

    def joined(self, others: Folios) -> Folios:
        """These and those of the others, on the same nodes, that are not among them."""
        more = others.without(self.pfn) if len(others) else others
        if not len(more):
            return self
        return Folios(
            np.concatenate([self.pfn, more.pfn]),
            np.concatenate([self.pages, more.pages]),
            np.concatenate([self.node, more.node]),
            np.concatenate([self.state, more.state]),
            np.concatenate([self.rate, more.rate]),
            np.concatenate([self.owner, more.owner]),
            np.concatenate([self.refused, more.refused]),
            {n: np.concatenate([mask, more.allowed[n]]) for n, mask in self.allowed.items()},
        )

    def _kept(self, keep: NDArray[np.bool_]) -> Folios:
        return Folios(
            self.pfn[keep],
            self.pages[keep],
            self.node[keep],
            self.state[keep],
            self.rate[keep],
            self.owner[keep],
            self.refused[keep],
            {node: mask[keep] for node, mask in self.allowed.items()},
        )


@dataclass(frozen=True, slots=True)
class Owners:
    """What the policy grants each class. Arrays of length classes + 1; the last is for folios in
    no class, so that owner -1 indexes it.

    resident: int64 base pages in the faster tier; floor, cap: int64 base pages (UNLIMITED for no
    cap); weight: float64, 1 is normal; promote, demote: bool, allowed at all; excluded: bool;
    stopped: bool, by the thrash governor.
    """

    resident: NDArray[np.int64]
    floor: NDArray[np.int64]
    cap: NDArray[np.int64]
    weight: NDArray[np.float64]
    promote: NDArray[np.bool_]
    demote: NDArray[np.bool_]
    excluded: NDArray[np.bool_]
    stopped: NDArray[np.bool_]

    @classmethod
    def unclassed(cls) -> Owners:
        """No classes configured."""
        yes, no = np.ones(1, np.bool_), np.zeros(1, np.bool_)
        zero = np.zeros(1, np.int64)
        return cls(zero, zero, zero + UNLIMITED, np.ones(1), yes, yes, no, no)


@dataclass(frozen=True, slots=True)
class Ways:
    """Where pages may go. promote, demote: for each source node the target nodes, best first.
    room: frames that may be demoted to each slower node. pieces: by faster node and base pages of
    a folio, frames of free room that may be given to folios of that size; the rest is thought to
    lie in smaller pieces. No limit where there is no entry.
    """

    promote: Mapping[int, Sequence[int]]
    demote: Mapping[int, Sequence[int]]
    room: Mapping[int, int]
    pieces: Mapping[int, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Base pages that may move in this plan, by direction; what keeps the others."""

    promote: int
    demote: int
    why: Reason = Reason.BUDGET
    worth: Worth = FOR_NOTHING
    """What a promotion must win to be worth its cost."""
