# SPDX-License-Identifier: Apache-2.0
"""Whose memory is where: the classes of the policy and what each has in each tier.

The kernel counts what is charged to each cgroup per node (memory.numa_stat). Where it does not, a
few known frames per cycle are drawn at random and their owners read: good for small folios, bad
where few large ones make up most of a class. tierd's own moves are counted exactly in either case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.config import Class
from tierd.host import Host
from tierd.hotness import Draws, HeatMap
from tierd.pages import OwnerTable, PageReader
from tierd.planner import UNLIMITED, Owners
from tierd.sets import unique
from tierd.topology import Topology

REFRESH: Final = 30
"""Cycles between two readings of all cgroups. A new cgroup is noticed by its first candidate and
a cpuset is kept by the kernel in any case, so this is for rules that have become wider."""

FEW: Final = 16
"""Cgroups whose memory is read in every cycle: the kernel sums over all CPUs each time."""

DRAWS: Final = 1024
"""Frames whose owner is read, per tier and cycle."""

MEMORY: Final = 0.75
"""Weight of the past, and of tierd's own moves, in the estimate of what each class has."""


class OwnerBook:
    """Owner table and residency estimates; `classes` are those of the policy in force."""

    def __init__(
        self, host: Host, topology: Topology, classes: tuple[Class, ...], reader: PageReader
    ) -> None:
        self._host = host
        self._topology = topology
        self._reader = reader
        self._draws = Draws(topology.generation)
        self._age = 0
        self._charged = False
        self._terms: list[tuple[str, int, int]] = []
        self.use(classes)

    def use(self, classes: tuple[Class, ...]) -> None:
        """Take another policy's classes."""
        self.classes = classes
        self._read()
        self._pages = np.zeros((len(self._topology.tiers), len(classes) + 1))
        self._drawn = np.zeros(len(self._topology.tiers), np.bool_)

    def refresh(self, *, now: bool = False) -> None:
        """Read the cgroups again when the last reading is old, or `now`."""
        self._age += 1
        if now or self._age >= REFRESH:
            self._read()
            self._age = 0

    def _read(self) -> None:
        cgroups = self._host.cgroups()
        self.table = OwnerTable.build(cgroups, self.classes)
        owner = self.table.classes(np.array([each.inode for each in cgroups], np.uint64))
        self._terms = _terms({c.path: k for c, k in zip(cgroups, owner.tolist(), strict=True)})

    def measure(self, heat: HeatMap) -> None:
        """Find out what each class has: from what the kernel charges to its cgroups, or else from
        a sample of every tier. Free without classes."""
        if not self.classes:
            return
        # Many cgroups are read less often; tierd's own moves are known in between.
        if self._terms and (self._age == 0 or len(self._terms) <= FEW or not self._drawn.any()):
            self._charged = self._charge()
        if not self._charged:
            self._draw(heat)

    def _charge(self) -> bool:
        """Take over what the kernel says; False where it says nothing."""
        total = np.zeros((len(self._topology.tiers), len(self.classes)))
        told = False
        for path, owner, sign in self._terms:
            for node, size in self._host.cgroup_memory(path).items():
                told = True
                tier = self._topology.tier_of(node)
                if tier >= 0:
                    total[tier, owner] += sign * size / self._host.page_size
        if told:
            self._pages[:, :-1] = np.maximum(total, 0.0)
            self._drawn[:] = True
        return told

    def _draw(self, heat: HeatMap) -> None:
        for index, tier in enumerate(self._topology.tiers):
            pfn = unique(heat.search.pick(tier.nodes, DRAWS, self._draws).pfn)
            if not len(pfn):
                continue
            info = self._reader.describe(pfn)
            owner = self.table.classes(info.cgroup[info.movable])
            pages = info.pages[info.movable].astype(np.float64)
            n = len(self.classes) + 1
            drawn = np.bincount(np.where(owner < 0, n - 1, owner), pages, n)
            counted = drawn * (int(heat.histogram(tier.nodes)[1:].sum()) / len(pfn))
            keep = MEMORY if self._drawn[index] else 0.0
            self._pages[index] = keep * self._pages[index] + (1 - keep) * counted
            self._drawn[index] = True

    def moved(
        self,
        owner: NDArray[np.int16],
        source: NDArray[np.int32],
        target: NDArray[np.int32],
        pages: NDArray[np.uint32],
    ) -> None:
        """Folios went from one node to another. Without this the next plan would go by what was
        there before, and break the floor that this one has just kept."""
        column = np.where(owner < 0, len(self.classes), owner)
        for nodes, sign in ((source, -1.0), (target, 1.0)):
            tier = self._topology.tiers_of(nodes)
            inside = tier >= 0
            np.add.at(self._pages, (tier[inside], column[inside]), sign * pages[inside])
        np.maximum(self._pages, 0.0, out=self._pages)

    @property
    def resident(self) -> NDArray[np.int64]:
        """int64[tiers, classes + 1]: estimated base pages; the last column is in no class."""
        pages: NDArray[np.int64] = self._pages.astype(np.int64)
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


def _terms(classes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """(path, class, sign): a class has the memory of its topmost cgroups, less that of cgroups
    below them which are another class's. classes: by path, -1 for none."""

    def terms() -> Iterator[tuple[str, int, int]]:
        for path, mine in classes.items():
            above = classes.get(path.rpartition("/")[0], -1) if path else -1
            if mine != above:
                if mine >= 0:
                    yield path, mine, 1
                if above >= 0:
                    yield path, above, -1

    return list(terms())
