# SPDX-License-Identifier: Apache-2.0
"""The memory of the simulated machine: programs, their pages in frames, idle bits, moves.

No clock and no cost of its own: time comes in as an argument. Accesses are drawn lazily, for
the frames that are looked at, from the true rate of their pages.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tierd.host import KPF, NO_PFN, MoveOption, Node, Pfns, Span
from tierd.host.frames import (
    BLOCK,
    BLOCK_ORDER,
    FREE,
    HOLE,
    KERNEL,
    Blocks,
    FrameStore,
    Ids,
    Orders,
    spread,
)
from tierd.host.idle_bits import IdleBits
from tierd.host.workload import Counts, Pattern, Times, WorkloadSpec, pattern

PAGE: Final = 4096
_ALIGN: Final = 32_768
"""Spans begin at multiples of 128 MiB, as memory blocks do."""
_HOLE: Final = 8 * _ALIGN
"""Frames of nothing between two nodes, so that nobody counts on a dense address space."""
_OPEN: Final = np.int32(-(2**31))
"""Status of a folio about which nothing is decided yet."""

_USER: Final = KPF.UPTODATE | KPF.LRU | KPF.MMAP | KPF.ANON | KPF.SWAPBACKED
# Indexed by a page id cut at 0, so that HOLE, KERNEL and FREE count from the end.
_KIND_FLAGS: Final = np.array([_USER, KPF.NOPAGE, KPF.SLAB, KPF.BUDDY], np.uint64)


def _compound_flags() -> NDArray[np.uint64]:
    """uint64[order, place in a block]. As stable_page_flags() of fs/proc/page.c has it, THP is
    said of large folios of any order, and of their tails."""
    flags = np.zeros((BLOCK_ORDER + 1, BLOCK), np.uint64)
    flags[1:] = KPF.COMPOUND_TAIL | KPF.THP
    for order in range(1, BLOCK_ORDER + 1):
        flags[order, :: 1 << order] = KPF.COMPOUND_HEAD | KPF.THP
    return flags


_COMPOUND_FLAGS: Final = _compound_flags()

Statuses = NDArray[np.int32]


class NodeSpec(Protocol):
    """What `tierd.config.SimulatedNode` says. Size in bytes, latency in seconds."""

    @property
    def id(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def cpus(self) -> int: ...
    @property
    def latency(self) -> float: ...


class SimulationSpec(Protocol):
    """What `tierd.config.Simulation` says."""

    @property
    def nodes(self) -> Sequence[NodeSpec]: ...
    @property
    def workloads(self) -> Sequence[WorkloadSpec]: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Failures:
    """Shares of the pages (0..1) that refuse to move, by cause; always the same pages, but for
    `busy` and `again`, which are drawn anew for each attempt."""

    pinned: float = 0.0
    """-EBUSY, for ever."""
    shared: float = 0.0
    """Mapped by several processes: refused without MoveOption.SHARED."""
    mempolicy: float = 0.0
    """Bound by a memory policy: refused with MoveOption.MEMPOLICY."""
    vma: float = 0.0
    mappings: float = 0.0
    """Mapped too often to be judged: -EMLINK."""
    unmapped: float = 0.0
    """Page cache that nobody maps: -ENODATA without MoveOption.UNMAPPED."""
    kind: float = 0.0
    """Of a kind that cannot be migrated: -EOPNOTSUPP."""
    busy: float = 0.0
    """-EBUSY, this time."""
    again: float = 0.0
    """-EAGAIN, this time."""


@dataclass(slots=True)
class Program:
    """A running workload: its pages have the ids first, first + 1, ..."""

    name: str
    cgroup: str
    first: int
    pages: int
    pattern: Pattern
    folios: Mapping[int, float]
    """Share of its memory by the size of the folios, in bytes, that it is in; the rest is in
    single pages."""
    lifetime: float | None = None
    """Seconds after which it ends and another like it begins; None for never."""
    alive: bool = False
    resident: dict[int, int] = field(default_factory=dict)
    """Pages per node."""


class Machine:
    """Nodes, frames, programs and idle bits. One thread at a time."""

    def __init__(self, spec: SimulationSpec, failures: Failures, kernel_share: float) -> None:
        """See `SimulatedHost`. Raises ValueError when the programs do not fit."""
        self._rng = np.random.default_rng(spec.seed)
        self._failures = failures
        self.nodes = _nodes(spec.nodes)
        self.programs = tuple(_programs(spec))
        self.frames = FrameStore(
            [span for node in self.nodes for span in node.spans],
            sum(program.pages for program in self.programs),
        )
        self.idle = IdleBits(self.frames, self._rng, self._expected)
        for node in self.nodes:
            share = kernel_share if node.cpus else 0.0
            mine = self.frames.of_node(node.id)
            self.frames.reserve(mine[: int(len(mine) * share)])
        self._firsts = np.array([program.first for program in self.programs], np.int64)
        for index in range(len(self.programs)):
            self.start(index)

    # -- what a frame is -------------------------------------------------------------------------

    def flags(self, pfn: Pfns) -> NDArray[np.uint64]:
        """uint64[n]: KPF_* bits of each frame."""
        return self._flags(self.frames.ids(pfn))

    def _flags(self, ids: Ids) -> NDArray[np.uint64]:
        flags = _KIND_FLAGS[np.minimum(ids, 0)]
        order = self.frames.orders(ids)
        if np.any(order):
            flags |= _COMPOUND_FLAGS[order, ids & (BLOCK - 1)]
        return flags

    def flags_run(self, start: int, out: NDArray[np.uint64]) -> None:
        """The same of consecutive frames, quickly."""
        at = self.frames.run(start, len(out))
        if at is None:
            out[:] = self.flags(np.arange(start, start + len(out), dtype=np.uint64))
            return
        block, offset = at
        if offset + len(out) <= BLOCK:
            out[:] = self._flags(self.frames.part(block, offset, len(out)))
            return
        blocks = np.arange(block, block + (offset + len(out) - 1) // BLOCK + 1)
        flags = self._flags(self.frames.rows(blocks))
        out[:] = flags.reshape(-1)[offset : offset + len(out)]

    def owner(self, ids: Ids) -> NDArray[np.int64]:
        """int64[n]: index of the program of each page, -1 for what is no page."""
        return np.where(ids >= 0, np.searchsorted(self._firsts, ids, side="right") - 1, -1)

    def _expected(
        self, blocks: Blocks, offset: NDArray[np.int64], since: Times, now: float
    ) -> Counts:
        """Accesses that the folio headed by each frame had to expect between `since` and now."""
        ids = self.frames.at(blocks, offset)
        total = self._accesses(ids, since, now)
        orders = self.frames.orders(ids)
        for order in np.unique(orders[orders > 0]).tolist():
            large = np.flatnonzero(orders == order)
            step = 256 * BLOCK >> order
            for begin in range(0, len(large), step):
                part = large[begin : begin + step]
                pages = spread(ids[part], order)
                each = self._accesses(pages, np.repeat(since[part], 1 << order), now)
                total[part] = each.reshape(len(part), -1).sum(axis=1)
        return total

    def _accesses(self, ids: Ids, since: Times | None, now: float) -> Counts:
        """Expected accesses of each page since then, or its rate when `since` is None."""
        total = np.zeros(len(ids))
        owner = self.owner(ids)
        for index in np.unique(owner[owner >= 0]).tolist():
            program = self.programs[index]
            mine = np.flatnonzero(owner == index)
            pages = ids[mine] - program.first
            if since is None:
                total[mine] = program.pattern.rates(pages, now)
            else:
                total[mine] = program.pattern.expected(pages, since[mine], now)
        return total

    # -- moving --------------------------------------------------------------------------------

    def move(
        self,
        pfn: Pfns,
        target: Statuses,
        source: Statuses,
        options: MoveOption,
        mems: Sequence[frozenset[int]],
    ) -> tuple[Statuses, Pfns, int]:
        """Move folios as the call of the patched kernel does; mems: each program's nodes.

        Returns a status and a new frame (or NO_PFN) per entry, and the base pages moved.
        """
        ids = self.frames.ids(pfn)
        heads = pfn - self.frames.within(ids).astype(np.uint64)
        unique, first, back = np.unique(heads, return_index=True, return_inverse=True)
        orders = self.frames.orders(ids[first])
        status = self._judge(unique, target[first], source[first], options, mems)
        new = np.full(len(unique), NO_PFN, np.uint64)
        ready = status == _OPEN
        for order in np.unique(orders[ready]).tolist():
            for node in np.unique(target[first][ready & (orders == order)]).tolist():
                mine = np.flatnonzero(ready & (orders == order) & (target[first] == node))
                new[mine] = self._place(unique[mine], order, node)
        status[ready] = np.where(new == NO_PFN, -errno.ENOMEM, target[first])[ready]
        pages = int(np.left_shift(1, orders[new != NO_PFN], dtype=np.int64).sum())
        status, new = status[back.reshape(-1)], new[back.reshape(-1)]
        tails = (heads != pfn) & (new != NO_PFN)
        new[tails] += (pfn - heads)[tails]
        return status, new, pages

    def _judge(
        self,
        heads: Pfns,
        target: Statuses,
        source: Statuses,
        options: MoveOption,
        mems: Sequence[frozenset[int]],
    ) -> Statuses:
        """Status of each folio that will not move; _OPEN for those that may."""
        ids = self.frames.ids(heads)
        node = np.where(ids == HOLE, -1, self.frames.node[self.frames.locate(heads)])
        known = np.isin(target, [entry.id for entry in self.nodes])
        allowed = self._allowed(ids, target, mems)
        # Each line overrules the ones above it; the order is that of the kernel's own checks.
        status = np.full(len(heads), _OPEN, np.int32)
        for code, refused in self._refusals(ids, options):
            status[refused] = -code
        status[~allowed] = -errno.EACCES
        status = np.where(node == target, node, status).astype(np.int32)
        status[(node != source) & (ids >= 0)] = -errno.ESTALE
        status[ids == HOLE] = -errno.ENXIO
        status[(ids == FREE) | (ids == KERNEL)] = -errno.ENOENT
        status[~known] = -errno.ENODEV
        return status

    def _refusals(self, ids: Ids, options: MoveOption) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """errno and the pages that refuse for it: a fixed part of all pages for each cause."""
        fails = self._failures
        now = self._rng.random(len(ids))
        yield errno.EBUSY, now < fails.busy
        yield errno.EAGAIN, (now >= fails.busy) & (now < fails.busy + fails.again)
        draw = (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) / 2.0**64
        causes = [
            (errno.EBUSY, fails.pinned),
            (errno.EFAULT, fails.vma),
            (errno.EMLINK, fails.mappings),
            (errno.EOPNOTSUPP, fails.kind),
        ]
        if MoveOption.UNMAPPED not in options:
            causes.append((errno.ENODATA, fails.unmapped))
        if MoveOption.SHARED not in options:
            causes.append((errno.EPERM, fails.shared))
        if MoveOption.MEMPOLICY in options:
            causes.append((errno.EXDEV, fails.mempolicy))
        low = 0.0
        for code, share in causes:
            yield code, (draw >= low) & (draw < low + share)
            low += share

    def _allowed(
        self, ids: Ids, target: Statuses, mems: Sequence[frozenset[int]]
    ) -> NDArray[np.bool_]:
        owner = self.owner(ids)
        allowed = np.ones(len(ids), np.bool_)
        for index in np.unique(owner[owner >= 0]).tolist():
            mine = owner == index
            allowed[mine] = np.isin(target[mine], sorted(mems[index]))
        return allowed

    @staticmethod
    def total(node: Node) -> int:
        return sum(span.frames for span in node.spans)

    def reserve(self, node: Node) -> int:
        """The node's high watermark: 0.3 % of its frames, about what Linux keeps."""
        return self.total(node) * 3 // 1000

    def _room(self, node: int) -> int:
        """Frames that may be taken on a node: it stays above its high watermark."""
        entry = next(entry for entry in self.nodes if entry.id == node)
        return max(self.frames.free_frames(node) - self.reserve(entry), 0)

    def _place(self, heads: Pfns, order: int, node: int) -> Pfns:
        """Move folios of one order to a node; their new heads, NO_PFN where it had no room."""
        free = self.frames.find_free(node, order, min(len(heads), self._room(node) >> order))
        heads, left = heads[: len(free)], len(heads) - len(free)
        self._account(self.frames.ids(heads), heads, node, 1 << order)
        self.frames.move(heads, free, order)
        self.idle.forget(spread(heads, order))
        self.idle.forget(spread(free, order))
        return np.concatenate((free, np.full(left, NO_PFN, np.uint64)))

    def _account(self, ids: Ids, heads: Pfns, node: int, pages: int) -> None:
        """Pages per node of each program, as its folios of so many leave for `node`."""
        left = self.frames.node[self.frames.locate(heads)]
        owner = self.owner(ids)
        for index in np.unique(owner).tolist():
            resident = self.programs[index].resident
            for source in np.unique(left[owner == index]).tolist():
                count = int(np.count_nonzero((owner == index) & (left == source))) * pages
                resident[source] = resident.get(source, 0) - count
                resident[node] = resident.get(node, 0) + count

    # -- what a test or the demonstration does to the machine ------------------------------------

    def start(self, index: int) -> None:
        """Let a program allocate all its memory: the fastest node first, down to its watermark.

        Raises ValueError when it does not fit.
        """
        program = self.programs[index]
        left = program.pages // BLOCK
        first = program.first
        for node in sorted(self.nodes, key=lambda node: (node.read_latency or 0.0, node.id)):
            want = min(left, self._room(node.id) // BLOCK)
            blocks = self.frames.free_blocks(node.id, want)
            self.frames.fold(first, _orders(program.folios, self._rng.random(len(blocks))))
            self.frames.fill(blocks, first + np.arange(len(blocks)) * BLOCK)
            self.idle.forget_blocks(blocks)
            program.resident[node.id] = len(blocks) * BLOCK
            first += len(blocks) * BLOCK
            left -= len(blocks)
        if left:
            raise ValueError(f"program {program.name} does not fit into memory")
        program.alive = True

    def exit(self, index: int) -> None:
        """Let a program end: its frames become free, whatever was known of them is stale."""
        program = self.programs[index]
        for part in range(0, self.frames.blocks, 4096):
            blocks = np.arange(part, min(part + 4096, self.frames.blocks))
            ids = self.frames.rows(blocks)
            mine = (ids >= program.first) & (ids < program.first + program.pages)
            whole: NDArray[np.bool_] = np.all(mine, axis=1)
            self.frames.clear(blocks[whole])
            self.idle.forget_blocks(blocks[whole])
            block, offset = np.nonzero(mine & ~whole[:, None])
            frames = (self.frames.start_of(blocks)[block] + offset).astype(np.uint64)
            if len(frames):
                self.frames.put(frames, np.full(len(frames), FREE, np.int64))
                self.idle.forget(frames)
        program.resident = {}
        program.alive = False

    def replace(self, index: int) -> None:
        """Let a program end and another like it begin, in memory that has just been free. Where
        there are no longer enough whole blocks for it, it stays away until the next time."""
        self.exit(index)
        try:
            self.start(index)
        except ValueError:
            self.exit(index)

    def rates(self, pfn: Pfns, now: float) -> Counts:
        """float64[n]: true accesses per second of the page in each frame, 0 for no page."""
        return self._accesses(self.frames.ids(pfn), None, now)

    def access_shares(self, now: float) -> Mapping[int, float]:
        """Share of all accesses that each node truly gets now. Costs 20 ns per frame."""
        total = dict.fromkeys((node.id for node in self.nodes), 0.0)
        for node in total:
            blocks = self.frames.of_node(node)
            blocks = blocks[self.frames.used[blocks] > 0]
            for part in range(0, len(blocks), 256):
                ids = self.frames.rows(blocks[part : part + 256]).reshape(-1)
                total[node] += float(self._accesses(ids, None, now).sum())
        everything = sum(total.values()) or 1.0
        return {node: value / everything for node, value in total.items()}


def _nodes(specs: Sequence[NodeSpec]) -> tuple[Node, ...]:
    """Nodes with one span each, a hole before every one but the first."""
    nodes: list[Node] = []
    start, cpu = 0, 0
    ids = [spec.id for spec in specs]
    for spec in sorted(specs, key=lambda spec: spec.id):
        frames = spec.size // PAGE // BLOCK * BLOCK
        nodes.append(
            Node(
                id=spec.id,
                cpus=frozenset(range(cpu, cpu + spec.cpus)),
                spans=(Span(spec.id, start, start + frames),),
                distances={other: 10 if other == spec.id else 20 for other in ids},
                read_latency=spec.latency,
            )
        )
        cpu += spec.cpus
        start = -(-(start + frames) // _ALIGN) * _ALIGN + _HOLE
    return tuple(nodes)


def _programs(spec: SimulationSpec) -> Iterator[Program]:
    first = 0
    for index, entry in enumerate(spec.workloads):
        pages = max(entry.size // PAGE // BLOCK, 1) * BLOCK
        for number in range(entry.programs):
            accesses = pattern(entry, pages, PAGE, spec.seed + index + 1000 * number)
            name, cgroup = f"{entry.kind}-{index}", entry.cgroup
            if entry.programs > 1:
                name, cgroup = f"{name}-{number}", f"{cgroup}/{number}".lstrip("/")
            yield Program(name, cgroup, first, pages, accesses, entry.folios, entry.lifetime)
            first += pages


def _orders(folios: Mapping[int, float], draw: NDArray[np.float64]) -> Orders:
    """uint8[n]: order of the folios of each 512 pages, from a number 0..1 for each."""
    sizes = sorted(folios, reverse=True)
    orders = [(size // PAGE).bit_length() - 1 for size in sizes]
    bounds = np.cumsum([folios[size] for size in sizes])
    return np.array([*orders, 0], np.uint8)[np.searchsorted(bounds, draw, side="right")]
