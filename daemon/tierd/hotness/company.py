# SPDX-License-Identifier: Apache-2.0
"""`Company`: what the frames around one say about it, learned from what the next looks found.

Programs take memory in stretches and use it in stretches, and the kernel hands out frames in
stretches. So where one of 64 adjacent frames is accessed more than usual, the others may be, too:
after a few looks at each the 64 know more of one another than each knows of itself. Whether that
is so on this machine is an empirical question, as it is with `Forecast`: of looks at frames in such
company it is kept how many found them accessed, and how many should have by the frames' own states.
Where neighbours have nothing to do with one another these are as many, and nothing is made of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.hotness.forecast import Forecast, rising
from tierd.hotness.state import KNOWN_FROM, recent
from tierd.hotness.store import Store

LEAST: Final = 8
"""Known neighbours from which they are asked."""

OWN: Final = 8
"""Kinds of frame: by what their own state says, in octaves."""

KINDS: Final = 8
"""Kinds of company: by how much more it was accessed of late than is usual on its node, in half
octaves; the outer ones are open."""

PRIOR: Final = 64.0
"""Accesses' worth of trust in 1 for a kind of company, and in that for a kind of frame in it."""

MOST: Final = 8192
"""Looks in a pass that it is learned from at most: more would tell little more."""

MEMORY: Final = 10 * MOST
"""Looks that are remembered of each node: new ones push old ones out."""

ENOUGH: Final = 1024
"""Looks from which it is worth the while to learn from them."""

LITTLE: Final = 0.05
"""Neighbours that correct the accesses of their node by less than this share on average are
strangers."""

LOOKS: Final = 4
"""Outcomes that a state remembers. Those of a frame that had fewer looks yet count as idle: memory
that is looked at for the first time seems colder than it is for three looks."""

_LANES: Final = np.uint64(0x0001_0001_0001_0001)
_REST: Final = np.uint64(0x7FFF_7FFF_7FFF_7FFF)


