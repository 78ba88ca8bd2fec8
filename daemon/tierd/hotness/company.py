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

GROUP: Final = 64
"""Frames that are company for one another, at most; one word of the idle bitmap."""

LEAST: Final = 8
"""Known neighbours from which they are asked."""

OWN: Final = 8
"""Kinds of frame: by what their own state says, in octaves."""

KINDS: Final = 8
"""Kinds of company: by how much more it was accessed of late than is usual on its node, in half
octaves; the outer ones are open."""

PRIOR: Final = 64.0
"""Accesses' worth of trust in the frame's own state alone while a kind is new."""

MOST: Final = 16_384
"""Looks in a pass that it is learned from, about: more would tell little more."""

FADE: Final = 0.9
"""What is left of the memory after a pass."""

_LOOKS: Final = 4


class Company:
    """Factors to what the frames' own states say. Of each node its own: on one where pages have
    been brought together from everywhere, neighbours tell less."""

    def __init__(self, store: Store, forecast: Forecast) -> None:
        self._store = store
        self._forecast = forecast
        nodes = int(store.node.max(initial=-1)) + 1
        shape = (nodes, OWN, KINDS)
        self._expected, self._met = np.zeros(shape), np.zeros(shape)
        self._new = np.zeros((2, *shape))
        self._factors = np.ones(shape)
        self._usual = np.zeros(nodes)
        """Share of the last looks that found frames accessed, by node; 0 is not known."""
        self._seen = np.zeros((2, nodes))
        self._offered, self._part, self._due = 0, 1.0, 0.0

    def wants(self, looks: int) -> bool:
        """Whether to enter a batch of so many looks; evenly over a pass."""
        self._offered += looks
        self._due += looks * self._part
        if self._due < looks:
            return False
        self._due -= looks
        return True

    def enter(
        self,
        chunk: int,
        offset: NDArray[np.int64],
        state: NDArray[np.uint16],
        hit: NDArray[np.bool_],
    ) -> None:
        """Learn from looks at frames of a chunk (sorted offsets) that were in `state` before them.
        The chunk has these states yet."""
        accessed, looks = self._around(chunk, offset, state)
        told = (state >= KNOWN_FROM) & (looks >= LEAST * _LOOKS)
        node = int(self._store.node[chunk])
        self._seen[:, node] += accessed[told].sum(), looks[told].sum()
        if not self._usual[node]:
            return
        share = self._forecast.share(state[told])
        kind = self._kind(node, share, accessed[told], looks[told])
        for new, weight in zip(self._new, (share, hit[told]), strict=True):
            new[node] += np.bincount(kind, weight, OWN * KINDS).reshape(OWN, KINDS)

    def learn(self) -> None:
        """Make the factors of the next pass from what has been entered."""
        accessed, looks = self._seen
        self._usual = np.where(looks > 0, accessed / np.maximum(looks, 1), self._usual)
        self._seen[:] = 0
        self._part = min(1.0, MOST / max(self._offered, 1))
        self._offered = 0
        for node in np.flatnonzero(self._new[0].any(axis=(1, 2))).tolist():
            expected, met = self._new[:, node]
            self._expected[node] = FADE * self._expected[node] + expected
            self._met[node] = FADE * self._met[node] + met
            expected, met = self._expected[node], self._met[node]
            # What states mean on this node is not the neighbours' doing.
            expected = expected * (met.sum(axis=1) + PRIOR)[:, None]
            expected /= (self._expected[node].sum(axis=1) + PRIOR)[:, None]
            alike = (met.sum(axis=0) + PRIOR) / (expected.sum(axis=0) + PRIOR)
            weight = expected + PRIOR
            # Hotter neighbours never mean less: what looks like that is chance.
            self._factors[node] = rising((met + PRIOR * alike) / weight, weight)
        self._new[:] = 0

    def factor(
        self, chunk: int, offset: NDArray[np.int64], state: NDArray[np.uint16]
    ) -> NDArray[np.float64]:
        """float64[n]: by how much more frames of a chunk (sorted offsets) are accessed than their
        states say; 1 where too little is known of their neighbours, or of what that means."""
        node = int(self._store.node[chunk])
        result = np.ones(len(state))
        if self._usual[node]:
            accessed, looks = self._around(chunk, offset, state)
            told = looks >= LEAST * _LOOKS
            share = self._forecast.share(state[told])
            kind = self._kind(node, share, accessed[told], looks[told])
            result[told] = self._factors[node].reshape(-1)[kind]
        return result

    def _around(
        self, chunk: int, offset: NDArray[np.int64], state: NDArray[np.uint16]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64[n] each: of the last four looks at each known neighbour how many found it accessed,
        and how many there were."""
        frames = self._store.of(chunk)
        group = offset // GROUP
        first = np.flatnonzero(np.diff(group, prepend=-1))
        begin = np.minimum(group[first] * GROUP, max(len(frames) - GROUP, 0))
        within = np.minimum(begin[:, None] + np.arange(GROUP), len(frames) - 1)
        there = frames[within]
        accessed = recent(there).sum(axis=1, dtype=np.int64)
        looks = _LOOKS * np.count_nonzero(there >= KNOWN_FROM, axis=1)
        each = np.repeat(np.arange(len(first)), np.diff(first, append=len(group)))
        own = _LOOKS * (state >= KNOWN_FROM)
        return accessed[each] - recent(state), looks[each] - own

    def _kind(
        self,
        node: int,
        share: NDArray[np.float64],
        accessed: NDArray[np.int64],
        looks: NDArray[np.int64],
    ) -> NDArray[np.intp]:
        """intp[n]: kind of frame and company, below OWN * KINDS. Those that were not accessed at
        all are of the first kind."""
        own = np.floor(np.log2(np.maximum(share, 2.0**-OWN))) + OWN
        more = np.maximum(accessed, 0.25) / looks / self._usual[node]
        kind = np.floor(2 * np.log2(more)) + KINDS // 2
        own, kind = np.clip(own, 0, OWN - 1), np.clip(kind, 0, KINDS - 1)
        index: NDArray[np.intp] = (own * KINDS + kind).astype(np.intp)
        return index
