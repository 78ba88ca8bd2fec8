# SPDX-License-Identifier: Apache-2.0
"""Where the pages of a trace are: where they were while it was recorded, and where a replayed
policy has put them.

A page has an id: the place, counted over all frames of the recorded machine, where it was first
seen. Moves that the recording daemon made itself change which frame an id is in; moves of the
replayed policy change its node. Ids of a large folio follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import Pfns, Span
from tierd.sets import unique
from tierd.trace import Layout, Look, Moved

ABSENT: Final = -1
"""Instead of the index of a node: nobody has seen a page there, or it is gone."""

_ORDER: Final = np.uint8(0x0F)
_ACCESSED: Final = np.uint8(0x10)
_TAIL: Final = np.uint8(0x20)
_KNOWN: Final = np.uint8(0x40)
"""Size and owner have been told."""

Ids = NDArray[np.int64]
Nodes = NDArray[np.int64]
"""Indexes into the nodes of the trace, ABSENT for none."""


class Placement:
    """Five bytes per frame of the recorded machine, used as frames are seen.

    Counts are kept in base pages, by node and owner, for the replay (`count`) and for the
    recording (`home`); `hot` and `hot_home` are those of pages that their last look found accessed.
    """

    def __init__(self, spans: Sequence[Span], nodes: Sequence[int]) -> None:
        """spans: frames of the recorded machine; nodes: ids of its nodes."""
        ordered = sorted(spans, key=lambda span: span.start)
        self._start = np.array([span.start for span in ordered], np.int64)
        self._end = np.array([span.end for span in ordered], np.int64)
        lengths = self._end - self._start
        self._first = np.cumsum(lengths) - lengths
        self._span_node = np.array([nodes.index(span.node) for span in ordered], np.int64)
        frames = int(lengths.sum())
        self._placed = np.zeros(frames, np.uint8)  # index of a node + 1, 0 for absent
        self._homed = np.zeros(frames, np.uint8)  # the same by the recording
        self._meta = np.zeros(frames, np.uint8)
        self._owner = np.zeros(frames, np.uint16)
        self._ids: Ids | None = None
        self.count = np.zeros((len(nodes), 1), np.int64)
        self.home = np.zeros((len(nodes), 1), np.int64)
        self.hot = np.zeros(len(nodes), np.int64)
        self.hot_home = np.zeros(len(nodes), np.int64)

    # -- which page ------------------------------------------------------------------------

    def at(self, pfn: Pfns) -> Ids:
        """int64[n]: place of each recorded frame, -1 for one outside the recorded machine."""
        where = pfn.astype(np.int64)
        span = np.searchsorted(self._start, where, side="right") - 1
        inside = (span >= 0) & (where < self._end[span])
        return np.where(inside, where - self._start[span] + self._first[span], -1)

    def pfn(self, ids: Ids) -> Pfns:
        """uint64[n]: the frame that each id is named after."""
        span = np.searchsorted(self._first, ids, side="right") - 1
        frames: Pfns = (self._start[span] + ids - self._first[span]).astype(np.uint64)
        return frames

    def ids(self, places: Ids) -> Ids:
        """int64[n]: the page that is in each place of the recorded machine now."""
        return places if self._ids is None else self._ids[places]

    def _node_of(self, places: Ids) -> Nodes:
        """int64[n]: index of the node that each place of the recorded machine is on."""
        span = np.searchsorted(self._first, places, side="right") - 1
        nodes: Nodes = self._span_node[span]
        return nodes

    def node(self, ids: Ids) -> Nodes:
        """int64[n]: index of the node that the replay has each page on, or ABSENT."""
        return self._placed[ids].astype(np.int64) - 1

    def owner(self, ids: Ids) -> NDArray[np.uint16]:
        """uint16[n]: owner of each page, 0 for an unknown one."""
        return self._owner[ids]

    def pages(self, ids: Ids) -> NDArray[np.int64]:
        """int64[n]: base pages of the folio that begins at each id."""
        return np.left_shift(1, (self._meta[ids] & _ORDER).astype(np.int64))

    def is_tail(self, ids: Ids) -> NDArray[np.bool_]:
        """bool[n]: whether each is within a large folio, but not its first page."""
        tail: NDArray[np.bool_] = (self._meta[ids] & _TAIL) != 0
        return tail

    def is_known(self, ids: Ids) -> NDArray[np.bool_]:
        """bool[n]: whether size and owner have been told of each page."""
        known: NDArray[np.bool_] = (self._meta[ids] & (_KNOWN | _TAIL)) != 0
        return known

    def range_of(self, ids: Ids) -> Ids:
        """int64[m]: the base pages of folios, all of them, in order."""
        pages = self.pages(ids)
        begin = np.cumsum(pages) - pages
        result: Ids = np.repeat(ids - begin, pages) + np.arange(int(pages.sum()))
        return result

    # -- what is seen ------------------------------------------------------------------------

    def look(self, look: Look) -> Ids:
        """Take in a look; returns int64[n], the page of each entry, -1 for a frame that the
        recorded machine does not have.

        A page that was not there before begins where the recording saw it.
        """
        places = self.at(look.pfn)
        known = places >= 0
        places, accessed = places[known], look.weight[known] > 0
        every = np.full(len(look.pfn), -1, np.int64)
        ids = every[known] = self.ids(places)
        meta = self._meta[ids]
        fresh = (self._placed[ids] == 0) | (
            (meta & _TAIL) != 0
        )  # a tail that is looked at was split
        part = np.flatnonzero(fresh | (((meta & _ACCESSED) != 0) != accessed))
        ids, fresh = ids[part], fresh[part]
        meta = np.where(fresh, np.uint8(0), meta[part] & (_ORDER | _KNOWN))
        self._set(
            ids,
            *self._where(ids, places[part]),
            np.where(self._placed[ids] == 0, np.uint16(0), self._owner[ids]),
            np.where(accessed[part], meta | _ACCESSED, meta),
        )
        return every

    def _where(self, ids: Ids, places: Ids) -> tuple[Nodes, Nodes]:
        """Nodes of pages by the replay and by the recording: those not yet there begin alike."""
        home = self._node_of(places)
        return np.where(self._placed[ids] == 0, home, self.node(ids)), home

    def describe(self, layout: Layout, owner: NDArray[np.uint16]) -> None:
        """Take in sizes and owners; owner: uint16[n] for each of the layout's frames."""
        self.forget(layout.gone)
        places = self.at(layout.pfn)
        for order in np.unique(layout.order).tolist():
            mine = (layout.order == order) & (places >= 0)
            self._describe(places[mine], order, owner[mine])

    def _describe(self, places: Ids, order: int, owner: NDArray[np.uint16]) -> None:
        pages = 1 << order
        last = np.minimum(places + pages, len(self._placed)) - 1
        joined = self.ids(last) - self.ids(places) == pages - 1
        if not joined.all():
            # Pages that the recording moved one by one have no ids that follow each other: a
            # folio of such is counted as its first page.
            self._describe(places[~joined], 0, owner[~joined])
        places, owner = places[joined], owner[joined]
        heads = self.ids(places)
        self._split(heads)
        placed, home = self._where(heads, places)
        meta = (self._meta[heads] & _ACCESSED) | _KNOWN | np.uint8(order)
        self._set(heads, placed, home, owner, meta)
        if order:
            tails = (heads[:, None] + np.arange(1, pages)).reshape(-1)
            self._set(
                tails,
                np.repeat(placed, pages - 1),
                np.repeat(home, pages - 1),
                np.repeat(owner, pages - 1),
                np.full(len(tails), _TAIL),
            )

    def _split(self, heads: Ids) -> None:
        """Folios about which something new is said: only their first pages stay, for now."""
        large = heads[self.pages(heads) > 1]
        if len(large):
            inner = np.setdiff1d(self.range_of(large), large)
            self._drop(inner[self.is_tail(inner)])
            self._set(
                large,
                self.node(large),
                self._homed[large].astype(np.int64) - 1,
                self._owner[large],
                self._meta[large] & _ACCESSED,
            )

    def forget(self, pfn: Pfns) -> None:
        """What was in these recorded frames is gone, whole folios of it."""
        places = self.at(pfn)
        ids = self.ids(places[places >= 0])
        self._split(ids)
        self._drop(ids)

    def _drop(self, ids: Ids) -> None:
        absent = np.full(len(ids), ABSENT, np.int64)
        zero = np.zeros(len(ids), np.uint8)
        self._set(ids, absent, absent, zero.astype(np.uint16), zero)

    # -- what moves ----------------------------------------------------------------------------

    def put(self, heads: Ids, node: int) -> None:
        """The replayed policy moves folios to a node (an index)."""
        ids = unique(self.range_of(heads))
        ids = ids[self._placed[ids] > 0]
        self._add(self.count, self.hot, ids, self._placed, -1)
        self._placed[ids] = node + 1
        self._add(self.count, self.hot, ids, self._placed, +1)

    def recorded_moves(self, moved: Moved) -> None:
        """The recording daemon moved folios: pages are in other frames of its machine now."""
        for part in _without_repeats(moved):
            self._recorded(*part)

    def _recorded(self, old: Pfns, new: Pfns, order: NDArray[np.uint8]) -> None:
        if self._ids is None:
            self._ids = np.arange(len(self._placed), dtype=np.int64)
        pages = np.left_shift(1, order.astype(np.int64))
        step = np.arange(int(pages.sum())) - np.repeat(np.cumsum(pages) - pages, pages)
        source = self.at(np.repeat(old, pages) + step.astype(np.uint64))
        target = self.at(np.repeat(new, pages) + step.astype(np.uint64))
        known = (source >= 0) & (target >= 0)
        source, target = source[known], target[known]
        self._drop(self._ids[target])  # whatever was there before is gone
        ids = self._ids[source]
        self._ids[source], self._ids[target] = self._ids[target], ids
        there = self._placed[ids] > 0
        ids = ids[there]
        self._add(self.home, self.hot_home, ids, self._homed, -1)
        self._homed[ids] = self._node_of(target[there]) + 1
        self._add(self.home, self.hot_home, ids, self._homed, +1)

    # -- counts --------------------------------------------------------------------------------

    def owners(self, number: int) -> None:
        """There are so many owners now, besides the unknown one."""
        missing = number + 1 - self.count.shape[1]
        if missing > 0:
            self.count = np.pad(self.count, ((0, 0), (0, missing)))
            self.home = np.pad(self.home, ((0, 0), (0, missing)))

    def _set(
        self,
        ids: Ids,
        placed: Nodes,
        home: Nodes,
        owner: NDArray[np.uint16],
        meta: NDArray[np.uint8],
    ) -> None:
        """A new state for pages, each named once. They are counted out and in again."""
        before = ids[self._placed[ids] > 0]
        self._add(self.count, self.hot, before, self._placed, -1)
        self._add(self.home, self.hot_home, before, self._homed, -1)
        self._placed[ids] = placed + 1
        self._homed[ids] = home + 1
        self._owner[ids] = owner
        self._meta[ids] = meta
        after = ids[placed >= 0]
        self._add(self.count, self.hot, after, self._placed, +1)
        self._add(self.home, self.hot_home, after, self._homed, +1)

    def _add(
        self,
        count: NDArray[np.int64],
        hot: NDArray[np.int64],
        ids: Ids,
        nodes: NDArray[np.uint8],
        sign: int,
    ) -> None:
        """Count pages on the nodes (and one more) that `nodes` says."""
        node = nodes[ids].astype(np.int64) - 1
        cell = node * count.shape[1] + self._owner[ids]
        count += sign * np.bincount(cell, minlength=count.size).reshape(count.shape)
        weight = self.pages(ids) * ((self._meta[ids] & _ACCESSED) != 0)
        hot += sign * np.bincount(node, weight, len(hot)).astype(np.int64)


def _without_repeats(moved: Moved) -> Iterator[tuple[Pfns, Pfns, NDArray[np.uint8]]]:
    """Parts, in order, in which no frame is named twice: a demoted page's frame may be the one
    that a promotion of the same cycle went to."""
    begin = 0
    while begin < len(moved.old):
        both = np.stack([moved.old[begin:], moved.new[begin:]], axis=1).reshape(-1)
        _, first = np.unique(both, return_index=True)
        again = np.ones(len(both), np.bool_)
        again[first] = False
        repeats = np.flatnonzero(again)
        end = len(moved.old) if not len(repeats) else begin + max(int(repeats[0]) // 2, 1)
        yield moved.old[begin:end], moved.new[begin:end], moved.order[begin:end]
        begin = end
