# SPDX-License-Identifier: Apache-2.0
"""What a page frame is: folio, size, movable or why not, whose.

Read for candidates only: a kpageflags entry costs the kernel 50 to 150 ns, a sweep over a large
host takes minutes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.config import Class
from tierd.host import KPF, Cgroup, Host, Pfns, free_frames
from tierd.topology import Topology

THP_ORDER: Final = 9
"""Order of a PMD-sized folio with 4 KiB frames; the LRU holds none larger."""


class PageReason(IntEnum):
    """Why a frame cannot be moved, as seen from its flags. The mover's verdict may differ."""

    NONE = 0
    """Nothing speaks against it."""
    FREE = 1
    """A hole, or free: whatever was here is gone."""
    KERNEL = 2
    """Slab, page table, reserved, offline or other kernel memory."""
    HUGETLB = 3
    POISONED = 4
    ZERO = 5
    """The shared zero page."""
    BUSY = 6
    """A user page that is on no LRU list just now: isolated, or new and not yet on one."""
    FOREIGN = 7
    """Not in any tier."""


@dataclass(frozen=True, slots=True)
class PageInfo:
    """Folios of some frames. Arrays are parallel, shape (m,), except `index`.

    pfn: uint64 heads, sorted and unique. pages: uint32 base pages in each folio.
    node: int32, -1 outside all tiers. movable: bool, reason: int8 of `PageReason`.
    flags: uint64 KPF_* bits of the head. cgroup: uint64 inode, 0 for none.
    index: int64[n], for each frame that was asked for, its row.
    """

    pfn: Pfns
    pages: NDArray[np.uint32]
    node: NDArray[np.int32]
    movable: NDArray[np.bool_]
    reason: NDArray[np.int8]
    flags: NDArray[np.uint64]
    cgroup: NDArray[np.uint64]
    index: NDArray[np.int64]


