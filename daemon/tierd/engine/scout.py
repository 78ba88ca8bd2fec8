# SPDX-License-Identifier: Apache-2.0
"""`Scout`: finds candidates by heat and asks the kernel what they are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.config import Migration
from tierd.engine.owners import OwnerBook
from tierd.host import NO_PFN, Pfns
from tierd.hotness import SCAN_LIMIT, Candidates, Draws, HeatMap, level_state, recent
from tierd.ledger import Ledger
from tierd.pages import PageReader, PageReason
from tierd.planner import FREE_TO_GO, Direction, Folios, Limits, Owners, Reason, code
from tierd.policy import DOOR, Target
from tierd.sets import member, unique
from tierd.topology import Topology

SEARCH_SHARE: Final = 4
"""Candidates looked up per page that the budget allows: some are refused."""

SEARCH_PART: Final = 0.1
"""Of the CPU share: for one search for candidates. A cycle has three or four of them."""

FRAME_SECONDS: Final = 3e-10
"""CPU time of a search per frame that it reads, about: two comparisons of 16 bits."""

LEAST_SCAN: Final = 1 << 20
"""Frames (4 GiB) that a search reads whatever the CPU share."""

LOOKUP_PART: Final = 0.12
"""Of the CPU share: for finding out about the candidates of one direction and planning them."""

LOOKUP_SECONDS: Final = 3e-7
"""CPU time per candidate, about, kernel time included."""

LEAST_LOOKUP: Final = 4096
"""Candidates that are looked up whatever the CPU share."""

REFUSALS: Final = {
    PageReason.FREE: Reason.STALE,
    PageReason.KERNEL: Reason.STALE,
    PageReason.FOREIGN: Reason.STALE,
    PageReason.HUGETLB: Reason.PINNED,
    PageReason.POISONED: Reason.PINNED,
    PageReason.ZERO: Reason.PINNED,
    PageReason.BUSY: Reason.BUSY,
}
"""What a frame's flags say against moving it."""

LASTING: Final = (
    Reason.CPUSET,
    Reason.MEMPOLICY,
    Reason.VMA,
    Reason.PINNED,
    Reason.SHARED,
    Reason.UNMAPPED,
)
"""Refusals by the kernel that will be the same in the next cycle: the folio is left alone, and
counted under the same reason, for the minimum residency. So is a large folio that found no room on
a slower node, or on a faster one although another one of its size had made it (`Pieces.learn`)."""

MOST_PROTECTED: Final = 1 << 18
MOST_DRAWN: Final = 1 << 16
"""Frames looked up beyond what a cycle can move, for the sake of floors and caps."""

MOST_WATCHED: Final = 2048
"""Pages that were wanted of which is known whether they are still accessed."""

PERSISTS: Final = 0.75
"""Of the pages accessed again in two looks in a row as a rule: the share for a pattern to go on. At
0.65 two of 48 patterns that had stopped flipping were taken for lasting five looks late, at this
none (`make bench-policy`, sixteen seeds)."""

ENOUGH_ASKED: Final = 16
"""Pages from which their share says what is usual."""

USUAL_MEMORY: Final = 0.95
"""Weight per cycle of the most that was usual."""

_NONE: Final = Candidates(np.zeros(0, np.uint64), np.zeros(0, np.uint16))


