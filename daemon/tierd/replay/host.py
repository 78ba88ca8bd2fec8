# SPDX-License-Identifier: Apache-2.0
"""A machine made of a trace, behind the same waist as a real one.

Every node has room for every recorded frame: the page that is named after frame f is, on node
number i, in frame f + i * `stride`. So a move needs no free frame to be found, and large folios
stay aligned; how full a node is follows from what the recording says of its free memory.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import (
    KPF,
    NO_PFN,
    Capability,
    Cgroup,
    CpuTimes,
    Feature,
    ForeignTierer,
    KernelError,
    MoveOption,
    Node,
    NodeMemory,
    Pfns,
    PhysMove,
    Span,
)
from tierd.hotness import CHUNK
from tierd.replay.placement import Ids, Placement
from tierd.trace import Cycle, Header, Look

_HAS: Final = {
    Feature.MOVE_PHYS_PAGES,
    Feature.KPAGEFLAGS,
    Feature.KPAGECGROUP,
    Feature.KPAGECOUNT,
    Feature.CPUSET,
    Feature.NUMA,
    Feature.PSI,
}
_USER: Final = KPF.UPTODATE | KPF.LRU | KPF.MMAP | KPF.ANON | KPF.SWAPBACKED
_MOST_OWNERS: Final = 65_535


class TracedHost:
    """`tierd.host.Host` over a trace. `begin` and `end` lead it from cycle to cycle."""

    def __init__(self, header: Header) -> None:
        self._header = header
        spans = [span for node in header.nodes for span in node.spans]
        highest = max(span.end for span in spans)
        self.stride = CHUNK << max((highest - 1) // CHUNK, 0).bit_length()
        """Frames from a page on one node to the same page on the next."""
        self.node_ids = tuple(node.id for node in header.nodes)
        self.placement = Placement(spans, self.node_ids)
        self._nodes = tuple(
            replace(
                node,
                spans=tuple(
                    Span(node.id, s.start + i * self.stride, s.end + i * self.stride)
                    for s in sorted(spans, key=lambda span: span.start)
                ),
            )
            for i, node in enumerate(header.nodes)
        )
        self._time = 0.0
        self._memory: tuple[NodeMemory, ...] = ()
        self._pressure: Mapping[str, float] = {}
        self.cgroups_seen: dict[int, Cgroup] = {}
        """All that the trace has told of, by inode."""
        self._cgroups: tuple[Cgroup, ...] = ()
        self._owner_of: dict[int, int] = {}
        self.inodes: NDArray[np.uint64] = np.zeros(1, np.uint64)
        """Inode of each owner; owner 0 is unknown."""

    # -- the trace -----------------------------------------------------------------------------

    def begin(self, cycle: Cycle) -> None:
        """Go on to this cycle. What it says of memory is from its end, so the first one's counts
        for its beginning too."""
        self._time = cycle.time
        self._pressure = cycle.pressure
        if not self._memory:
            self._memory = cycle.memory
        if cycle.cgroups is not None:
            self._cgroups = cycle.cgroups
            self.cgroups_seen |= {each.inode: each for each in cycle.cgroups}

    def see(self, look: Look) -> Pfns:
        """uint64[n]: the replayed machine's frames of the entries of a look, in their order;
        NO_PFN for those that the recorded machine does not have."""
        ids = self.placement.look(look)
        node = self.placement.node(ids).astype(np.uint64)
        pfn = self.placement.pfn(ids) + node * np.uint64(self.stride)
        return np.where(ids >= 0, pfn, NO_PFN)

    def end(self, cycle: Cycle) -> None:
        """Take in what the recording did and learnt after it had looked."""
        self.placement.recorded_moves(cycle.moved)
        self.placement.describe(cycle.layout, self._owners(cycle.layout.cgroup))
        self._memory = cycle.memory

    def _owners(self, inodes: NDArray[np.uint64]) -> NDArray[np.uint16]:
        unique, index = np.unique(inodes, return_inverse=True)
        for inode in unique.tolist():
            if inode and inode not in self._owner_of and len(self.inodes) <= _MOST_OWNERS:
                self._owner_of[inode] = len(self.inodes)
                self.inodes = np.append(self.inodes, np.uint64(inode))
        self.placement.owners(len(self._owner_of))
        table = np.array([self._owner_of.get(inode, 0) for inode in unique.tolist()], np.uint16)
        return table[index.reshape(-1)] if len(table) else np.zeros(0, np.uint16)

    def fast_share(self, nodes: tuple[int, ...]) -> float | None:
        """Share of the accessed pages that the replay has on `nodes`."""
        return self._share(self.placement.hot, nodes)

    def recorded_share(self, nodes: tuple[int, ...]) -> float | None:
        """The same, where the recording had them."""
        return self._share(self.placement.hot_home, nodes)

    def _share(self, hot: NDArray[np.int64], nodes: tuple[int, ...]) -> float | None:
        total = int(hot.sum())
        mine = sum(int(hot[self.node_ids.index(node)]) for node in nodes)
        return mine / total if total else None

    # -- what this is --------------------------------------------------------------------------

    @property
    def page_size(self) -> int:
        """Bytes in one frame of the recorded machine."""
        return self._header.page_size

    @property
    def name(self) -> str:
        """The recorded host."""
        return f"{self._header.host}, recorded"

    def capabilities(self) -> tuple[Capability, ...]:
        """What a replay can do."""
        reasons = {True: "the trace has it", False: "a trace is replayed"}
        return tuple(Capability(name, name in _HAS, reasons[name in _HAS]) for name in Feature)

    def nodes(self) -> tuple[Node, ...]:
        """The recorded nodes, each with room for everything."""
        return self._nodes

    def node_memory(self) -> tuple[NodeMemory, ...]:
        """Free memory as recorded, less what the replay has moved there, plus what it has moved
        away."""
        difference = (self.placement.count - self.placement.home).sum(axis=1) * self.page_size
        rooms = []
        for entry in self._memory:
            here = int(difference[self.node_ids.index(entry.node)])
            free = min(max(entry.free - here, 0), entry.total)
            rooms.append(NodeMemory(entry.node, entry.total, free, entry.high_watermark))
        return tuple(rooms)

    def cgroups(self) -> tuple[Cgroup, ...]:
        """The cgroups of the recorded host at this time."""
        return self._cgroups

    def cgroup_memory(self, path: str) -> Mapping[int, int]:
        """Bytes per node of a cgroup and those below it, as far as they were seen."""
        mine = [
            self._owner_of[each.inode]
            for each in self._cgroups
            if each.inode in self._owner_of
            and (not path or each.path == path or each.path.startswith(f"{path}/"))
        ]
        total = self.placement.count[:, mine].sum(axis=1) * self.page_size
        return dict(zip(self.node_ids, total.tolist(), strict=True))

    def pressure(self, cgroup: str = "") -> Mapping[str, float]:
        """As recorded, whatever cgroup is asked for."""
        return self._pressure

    def foreign_tierers(self) -> tuple[ForeignTierer, ...]:
        """None."""
        return ()

    def monotonic(self) -> float:
        """Seconds of the recorded host's clock."""
        return self._time

    def sleep(self, seconds: float) -> None:
        """Time passes with the cycles of the trace only."""

    def interrupt(self) -> None:
        """Nothing sleeps."""

    def cpu_times(self) -> CpuTimes:
        """A replay costs the recorded host nothing."""
        return CpuTimes(0.0, 0.0)

    # -- frames --------------------------------------------------------------------------------

    def _locate(self, pfn: Pfns) -> tuple[Ids, NDArray[np.int64], NDArray[np.bool_]]:
        """(id, node index in the frame's number, whether the page is in that frame)."""
        node = (pfn // np.uint64(self.stride)).astype(np.int64)
        ids = self.placement.at(pfn % np.uint64(self.stride))
        ids = np.where(node < len(self.node_ids), ids, -1)
        return ids, node, (ids >= 0) & (self.placement.node(ids) == node)

    def flags(self, pfn: Pfns) -> NDArray[np.uint64]:
        """KPF_* bits: a page of a program where there is one, else free. A page of which size
        and owner are not told yet is on no list, so that nobody moves it."""
        ids, _, here = self._locate(pfn)
        flags = np.where(here, _USER, KPF.BUDDY)
        flags[here & ~self.placement.is_known(ids)] &= ~KPF.LRU
        tail = self.placement.is_tail(ids)
        large = self.placement.pages(ids) > 1
        flags[here & tail] |= KPF.COMPOUND_TAIL | KPF.THP
        flags[here & large & ~tail] |= KPF.COMPOUND_HEAD | KPF.THP
        flags[ids < 0] = KPF.NOPAGE
        return flags

    def flags_run(self, start: int, out: NDArray[np.uint64]) -> None:
        """The same of consecutive frames."""
        out[:] = self.flags(np.arange(start, start + len(out), dtype=np.uint64))

    def cgroup_inodes(self, pfn: Pfns) -> NDArray[np.uint64]:
        """Inode of each page's cgroup as far as it was recorded."""
        ids, _, here = self._locate(pfn)
        return np.where(here, self.inodes[self.placement.owner(ids)], np.uint64(0))

    def map_counts(self, pfn: Pfns) -> NDArray[np.uint64]:
        """1 where there is a page."""
        return self._locate(pfn)[2].astype(np.uint64)

    def set_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """There is nothing to mark."""

    def read_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """There is no idle bitmap."""
        raise KernelError(errno.ENOENT, "a trace has no idle bitmap", self.name)

    def set_idle_words(self, first: Pfns, masks: NDArray[np.uint64]) -> None:
        """There is nothing to mark."""

    def read_idle_words(self, first: Pfns, words: NDArray[np.uint64]) -> None:
        """There is no idle bitmap."""
        raise KernelError(errno.ENOENT, "a trace has no idle bitmap", self.name)

    def move_phys_pages(
        self,
        pfn: Pfns,
        target: NDArray[np.int32],
        source: NDArray[np.int32],
        options: MoveOption,
    ) -> PhysMove:
        """Move folios as the patched kernel would: cpusets and room are heeded. Refusals for
        other causes are not in a trace."""
        ids, index, here = self._locate(pfn)
        here &= ~self.placement.is_tail(ids)
        status = np.full(len(pfn), -errno.ENOENT, np.int32)
        new = np.full(len(pfn), NO_PFN)
        status[
            here & (np.array(self.node_ids)[index % len(self.node_ids)] != source)
        ] = -errno.EAGAIN
        free = {room.node: room.free - room.high_watermark for room in self.node_memory()}
        ready = here & (status != -errno.EAGAIN)
        for node in np.unique(target[ready]).tolist():
            rows = np.flatnonzero(ready & (target == node))
            if node not in self.node_ids:
                status[rows] = -errno.ENODEV
                continue
            allowed = self._allowed(ids[rows], node)
            status[rows[~allowed]] = -errno.EACCES
            rows = rows[allowed]
            fits = np.cumsum(self.placement.pages(ids[rows])) * self.page_size <= free[node]
            status[rows[~fits]] = -errno.ENOMEM
            rows = rows[fits]
            number = self.node_ids.index(node)
            self.placement.put(ids[rows], number)
            status[rows] = node
            named = self.placement.pfn(ids[rows])
            new[rows] = named + np.uint64(number * self.stride)
        return PhysMove(status, new, len(pfn))

    def _allowed(self, ids: Ids, node: int) -> NDArray[np.bool_]:
        """bool[n]: whether each owner's cpuset allows the node; an unknown owner has none."""
        table = np.array(
            [
                inode not in self.cgroups_seen or node in self.cgroups_seen[inode].mems
                for inode in self.inodes.tolist()
            ]
        )
        return table[self.placement.owner(ids)]
