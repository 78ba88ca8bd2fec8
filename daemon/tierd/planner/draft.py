# SPDX-License-Identifier: Apache-2.0
"""`plan`: which folios cross one boundary, and why others stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.hotness import settled
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
from tierd.policy import Margin, Target

YOUNG: Final = 0.85
"""What the rate of a page that is not well known counts for."""


def plan(
    target: Target, hot: Folios, cold: Folios, owners: Owners, ways: Ways, limits: Limits
) -> MovePlan:
    """Choose what moves across one boundary.

    `hot` are candidates from slower tiers, `cold` possible victims in `target.fast`. First the
    demotions that are due anyway (headroom, caps), then promotions into free room, then pairs
    of a promotion and the demotion that makes room for it, each by the margin. A plan keeps
    within `limits`, every floor and cap, the room of every node, and names no folio twice.
    """
    if not len(hot) and not len(cold):  # the ordinary case once all is in its place
        return MovePlan(Moves.none(), Moves.none(), {})
    draft = _Draft(target, hot, cold, owners, ways, limits)
    draft.demote_over_cap()
    draft.demote_for_headroom()
    draft.promote_into_room()
    draft.exchange()
    return draft.finish()


class _Side:
    """One direction's candidates, best first, and what has been decided about each."""

    def __init__(
        self,
        folios: Folios,
        order: NDArray[np.intp],
        heat: NDArray[np.float64],
    ) -> None:
        self.pfn = folios.pfn[order]
        self.pages = folios.pages[order].astype(np.int64)
        self.node = folios.node[order]
        self.owner = folios.owner[order]
        self.rate = heat[order]
        self.why = folios.refused[order].astype(np.int16)
        self.allowed = {node: mask[order] for node, mask in folios.allowed.items()}
        self.target = np.full(len(order), -1, np.int32)

    @property
    def open(self) -> NDArray[np.bool_]:
        """Neither refused nor planned yet."""
        open_: NDArray[np.bool_] = (self.why == FREE_TO_GO) & (self.target < 0)
        return open_

    def refuse(self, which: NDArray[np.bool_], reason: Reason) -> None:
        self.why[which & self.open] = code(reason)

    def chosen_pages(self, classes: int) -> NDArray[np.int64]:
        """int64[classes]: base pages planned so far by owner."""
        chosen = self.target >= 0
        pages = np.zeros(classes, np.int64)
        np.add.at(pages, self.owner[chosen], self.pages[chosen])
        return pages

    def moves(self, pages: NDArray[np.uint32]) -> Moves:
        chosen = self.target >= 0
        return Moves(self.pfn[chosen], pages[chosen], self.node[chosen], self.target[chosen])