class Company:
    """Factors to what the frames' own states say. Of each node its own: on one where pages have
    been brought together from everywhere, neighbours tell less."""

    def __init__(self, store: Store, forecast: Forecast) -> None:
        self._store = store
        self._forecast = forecast
        self._nodes = np.unique(store.node)
        shape = (len(self._nodes), OWN, KINDS)
        self._expected, self._met = np.zeros(shape), np.zeros(shape)
        self._around = np.zeros((2, len(self._nodes)))
        """Of the last looks at the neighbours in those looks how many found them accessed, and how
        many there were."""
        self._factors = np.ones(shape)
        self._telling = np.zeros(len(self._nodes), np.bool_)
        self._new = np.zeros((2, *shape))
        self._new_looks = np.zeros(len(self._nodes))
        self._new_around = np.zeros_like(self._around)
        self._part = 1.0
        self._offered, self._entered, self._due = 0, 0, 0.0

    @property
    def tells(self) -> bool:
        """Whether neighbours on any node have told more than chance would."""
        return bool(self._telling.any())

    def wants(self, looks: int) -> bool:
        """Whether to enter a batch of so many looks; as evenly over a pass as the last one lets
        foresee."""
        self._offered += looks
        self._due += looks * self._part
        if self._due < looks or self._entered + looks > MOST:
            return False
        self._due -= looks
        self._entered += looks
        return True

    def enter(
        self,
        chunk: int,
        offset: NDArray[np.int64],
        state: NDArray[np.uint16],
        hit: NDArray[np.bool_],
    ) -> None:
        """Learn from looks at frames of a chunk, which has their states from before the looks yet.
        offset: int64[n], sorted; state: uint16[n]; hit: bool[n]."""
        row = self._row(chunk)
        told, accessed, looks = self._told(chunk, offset, state)
        self._new_around[:, row] += accessed.sum(), looks.sum()
        self._new_looks[row] += len(told)
        if not self._around[0, row]:
            return
        share = self._forecast.share(state[told])
        kind = self._kind(row, share, accessed, looks)
        for new, weight in zip(self._new, (share, hit[told]), strict=True):
            new[row] += np.bincount(kind, weight, OWN * KINDS).reshape(OWN, KINDS)

    def learn(self) -> None:
        """Make the factors of the next pass from what has been entered."""
        if self._offered:
            self._part = min(1.0, MOST / self._offered)
        self._offered, self._entered, self._due = 0, 0, 0.0
        for row in np.flatnonzero(self._new_looks >= ENOUGH).tolist():
            keep = 1 - self._new_looks[row] / MEMORY
            self._around[:, row] = keep * self._around[:, row] + self._new_around[:, row]
            self._expected[row] = keep * self._expected[row] + self._new[0, row]
            self._met[row] = keep * self._met[row] + self._new[1, row]
            self._factors[row] = _factors(self._expected[row], self._met[row])
            corrected = (np.abs(self._factors[row] - 1) * self._expected[row]).sum()
            self._telling[row] = corrected > LITTLE * self._expected[row].sum()
            self._new[:, row] = self._new_around[:, row] = self._new_looks[row] = 0

    def factor(
        self, chunk: int, offset: NDArray[np.int64], state: NDArray[np.uint16]
    ) -> NDArray[np.float64]:
        """float64[n]: by how much more frames of a chunk (offset: int64[n], sorted; state:
        uint16[n]) are accessed than their states say; 1 where too little is known of their
        neighbours, or of what that means."""
        row = self._row(chunk)
        result = np.ones(len(state))
        if self._telling[row]:
            told, accessed, looks = self._told(chunk, offset, state)
            kind = self._kind(row, self._forecast.share(state[told]), accessed, looks)
            result[told] = self._factors[row].reshape(-1)[kind]
        return result

    def _row(self, chunk: int) -> int:
        return int(np.searchsorted(self._nodes, self._store.node[chunk]))

    def _told(
        self, chunk: int, offset: NDArray[np.int64], state: NDArray[np.uint16]
    ) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
        """Which of the frames (intp[n]) have enough known neighbours, and what `_neighbours` says
        of those."""
        accessed, looks = self._neighbours(chunk, offset, state)
        told = np.flatnonzero(looks >= LEAST * LOOKS)
        return told, accessed[told], looks[told]

    def _neighbours(
        self, chunk: int, offset: NDArray[np.int64], state: NDArray[np.uint16]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64[n] each: of the last four looks at each known neighbour how many found it accessed,
        and how many there were. None where a group is cut short by the chunk's ends."""
        group = self._store.packed.group(chunk, offset)
        first = np.flatnonzero(np.diff(group, prepend=-2))
        each = np.repeat(np.arange(len(first)), np.diff(first, append=len(group)))
        words, there = self._store.packed.groups(chunk, group[first])
        sums = _sums(words)
        accessed, looks = sums[0][each], sums[1][each]
        own = (state >= KNOWN_FROM) & there[each]
        return accessed - recent(state) * own, looks - LOOKS * own

    def _kind(
        self,
        row: int,
        share: NDArray[np.float64],
        accessed: NDArray[np.int64],
        looks: NDArray[np.int64],
    ) -> NDArray[np.intp]:
        """intp[n]: kind of frame and company, below OWN * KINDS. Company that was not accessed at
        all is of the first kind."""
        usual = self._around[0, row] / self._around[1, row]
        own = np.floor(np.log2(np.maximum(share, 2.0**-OWN))) + OWN
        more = np.maximum(accessed, 1 / 4) / looks / usual
        kind = np.floor(2 * np.log2(more)) + KINDS // 2
        own, kind = np.clip(own, 0, OWN - 1), np.clip(kind, 0, KINDS - 1)
        index: NDArray[np.intp] = (own * KINDS + kind).astype(np.intp)
        return index


def _sums(words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """uint64[n, 16], four states in each -> int64[n] each: accessed looks of the last four at all
    that are known, and how many there were. 64 states are too many to look up one by one."""
    known = ((((words & _REST) + _REST) | words) >> np.uint64(15)) & _LANES  # not 0
    accessed = words & _LANES
    for look in range(1, LOOKS):
        accessed += (words >> np.uint64(look)) & _LANES
    return _across(accessed), LOOKS * _across(known)


def _across(lanes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """int64[n]: sums of uint64[n, 16] with four counters of 16 bits in each."""
    total: NDArray[np.uint64] = lanes.sum(axis=1, dtype=np.uint64)
    return ((total * _LANES) >> np.uint64(48)).view(np.int64)


def _factors(expected: NDArray[np.float64], met: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[OWN, KINDS]: met over expected, by kinds with little experience as their company in
    general, which leans on 1. Hotter neighbours never mean less: what looks like that is chance."""
    # What states mean on this node is not the neighbours' doing.
    own = (met.sum(axis=1) + PRIOR) / (expected.sum(axis=1) + PRIOR)
    expected = expected * own[:, None]
    alike = (met.sum(axis=0) + PRIOR) / (expected.sum(axis=0) + PRIOR)
    weight = expected + PRIOR
    return rising((met + PRIOR * alike) / weight, weight)