class Scout:
    """Turns what heat ranks into `Folios` for the planner. Holds tierd's memory of its moves."""

    def __init__(
        self, heat: HeatMap, topology: Topology, reader: PageReader, book: OwnerBook
    ) -> None:
        self._heat = heat
        self._topology = topology
        self._reader = reader
        self._book = book
        self.most = 1 << 20
        """Candidates that are looked up at most, in each direction."""
        self.moved: dict[Direction, Ledger]
        """Own moves, by the frame the data is in now."""
        self.refused = Ledger()
        """Folios that the kernel would not move; the owner is the reason's code."""
        self._persists: NDArray[np.bool_] | None
        self._wanted: tuple[Pfns, NDArray[np.int64]]
        self._usual: NDArray[np.float64]
        self.forget_classes()
        self._draws = Draws(topology.generation)
        self._freed: list[Pfns] = []

    def bound(self, share: float) -> None:
        """What deciding may cost is a part of the CPU share. share: CPU seconds a cycle."""
        frames = int(share * SEARCH_PART / FRAME_SECONDS)
        self._heat.search.limit = min(max(frames, LEAST_SCAN), SCAN_LIMIT)
        self.most = max(int(share * LOOKUP_PART / LOOKUP_SECONDS), LEAST_LOOKUP)

    def forget_classes(self) -> None:
        """The book has other classes now, and their indices would name others."""
        self.moved = {direction: Ledger() for direction in Direction}
        self._persists = None
        self._usual = np.zeros(len(self._book.classes) + 1)
        self._wanted = np.zeros(0, np.uint64), np.zeros(0, np.int64)

    def candidates(
        self,
        target: Target,
        limits: Limits,
        grants: Owners,
        rules: Migration,
        now: float,
        *,
        cold_evidence: bool,
        pieces: Mapping[int, Mapping[int, int]],
    ) -> tuple[Folios, Folios]:
        """Candidates for promotion to `target.fast` and possible victims there, as many as the
        budget can use. Without evidence of coldness there are no victims. pieces: see `Ways`."""
        tiers = self._topology.tiers
        slow = [node for tier in tiers[target.fast + 1 :] for node in tier.nodes]
        fast = tiers[target.fast].nodes
        wanted = SEARCH_SHARE * limits.promote if tiers[target.fast].targets else 0
        hot = self._heat.search.hottest(slow, min(wanted, self.most), level_state(1), DOOR)
        rate = self._heat.forecast.rate(hot.state) * self._heat.neighbours(hot.pfn, hot.state)
        hot_folios = self._describe(hot, rate, slow, fast, Direction.PROMOTE, rules, now)
        guests = len(hot)
        # Of several nodes a cpuset may allow just one that is full; a class has limits of its own.
        if len(fast) == 1 and not self._book.classes:
            pages = hot_folios.pages[hot_folios.refused == FREE_TO_GO].astype(np.int64)
            if all(int(pages[pages == size].sum()) <= n for size, n in pieces[fast[0]].items()):
                guests = min(guests, max(int(pages.sum()) - sum(target.room.values()), 0))
        due = SEARCH_SHARE * sum(target.need.values()) + guests
        if self._book.classes:  # a class above its cap is due whatever the others do
            due = SEARCH_SHARE * limits.demote
        # The coldest may all be protected by floors: look beyond them.
        floor = min(int(np.minimum(grants.floor, grants.resident).sum()), MOST_PROTECTED)
        due = min(due, SEARCH_SHARE * limits.demote + floor)
        cold = self._heat.search.coldest(fast, due) if cold_evidence and due else _NONE
        if len(fast) > 1 and len(cold):
            cold = self._add_nodes(cold, target.need, len(hot), due)
        if cold_evidence and guests:
            cold = self._add_large(cold, fast, hot_folios)
        rate = self._heat.forecast.rate(cold.state)
        cold_folios = self._describe(cold, rate, fast, slow, Direction.DEMOTE, rules, now)
        if cold_evidence:
            over = self._drawn_over_cap(fast, grants, limits)
            rate = self._heat.forecast.rate(over.state)
            more = self._describe(over, rate, fast, slow, Direction.DEMOTE, rules, now)
            cold_folios = cold_folios.joined(more.only(grants.resident > grants.cap))
        if target.fast == 0:
            self._compare(hot_folios, target.rate)
        return hot_folios, cold_folios

    def _drawn_over_cap(self, fast: Sequence[int], grants: Owners, limits: Limits) -> Candidates:
        """Frames drawn at random, enough that those of classes above their cap are among them:
        a class may be above it with pages that are all hotter than anybody else's."""
        over = np.maximum(grants.resident - grants.cap, 0)
        wanted = min(int(over.sum()), limits.demote)
        if not wanted:
            return _NONE
        share = grants.resident[over > 0].sum() / max(int(grants.resident.sum()), 1)
        drawn = self._heat.search.pick(fast, min(int(2 * wanted / share), MOST_DRAWN), self._draws)
        return _union([drawn])

    def _add_nodes(
        self, cold: Candidates, need: Mapping[int, int], guests: int, most: int
    ) -> Candidates:
        """Victims on every node: the coldest of the tier may all lie on another one than that
        which is short of room, or than the only one that a cpuset allows."""
        each = [
            self._heat.search.coldest([node], min(SEARCH_SHARE * pages + guests // len(need), most))
            for node, pages in need.items()
        ]
        return _union([cold, *each])

    def _add_large(self, cold: Candidates, fast: Sequence[int], hot: Folios) -> Candidates:
        """Victims as large as the candidates, which may be few among the coldest frames."""
        if not len(hot):
            return cold
        large = zip(*np.unique(hot.pages[hot.pages > 1], return_counts=True), strict=True)
        more = [
            self._heat.search.coldest(fast, SEARCH_SHARE * int(count), align=int(size))
            for size, count in large
        ]
        return _union([cold, *more])

    def _describe(
        self,
        found: Candidates,
        rate: NDArray[np.float64],
        sources: Sequence[int],
        targets: Sequence[int],
        direction: Direction,
        rules: Migration,
        now: float,
    ) -> Folios:
        """Candidates as they are now; what is gone is forgotten. rate: float64[n], accesses per
        window that are expected of them."""
        if not len(found):
            return Folios.none(targets)
        order = np.argsort(found.pfn)
        asked = found.pfn[order]
        info = self._reader.describe(asked)
        if not (self._book.table.known(info.cgroup) | (info.cgroup == 0)).all():
            self._book.refresh(now=True)
        state, heat = np.zeros(len(info.pfn), np.uint16), np.zeros(len(info.pfn))
        np.maximum.at(state, info.index, found.state[order])
        np.maximum.at(heat, info.index, rate[order])
        refused = self._standing(info.pfn, direction, now - rules.min_residency)
        for why, reason in REFUSALS.items():
            refused[info.reason == why] = code(reason)
        refused[~np.isin(info.node, sources)] = code(Reason.STALE)
        self._heat.forget(asked[refused[info.index] == code(Reason.STALE)])
        free = (info.reason == PageReason.FREE) & (info.node >= 0)
        self._freed.append(asked[free[info.index]])
        table = self._book.table
        every = np.ones(len(info.pfn), np.bool_)
        return Folios(
            pfn=info.pfn,
            pages=info.pages,
            node=info.node,
            state=state,
            rate=heat,
            owner=table.classes(info.cgroup),
            refused=refused,
            allowed={
                node: table.allows(info.cgroup, node) if rules.precheck else every
                for node in targets
            },
        )

    def _standing(self, pfn: Pfns, direction: Direction, since: float) -> NDArray[np.int8]:
        """int8[n]: what tierd's own memory says against moving each folio."""
        refused = np.full(len(pfn), FREE_TO_GO, np.int8)
        opposite = Direction.DEMOTE if direction is Direction.PROMOTE else Direction.PROMOTE
        refused[self.moved[opposite].recent(pfn, since)] = code(Reason.COOLDOWN)
        reasons = self.refused.owners(pfn, since)
        known = reasons >= 0
        refused[known] = reasons[known]
        return refused

    def follow(self, old: Pfns, new: Pfns) -> None:
        """What was in frames `old` is in `new` now, or nobody knows where (NO_PFN)."""
        pfn = self._wanted[0].copy()
        at = np.flatnonzero(member(pfn, old))
        order = np.argsort(old)
        pfn[at] = new[order[np.searchsorted(old, pfn[at], sorter=order)]]
        known = pfn != NO_PFN
        self._wanted = pfn[known], self._wanted[1][known]

    def take_freed(self) -> Pfns:
        """Candidates of late that were free by then; not again the next time."""
        freed = unique(np.concatenate([np.zeros(0, np.uint64), *self._freed]))
        self._freed.clear()
        return freed

    def take_persists(self) -> NDArray[np.bool_] | None:
        """bool[n]: whether what each class (the last: none) wants, or did lately, goes on being
        accessed; None when that was not looked into since it was asked for."""
        persists, self._persists = self._persists, None
        return persists

    def watch(self) -> None:
        """After looks: find out whether what each class wants, or did lately, goes on. Of its pages
        that were accessed in the look before the last: whether at least `PERSISTS` of what is usual
        were accessed in the last one too."""
        n = len(self._book.classes) + 1
        pfn, owner = self._wanted
        state = self._heat.states(pfn)
        before = (state & np.uint16(2)) > 0
        asked = np.bincount(owner[before], minlength=n)
        again = np.bincount(owner[before], (state & np.uint16(1))[before], n)
        share = np.where(asked >= ENOUGH_ASKED, again / np.maximum(asked, 1), 0.0)
        self._usual = np.maximum(self._usual * USUAL_MEMORY, share)
        self._persists = again >= PERSISTS * self._usual * asked
        stays = recent(state) > 0
        self._wanted = pfn[stays], owner[stays]

    def _compare(self, hot: Folios, threshold: float) -> None:
        """Watch, and take what is wanted now to what is watched."""
        self.watch()
        # By what was seen of each itself: it is asked whether that goes on.
        fresh = np.flatnonzero(self._heat.forecast.rate(hot.state) >= threshold)
        fresh = fresh[:: len(fresh) // MOST_WATCHED + 1]
        pfn, owner = self._wanted
        pfn = np.concatenate([hot.pfn[fresh], pfn])
        none = len(self._book.classes)
        owner = np.concatenate([np.where(hot.owner < 0, none, hot.owner)[fresh], owner])
        pfn, first = np.unique(pfn, return_index=True)
        step = len(pfn) // MOST_WATCHED + 1
        self._wanted = pfn[::step], owner[first[::step]]


def _union(found: Sequence[Candidates]) -> Candidates:
    """Each frame once."""
    pfn, first = np.unique(np.concatenate([each.pfn for each in found]), return_index=True)
    return Candidates(pfn, np.concatenate([each.state for each in found])[first])