class _Draft:
    """A plan in the making. Each step leaves every bound kept, so the last one needs no check."""

    def __init__(
        self,
        target: Target,
        hot: Folios,
        cold: Folios,
        owners: Owners,
        ways: Ways,
        limits: Limits,
    ) -> None:
        weight = owners.weight
        self.margin: Margin = target.margin
        self.owners = owners
        self.ways = ways
        self.need = dict(target.need)
        self.room = dict(target.room)
        self.slow_room = dict(ways.room)
        self.pieces = {
            (node, size): frames
            for node, sizes in ways.pieces.items()
            for size, frames in sizes.items()
        }
        self.held_by = limits.why
        self.worth = limits.worth
        self.left = {Direction.PROMOTE: limits.promote, Direction.DEMOTE: limits.demote}
        self.hot = _side(hot, weight, hottest_first=True)
        self.cold = _side(cold, weight, hottest_first=False)
        self.short = np.zeros(len(hot), np.bool_)
        """Guests that beat no victim by the margin."""
        self.worthless = np.zeros(len(hot), np.bool_)
        """Guests that would win too little for what their move costs."""
        self.outmatched = np.zeros(len(hot), np.bool_)
        """Large guests that beat no victim of their own size by the margin."""
        self._screen()

    def _screen(self) -> None:
        hot, cold, owners = self.hot, self.cold, self.owners
        for side, may in ((hot, owners.promote), (cold, owners.demote)):
            side.refuse(owners.excluded[side.owner], Reason.EXCLUDED)
            side.refuse(~may[side.owner], Reason.NEVER)
        hot.refuse(owners.stopped[hot.owner], Reason.THRASH)
        hot.refuse(~_anywhere(hot, self.ways.promote), Reason.CPUSET)
        cold.refuse(~_anywhere(cold, self.ways.demote), Reason.CPUSET)

    # -- demotions that are due anyway -------------------------------------------------------

    def demote_over_cap(self) -> None:
        """Classes above their cap give back their coldest."""
        over = np.maximum(self.owners.resident - self.owners.cap, 0)
        for owner in np.flatnonzero(over):
            mine = self.cold.open & (self._row(self.cold) == owner)
            self._demote(mine, int(over[owner]))

    def demote_for_headroom(self) -> None:
        """Nodes below their low mark get their headroom back."""
        for node, need in self.need.items():
            freed = int(self.cold.pages[(self.cold.target >= 0) & (self.cold.node == node)].sum())
            if need > freed:
                self._demote(self.cold.open & (self.cold.node == node), need - freed)

    def _demote(
        self, which: NDArray[np.bool_], pages: int, *, own: bool = False
    ) -> NDArray[np.intp]:
        """Plan the first of `which` until `pages` are met; returns the rows planned.

        The last folio may go beyond `pages`, but none begins beyond. `own`: the same class gets
        as much back, so that its floor is safe.
        """
        cold = self.cold
        rows = np.flatnonzero(self._demotable(np.flatnonzero(which), own=own))
        begin = np.cumsum(cold.pages[rows]) - cold.pages[rows]
        rows = rows[begin < pages]
        rows = self._within(Direction.DEMOTE, cold, rows)
        for rank in range(max(map(len, self.ways.demote.values()), default=0)):
            for node in self.slow_room:
                fits = cold.allowed[node][rows] & (cold.target[rows] < 0)
                fits &= _ranked(cold.node[rows], self.ways.demote, rank, node)
                these = _prefix(cold.pages, rows[fits], self.slow_room[node])
                cold.target[these] = node
                self.slow_room[node] -= int(cold.pages[these].sum())
        planned = rows[cold.target[rows] >= 0]
        self.left[Direction.DEMOTE] -= int(cold.pages[planned].sum())
        return planned

    def _demotable(self, rows: NDArray[np.intp], *, own: bool) -> NDArray[np.bool_]:
        """bool[n]: those of `rows` that could all go now, in order, as far as floors say and each
        one's targets have room. A guest must be compared with these alone: it would beat a
        victim that cannot go, and drive out the next one, which may be hotter than itself."""
        cold = self.cold
        which = np.zeros(len(cold.pfn), np.bool_)
        which[rows] = True
        which &= cold.open
        if not own:
            which &= self._above_floor(which)
        placeable = self._placeable()
        cold.refuse(which & ~placeable, Reason.NO_ROOM)
        return which & placeable

    def _placeable(self) -> NDArray[np.bool_]:
        """bool[n]: victims for which a node that allows them has room left."""
        cold = self.cold
        result = np.zeros(len(cold.pfn), np.bool_)
        for source, targets in self.ways.demote.items():
            for target in targets:
                fits = cold.allowed[target] & (cold.pages <= self.slow_room[target])
                result |= fits & (cold.node == source)
        return result

    def _above_floor(self, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Rows of `which` that leave their class its floor if all of them go, in order."""
        cold, owners = self.cold, self.owners
        spare = owners.resident - owners.floor - cold.chosen_pages(len(owners.floor))
        result = np.ones(len(cold.pfn), np.bool_)
        for owner in np.flatnonzero(owners.floor > 0):
            mine = which & (self._row(cold) == owner)
            taken = np.cumsum(np.where(mine, cold.pages, 0))
            result[mine & (taken > spare[owner])] = False
        return result

    # -- promotions ------------------------------------------------------------------------

    def promote_into_room(self) -> None:
        """The hottest into what is free above the headroom."""
        freed = self._freed_beyond_need()
        for node in self.room:
            self.room[node] += freed.get(node, 0)
        self.hot.refuse(self.hot.rate <= self.worth.alone, Reason.BENEFIT)
        rows = np.flatnonzero(self.hot.open & self._below_cap() & self._fits_somewhere())
        self._place(self._within(Direction.PROMOTE, self.hot, rows), self.room)

    def _freed_beyond_need(self) -> dict[int, int]:
        """What demotions for caps free on nodes that are not short of headroom."""
        cold = self.cold
        freed = {}
        for node in self.room:
            pages = int(cold.pages[(cold.target >= 0) & (cold.node == node)].sum())
            freed[node] = max(pages - self.need.get(node, 0), 0)
        return freed

    def _below_cap(self) -> NDArray[np.bool_]:
        """Open rows of `hot` that leave their class below its cap if all of them go, in order."""
        hot, owners = self.hot, self.owners
        n = len(owners.cap)
        capped = np.flatnonzero(owners.cap < UNLIMITED)
        now = owners.resident + hot.chosen_pages(n) - self.cold.chosen_pages(n)
        result = np.ones(len(hot.pfn), np.bool_)
        for owner in capped:
            mine = hot.open & (self._row(hot) == owner)
            taken = np.cumsum(np.where(mine, hot.pages, 0))
            result[mine & (taken > owners.cap[owner] - now[owner])] = False
        return result

    @property
    def _ranks(self) -> range:
        """Choices of a promotion's target: 0 is the nearest node."""
        return range(max(map(len, self.ways.promote.values()), default=0))

    def _place(
        self, rows: NDArray[np.intp], nodes: Iterable[int], *, matched: bool = False
    ) -> NDArray[np.intp]:
        """Plan promotions of `rows`, in order, to those of `nodes` that have room, the nearest
        first; returns those planned. `matched`: their victims are as large as they are, so that
        the room is in one piece."""
        hot = self.hot
        for rank in self._ranks:
            for node in nodes:
                fits = hot.allowed[node][rows] & (hot.target[rows] < 0)
                fits &= _ranked(hot.node[rows], self.ways.promote, rank, node)
                these = rows[fits] if matched else self._in_pieces(node, rows[fits])
                these = _prefix(hot.pages, these, self.room[node])
                hot.target[these] = node
                self.room[node] -= int(hot.pages[these].sum())
        planned = rows[hot.target[rows] >= 0]
        self.left[Direction.PROMOTE] -= int(hot.pages[planned].sum())
        return planned

    def _fits_somewhere(self) -> NDArray[np.bool_]:
        """bool[n]: small, or among the first of the large ones that the pieces can take."""
        hot = self.hot
        result = np.ones(len(hot.pfn), np.bool_)
        for size in {size for _, size in self.pieces}:
            like = hot.pages == size
            taken = np.cumsum(np.where(like & hot.open, size, 0))
            result &= ~like | (taken <= sum(self._piece(node, size) for node in self.room))
        return result

    def _piece(self, node: int, size: int) -> int:
        """Frames of the node's free room for folios of that size."""
        return self.pieces.get((node, size), UNLIMITED)

    def _in_pieces(self, node: int, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Rows without the large folios for which the node's free room is too broken up."""
        for key in self.pieces:
            if key[0] == node:
                like = self.hot.pages[rows] == key[1]
                fits = ~like | (np.cumsum(like) * key[1] <= self.pieces[key])
                self.pieces[key] -= int(np.count_nonzero(like & fits)) * key[1]
                rows = rows[fits]
        return rows

    # -- exchange --------------------------------------------------------------------------

    def exchange(self) -> None:
        """Pairs of a hot folio and the victims whose frames it gets.

        A class at its cap or its floor exchanges with itself only; the others with one another.
        """
        limited = ~self._below_cap() & self.hot.open
        for owner in np.unique(self._row(self.hot)[limited]):
            mine = self._row(self.hot) == owner
            self._exchange(limited & mine, self._row(self.cold) == owner, own=True)
        self.hot.refuse(limited, Reason.LIMIT)
        self._exchange(self.hot.open, np.ones(len(self.cold.pfn), np.bool_), own=False)
        for owner in np.flatnonzero(self.owners.floor > 0):
            mine = self._row(self.hot) == owner
            self._exchange(self.hot.open & mine, self._row(self.cold) == owner, own=True)
        self.hot.refuse(self.outmatched, Reason.MARGIN)
        self.hot.refuse(self.hot.open, Reason.NO_ROOM)

    def _exchange(
        self, hot_rows: NDArray[np.bool_], cold_rows: NDArray[np.bool_], *, own: bool
    ) -> None:
        """On each node that has its headroom, each guest at its nearest first: another node may
        have colder victims. `own`: within one class, one for one."""
        self.short[:] = self.worthless[:] = False
        for rank in self._ranks:
            for node in self.room:
                if self._owed(node):
                    continue
                victims = self.cold.open & cold_rows & (self.cold.node == node)
                guests = hot_rows & self.hot.open & self.hot.allowed[node]
                guests &= _ranked(self.hot.node, self.ways.promote, rank, node)
                self._pair_sizes(node, guests, victims, own=own)
        self.hot.refuse(self.worthless, Reason.BENEFIT)
        self.hot.refuse(self.short, Reason.MARGIN)

    def _owed(self, node: int) -> bool:
        """Whether the demotions planned do not restore the node's headroom."""
        freed = self.cold.pages[(self.cold.target >= 0) & (self.cold.node == node)].sum()
        return bool(freed < self.need.get(node, 0))

    def _pair_sizes(
        self, node: int, guests: NDArray[np.bool_], victims: NDArray[np.bool_], *, own: bool
    ) -> None:
        """Folios with victims of their own size first: only such leave room in one piece. Each
        size gets a like share of what may be promoted, so that none starves the others; what is
        left is for whoever fits, the smallest first: there are victims for them."""
        hot, cold = self.hot, self.cold
        sizes = np.unique(hot.pages[guests])
        share = self.left[Direction.PROMOTE] // max(len(sizes), 1)
        for size in sizes[::-1]:
            like = np.flatnonzero(guests & hot.open & (hot.pages == size))
            like = _prefix(hot.pages, like, max(share, int(size)))
            same = np.flatnonzero(victims & cold.open & (cold.pages == size))
            self._pair(node, like, same, own=own, same=True)
        for size in () if own else sizes:
            rest = np.flatnonzero(guests & hot.open & self._fits_somewhere() & (hot.pages == size))
            self._pair(node, rest, np.flatnonzero(victims & cold.open), own=False, same=False)

    def _pair(
        self,
        node: int,
        guests: NDArray[np.intp],
        victims: NDArray[np.intp],
        *,
        own: bool,
        same: bool,
    ) -> None:
        """Exchange as many of the best `guests` with `victims` as the margin lets. `same`: all
        are of one size, and large ones get no free room but what is in one piece; otherwise these
        are the last victims that the guests can have. `own`: free room stays free."""
        hot, cold = self.hot, self.cold
        victims = victims[self._demotable(victims, own=own)[victims]]
        if not len(guests) or not len(victims):
            return
        room = 0 if own else self.room[node]
        size = int(hot.pages[guests[0]])
        if same:
            room = min(room, self._piece(node, size))
        end = np.searchsorted(np.cumsum(cold.pages[victims]), np.cumsum(hot.pages[guests]) - room)
        enough = end < len(victims)  # the coldest victims up to `end` make the room
        worst = victims[np.minimum(end, len(victims) - 1)]
        paid = hot.rate[guests] - cold.rate[worst] > self.worth.pair
        better = self._better(guests, worst)
        fine = np.logical_and.accumulate(enough & paid & better)
        if same and size > 1 and np.any(enough & ~better):
            # The others of this size are colder, and the victims that are left are hotter.
            self.outmatched |= hot.pages == size
        if not same:
            self.short[guests[enough & ~fine]] = True
            self.worthless[guests[enough & ~fine & better & ~paid]] = True
        guests = self._within(Direction.PROMOTE, hot, guests[fine])
        pages = int(hot.pages[guests].sum()) - room
        which = np.zeros(len(cold.pfn), np.bool_)
        which[victims] = True
        planned = self._demote(which, pages, own=own) if pages > 0 else victims[:0]
        room += int(cold.pages[planned].sum())
        self.room[node] += int(cold.pages[planned].sum())
        placed = self._place(_prefix(hot.pages, guests, room), (node,), matched=same)
        used = int(hot.pages[placed].sum())
        if same and (node, size) in self.pieces:
            self.pieces[node, size] -= max(used - int(cold.pages[planned].sum()), 0)
        self._spare(node, planned, room - used)

    def _better(self, guests: NDArray[np.intp], victims: NDArray[np.intp]) -> NDArray[np.bool_]:
        """bool[n]: whether each guest beats its victim by the margin."""
        guest, victim = self.hot.rate[guests], self.cold.rate[victims]
        margin = self.margin
        better: NDArray[np.bool_] = guest >= margin.factor * victim
        return better & (guest - victim > margin.gain)

    def _spare(self, node: int, planned: NDArray[np.intp], surplus: int) -> None:
        """Take back the last of the planned demotions as far as nobody got the room."""
        cold = self.cold
        rows = _prefix(cold.pages, planned[::-1], surplus)
        for target in self.slow_room:
            self.slow_room[target] += int(cold.pages[rows][cold.target[rows] == target].sum())
        pages = int(cold.pages[rows].sum())
        self.room[node] -= pages
        self.left[Direction.DEMOTE] += pages
        cold.target[rows] = -1

    # -- bounds ----------------------------------------------------------------------------

    def _row(self, side: _Side) -> NDArray[np.int64]:
        """int64[n]: owner as an index into `Owners` without negative numbers."""
        last = len(self.owners.floor) - 1
        return np.where(side.owner < 0, last, side.owner).astype(np.int64)

    def _within(
        self, direction: Direction, side: _Side, rows: NDArray[np.intp]
    ) -> NDArray[np.intp]:
        """The first of `rows` that the budget covers; the rest is refused."""
        kept = _prefix(side.pages, rows, self.left[direction])
        beyond = np.zeros(len(side.pfn), np.bool_)
        beyond[rows[len(kept) :]] = True
        side.refuse(beyond, self.held_by)
        return kept

    def finish(self) -> MovePlan:
        skipped: Counter[tuple[Direction, Reason]] = Counter()
        for direction, side in ((Direction.DEMOTE, self.cold), (Direction.PROMOTE, self.hot)):
            for each in np.unique(side.why[side.why != FREE_TO_GO]):
                pages = int(side.pages[side.why == each].sum())
                skipped[direction, REASONS[each]] += pages
        return MovePlan(
            demote=self.cold.moves(self.cold.pages.astype(np.uint32)),
            promote=self.hot.moves(self.hot.pages.astype(np.uint32)),
            skipped=dict(skipped),
        )


def _side(folios: Folios, weight: NDArray[np.float64], *, hottest_first: bool) -> _Side:
    """Sort candidates by their weighted rate, and equal ones by what heat remembers of them.

    Of a page that is not known well yet the next looks will tell more, at the price of waiting
    for them: it is taken for less of a candidate, and less of a victim, than it seems.
    """
    doubt = np.where(settled(folios.state), 1.0, YOUNG if hottest_first else 1 / YOUNG)
    heat = folios.rate * weight[folios.owner] * doubt
    order = np.lexsort((folios.state, heat))
    return _Side(folios, order[::-1] if hottest_first else order, heat)


def _anywhere(side: _Side, ways: Mapping[int, Sequence[int]]) -> NDArray[np.bool_]:
    """bool[n]: whether the cpuset allows any of the targets of the folio's node."""
    result = np.zeros(len(side.pfn), np.bool_)
    for node, targets in ways.items():
        here = side.node == node
        for target in targets:
            result |= here & side.allowed[target]
    return result


def _ranked(
    source: NDArray[np.int32], ways: Mapping[int, Sequence[int]], rank: int, target: int
) -> NDArray[np.bool_]:
    """bool[n]: whether `target` is the rank-th choice of each folio's node."""
    sources = [n for n, targets in ways.items() if len(targets) > rank and targets[rank] == target]
    return np.isin(source, sources)


def _prefix(pages: NDArray[np.int64], rows: NDArray[np.intp], limit: int) -> NDArray[np.intp]:
    """The longest prefix of `rows` with at most `limit` base pages."""
    return rows[: int(np.searchsorted(np.cumsum(pages[rows]), limit, side="right"))]
