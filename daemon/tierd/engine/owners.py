# SPDX-License-Identifier: Apache-2.0
"""Whose memory is where: the classes of the policy and what each has in each tier.

The kernel has no cheap count of a cgroup's pages per node that a frame-based daemon could trust
at every version, so a few known frames per cycle are drawn at random and their owners read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.config import Class
from tierd.host import Host
from tierd.hotness import HeatMap
from tierd.pages import OwnerTable, PageReader
from tierd.planner import UNLIMITED, Owners
from tierd.topology import Topology

REFRESH: Final = 8
"""Cycles between two readings of all cgroups."""

DRAWS: Final = 1024
"""Frames whose owner is read, per tier and cycle."""

MEMORY: Final = 0.75
"""Weight of the past in the estimate of each class's share of a tier."""


class OwnerBook:
    """Owner table and residency estimates; `classes` are those of the policy in force."""

    def __init__(
        self, host: Host, topology: Topology, classes: tuple[Class, ...], reader: PageReader
    ) -> None:
        self._host = host
        self._topology = topology
        self._reader = reader
        self._random = np.random.default_rng(topology.generation)
        self._age = 0
        self.use(classes)

    def use(self, classes: tuple[Class, ...]) -> None:
        """Take another policy's classes."""
        self.classes = classes
        self.table = OwnerTable.build(self._host.cgroups(), classes)
        self._share = np.zeros((len(self._topology.tiers), len(classes) + 1))
        self._drawn = np.zeros(len(self._topology.tiers), np.bool_)

    def refresh(self, *, now: bool = False) -> None:
        """Read the cgroups again when the last reading is old, or `now`."""
        self._age += 1
        if now or self._age >= REFRESH:
            self.table = OwnerTable.build(self._host.cgroups(), self.classes)
            self._age = 0

    def draw(self, heat: HeatMap) -> None:
        """Sharpen the estimates by a sample of every tier. Free without classes."""
        if not self.classes:
            return
        for index, tier in enumerate(self._topology.tiers):
            pfn = np.unique(heat.pick(tier.nodes, DRAWS, self._random).pfn)
            if not len(pfn):
                continue
            info = self._reader.describe(pfn)
            owner = self.table.classes(info.cgroup[info.movable])
            pages = info.pages[info.movable].astype(np.float64)
            n = len(self.classes) + 1
            counted = np.bincount(np.where(owner < 0, n - 1, owner), pages, n) / len(pfn)
            keep = MEMORY if self._drawn[index] else 0.0
            self._share[index] = keep * self._share[index] + (1 - keep) * counted
            self._drawn[index] = True

    def resident(self, heat: HeatMap) -> NDArray[np.int64]:
        """int64[tiers, classes + 1]: estimated base pages; the last column is in no class."""
        known = [int(heat.histogram(tier.nodes)[1:].sum()) for tier in self._topology.tiers]
        pages: NDArray[np.int64] = (self._share * np.array(known)[:, None]).astype(np.int64)
        return pages

    def grants(
        self, resident: NDArray[np.int64], stopped: NDArray[np.bool_], *, bounded: bool
    ) -> Owners:
        """What the policy grants each class; resident: int64[classes + 1] in the faster tier.
        `bounded`: by floors and caps, which are about the fastest tier only."""
        page = self._host.page_size
        rules = self.classes
        return Owners(
            resident=resident,
            floor=np.array(
                [(rule.floor or 0) // page if bounded else 0 for rule in rules] + [0], np.int64
            ),
            cap=np.array(
                [
                    rule.cap // page if bounded and rule.cap is not None else UNLIMITED
                    for rule in rules
                ]
                + [UNLIMITED],
                np.int64,
            ),
            weight=np.array([rule.weight / 100 for rule in rules] + [1.0]),
            promote=np.array(["promote" not in rule.never for rule in rules] + [True]),
            demote=np.array(["demote" not in rule.never for rule in rules] + [True]),
            excluded=np.array([rule.excluded for rule in rules] + [False]),
            stopped=stopped,
        )

    def by_tier(self, resident: NDArray[np.int64], index: int) -> Mapping[str, int]:
        """Bytes of one class by tier name."""
        tiers = self._topology.tiers
        page = self._host.page_size
        return {tier.name: int(resident[i, index]) * page for i, tier in enumerate(tiers)}