class PageReader:
    """Describes frames through a host. Holds no state between calls."""

    def __init__(self, host: Host, topology: Topology, *, owners: bool = True) -> None:
        """`owners` False where the kernel has no kpagecgroup: all cgroups are then 0."""
        self._host = host
        self._topology = topology
        self._owners = owners

    def describe(self, pfn: Pfns) -> PageInfo:
        """Fold `pfn` (sorted, unique) to folio heads and describe those.

        Costs a read of kpageflags per frame, up to 19 more per compound folio, and one of
        kpagecgroup per head. Raises KernelError when the kernel refuses.
        """
        flags = self._host.flags(pfn)
        unique, index = pfn, np.arange(len(pfn))
        if np.any(flags & KPF.COMPOUND_TAIL):
            unique, index = np.unique(self._heads(pfn, flags), return_inverse=True)
            flags = self._host.flags(unique)
        node = self._topology.node_of(unique)
        reason = judge(flags)
        reason[node < 0] = PageReason.FOREIGN
        movable = reason == PageReason.NONE
        cgroup = np.zeros(len(unique), np.uint64)
        if self._owners and movable.any():
            cgroup[movable] = self._host.cgroup_inodes(unique[movable])
        return PageInfo(
            pfn=unique,
            pages=self._sizes(unique, flags),
            node=node,
            movable=movable,
            reason=reason,
            flags=flags,
            cgroup=cgroup,
            index=index.reshape(-1).astype(np.int64, copy=False),
        )

    def _heads(self, pfn: Pfns, flags: NDArray[np.uint64]) -> Pfns:
        """Head of each frame's folio. Folios are naturally aligned, so the head of a tail is
        the nearest lower multiple of a power of two that is flagged as a head."""
        heads = pfn.astype(np.uint64)  # a copy: tails are overwritten below
        open_ = np.flatnonzero(flags & KPF.COMPOUND_TAIL)
        for order in range(1, THP_ORDER + 1):
            if not len(open_):
                break
            base = pfn[open_] & ~np.uint64((1 << order) - 1)
            unique, back = np.unique(base, return_inverse=True)
            is_head = (self._host.flags(unique) & KPF.COMPOUND_HEAD).astype(bool)[back]
            heads[open_[is_head]] = base[is_head]
            open_ = open_[~is_head]
        return heads  # still open: a tail of something larger than any LRU folio; judged as such

    def _sizes(self, heads: Pfns, flags: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Base pages in each folio: the first power of two at which no tail of it follows."""
        pages = np.ones(len(heads), np.uint32)
        open_ = np.flatnonzero(flags & KPF.COMPOUND_HEAD)
        # PMD-sized folios are by far the most frequent: one read each settles those.
        big = self._longer(heads[open_], THP_ORDER - 1)
        pages[open_[big]] = 1 << THP_ORDER
        open_ = open_[~big]
        for order in range(1, THP_ORDER):
            if not len(open_):
                break
            pages[open_] = 1 << order
            open_ = open_[self._longer(heads[open_], order)]
        return pages

    def _longer(self, heads: Pfns, order: int) -> NDArray[np.bool_]:
        """bool[n]: whether the folio at each head is larger than 2 ** order pages. It cannot be
        where the head is not aligned to more than that: a tail found there is another's."""
        longer: NDArray[np.bool_] = heads & np.uint64((2 << order) - 1) == 0
        if np.any(longer):
            flags = self._host.flags(heads[longer] + np.uint64(1 << order))
            longer[longer] = (flags & KPF.COMPOUND_TAIL).astype(np.bool_)
        return longer


def judge(flags: NDArray[np.uint64]) -> NDArray[np.int8]:
    """int8[n] of `PageReason` from the KPF_* bits of folio heads.

    Source: stable_page_flags() in fs/proc/page.c. A tail that found no head belongs to
    something larger than an LRU folio, hence to the kernel or to hugetlb.
    """
    reason = np.full(len(flags), PageReason.KERNEL, np.int8)
    # The weakest first: each later line overrules the earlier ones.
    user = KPF.ANON | KPF.MMAP | KPF.SWAPBACKED | KPF.UPTODATE
    reason[(flags & user).astype(bool)] = PageReason.BUSY
    reason[(flags & KPF.LRU).astype(bool)] = PageReason.NONE
    kernel = KPF.SLAB | KPF.PGTABLE | KPF.RESERVED | KPF.OFFLINE | KPF.COMPOUND_TAIL
    reason[(flags & kernel).astype(bool)] = PageReason.KERNEL
    reason[(flags & KPF.HUGE).astype(bool)] = PageReason.HUGETLB
    reason[(flags & KPF.ZERO_PAGE).astype(bool)] = PageReason.ZERO
    reason[(flags & KPF.HWPOISON).astype(bool)] = PageReason.POISONED
    reason[free_frames(flags)] = PageReason.FREE
    return reason


def class_pattern(match: str) -> re.Pattern[str]:
    """Regular expression for `config.Class.match`: * and ? stay within one level of the cgroup
    tree, ** crosses levels, and a cgroup matches with everything below it."""
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", match.strip("/"))
    parts = [wild.get(token) or re.escape(token) for token in tokens]
    return re.compile("".join(parts) + r"(?:/.*)?\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class OwnerTable:
    """Cgroup inode -> configured class and allowed nodes. Immutable; rebuilt after a scan."""

    _inodes: NDArray[np.uint64]
    _classes: NDArray[np.int16]
    _mems: NDArray[np.bool_]

    @classmethod
    def build(cls, cgroups: Sequence[Cgroup], classes: Sequence[Class]) -> OwnerTable:
        """The first class whose pattern matches a cgroup's path owns it."""
        patterns = [class_pattern(entry.match) for entry in classes]
        ordered = sorted(cgroups, key=lambda cgroup: cgroup.inode)
        width = 1 + max((node for cgroup in ordered for node in cgroup.mems), default=0)
        mems = np.zeros((len(ordered), width), np.bool_)
        owner = np.full(len(ordered), -1, np.int16)
        for row, cgroup in enumerate(ordered):
            mems[row, sorted(cgroup.mems)] = True
            owner[row] = next(
                (i for i, pattern in enumerate(patterns) if pattern.match(cgroup.path)), -1
            )
        return cls(np.array([cgroup.inode for cgroup in ordered], np.uint64), owner, mems)

    def _rows(self, inodes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if not len(self._inodes):
            return np.zeros(len(inodes), np.int64), np.zeros(len(inodes), np.bool_)
        rows = np.minimum(np.searchsorted(self._inodes, inodes), len(self._inodes) - 1)
        return rows.astype(np.int64), self._inodes[rows] == inodes

    def known(self, inodes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """bool[n]: whether the scan knew the cgroup. False calls for a new scan."""
        return self._rows(inodes)[1]

    def classes(self, inodes: NDArray[np.uint64]) -> NDArray[np.int16]:
        """int16[n]: index into the configured classes, -1 for none (or unknown)."""
        rows, known = self._rows(inodes)
        if not known.any():
            return np.full(len(inodes), -1, np.int16)
        return np.where(known, self._classes[rows], np.int16(-1))

    def allows(self, inodes: NDArray[np.uint64], node: int) -> NDArray[np.bool_]:
        """bool[n]: whether the cgroup's cpuset allows `node`.

        Inode 0 (charged to nobody) is bound by no cpuset. A cgroup that appeared after the scan
        is refused until the next one: to wait costs little, to break isolation does not.
        Without any cgroup (no cgroup v2) all is allowed.
        """
        if not len(self._inodes):
            return np.ones(len(inodes), np.bool_)
        rows, known = self._rows(inodes)
        allowed: NDArray[np.bool_] = inodes == 0
        if 0 <= node < self._mems.shape[1]:
            allowed |= known & self._mems[rows, node]
        return allowed
