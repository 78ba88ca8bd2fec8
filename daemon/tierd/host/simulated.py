# SPDX-License-Identifier: Apache-2.0
"""A machine in arrays: nodes, pages, cgroups, programs and failures, behind the same waist.

It behaves as the kernel does where tierd can tell the difference: idle bits of tails and of
pages on no list read as accessed, a frame's number names another page after a move, memory
fills to a watermark. Accesses are drawn lazily, for the frames that are looked at, from the
true rate of their pages, so that a large machine costs only what is looked at.

CPU time: the kernel's part is modelled (`Costs`), tierd's own is measured, what the simulator
itself burns is left out.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tierd.host import (
    IDLE_WORD_FRAMES,
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
from tierd.host.frames import BLOCK, FREE, HOLE, KERNEL, Blocks, FrameStore, Ids
from tierd.host.workload import Counts, Pattern, Times, WorkloadSpec, pattern

PAGE: Final = 4096
_BLOCK_WORDS: Final = BLOCK // IDLE_WORD_FRAMES
_ALIGN: Final = 32_768
"""Spans begin at multiples of 128 MiB, as memory blocks do."""
_HOLE: Final = 8 * _ALIGN
"""Frames of nothing between two nodes, so that nobody counts on a dense address space."""

_USER: Final = KPF.UPTODATE | KPF.LRU | KPF.MMAP | KPF.ANON | KPF.SWAPBACKED


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


class Clock(Protocol):
    """Where the simulated machine's time comes from."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...
    def work(self, seconds: float) -> None:
        """The kernel was busy that long (modelled CPU time)."""


class VirtualClock:
    """Time that passes only by sleeping and by the kernel's modelled work."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += max(seconds, 0.0)

    def work(self, seconds: float) -> None:
        self._now += seconds


class RealClock:
    """The wall's time, from 0 at the start. Modelled work takes none of it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.woken = threading.Event()

    def now(self) -> float:
        return time.monotonic() - self._began

    def sleep(self, seconds: float) -> None:
        self.woken.wait(max(seconds, 0.0))

    def work(self, seconds: float) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU seconds of the kernel, per frame or page. Measured natively: 0.25 to 0.4 us for set
    and read of an idle bit, 50 to 150 ns for a page flag, about 1 us to move a page."""

    mark: float = 0.15e-6
    read: float = 0.15e-6
    """A frame that was marked."""
    pass_over: float = 0.03e-6
    """A frame of a word that is read but was not marked."""
    flags: float = 0.1e-6
    move: float = 1.5e-6
    call: float = 0.5e-6


@dataclass(frozen=True, slots=True)
class Failures:
    """Shares of the pages (0..1) that refuse to move, by cause; always the same pages, but for
    `busy`, which is drawn anew for each attempt."""

    pinned: float = 0.0
    shared: float = 0.0
    """Mapped by several processes: refused without MoveOption.SHARED."""
    mempolicy: float = 0.0
    """Bound by a memory policy: refused with MoveOption.MEMPOLICY."""
    vma: float = 0.0
    busy: float = 0.0


@dataclass(slots=True)
class Program:
    """A running workload: its pages have the ids first, first + 1, ..."""

    name: str
    cgroup: str
    first: int
    pages: int
    pattern: Pattern
    alive: bool = False
    resident: dict[int, int] = field(default_factory=dict)
    """Pages per node."""


class SimulatedHost:
    """`tierd.host.Host` over arrays. One thread at a time may change it."""

    def __init__(
        self,
        spec: SimulationSpec,
        clock: Clock | None = None,
        *,
        huge: float = 0.25,
        failures: Failures | None = None,
        costs: Costs | None = None,
        cpusets: Mapping[str, frozenset[int]] | None = None,
        absent: Mapping[Feature, str] | None = None,
        kernel_share: float = 0.02,
    ) -> None:
        """huge: share of the programs' 2 MiB blocks that are one huge page.
        cpusets: allowed nodes by cgroup path; below it they are inherited.
        absent: features to be reported missing, with the reason.
        kernel_share: share of each node with CPUs that the kernel keeps.
        Raises ValueError when the programs do not fit.
        """
        self._clock: Clock = clock if clock is not None else RealClock()
        self._measured = not isinstance(self._clock, VirtualClock)
        self._rng = np.random.default_rng(spec.seed)
        self._failures = failures or Failures()
        self._costs = costs or Costs()
        self._absent = dict(absent or {})
        self._cpusets = dict(cpusets or {})
        self._lock = threading.RLock()
        self._system = 0.0
        self._inside = 0.0
        self._psi: float | None = 0.0
        self._foreign: tuple[ForeignTierer, ...] = ()
        self._nodes = _nodes(spec.nodes)
        self.frames = FrameStore([span for node in self._nodes for span in node.spans])
        self._idle = np.zeros(self.frames.blocks * _BLOCK_WORDS, np.uint64)
        self._marked = np.zeros(self.frames.blocks * _BLOCK_WORDS, np.float64)
        for node in self._nodes:
            share = kernel_share if node.cpus else 0.0
            mine = self.frames.of_node(node.id)
            self.frames.reserve(mine[: int(len(mine) * share)])
        self.programs = list(_programs(spec))
        self._firsts = np.array([program.first for program in self.programs], np.int64)
        self._huge = huge
        self._cgroup_list = self._make_cgroups()
        for index in range(len(self.programs)):
            self.start(index)

    # -- what this is ----------------------------------------------------------------------

    @property
    def page_size(self) -> int:
        """Bytes in one frame: always 4096."""
        return PAGE

    @property
    def name(self) -> str:
        """Always the same."""
        return "simulated"

    def capabilities(self) -> tuple[Capability, ...]:
        """What this host has, less what it was told to lack."""
        missing = {
            Feature.DAMON: "the simulated host has no DAMON",
            Feature.PERF: "the simulated host has no memory access sampling",
            Feature.DEVICE: "the simulated host has no device with a hotness unit",
            Feature.MOVE_PAGES: "the simulated host has no virtual addresses",
        } | self._absent
        return tuple(
            Capability(name, name not in missing, missing.get(name, "the simulated host has it"))
            for name in Feature
        )

    def nodes(self) -> tuple[Node, ...]:
        """All nodes, by id."""
        return self._nodes

    def node_memory(self) -> tuple[NodeMemory, ...]:
        """Room on each node."""
        with self._lock:
            return tuple(
                NodeMemory(
                    node.id,
                    self._total(node) * PAGE,
                    self.frames.free_frames(node.id) * PAGE,
                    self._reserve(node) * PAGE,
                )
                for node in self._nodes
            )

    @staticmethod
    def _total(node: Node) -> int:
        return sum(span.frames for span in node.spans)

    def _reserve(self, node: Node) -> int:
        """The node's high watermark: 0.3 % of its frames, about what Linux keeps."""
        return self._total(node) * 3 // 1000

    def cgroups(self) -> tuple[Cgroup, ...]:
        """The cgroups of all programs, and those above them."""
        return self._cgroup_list

    def _make_cgroups(self) -> tuple[Cgroup, ...]:
        paths = {""}
        for path in [program.cgroup for program in self.programs] + list(self._cpusets):
            parts = path.split("/") if path else []
            paths.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        everywhere = frozenset(node.id for node in self._nodes)
        mems: dict[str, frozenset[int]] = {}
        for path in sorted(paths):
            parent = mems.get(path.rpartition("/")[0], everywhere)
            mems[path] = self._cpusets.get(path, parent)
        return tuple(
            Cgroup(inode, path, mems[path]) for inode, path in enumerate(sorted(paths), start=1)
        )

    def set_cpuset(self, path: str, mems: frozenset[int]) -> None:
        """Change a cgroup's cpuset while the machine runs. Not part of the Protocol."""
        self._cpusets[path] = mems
        self._cgroup_list = self._make_cgroups()

    def cgroup_memory(self, path: str) -> Mapping[int, int]:
        """Bytes per node of the programs in and below a cgroup."""
        total: dict[int, int] = {}
        for program in self.programs:
            if not path or program.cgroup == path or program.cgroup.startswith(path + "/"):
                for node, pages in program.resident.items():
                    total[node] = total.get(node, 0) + pages * PAGE
        return total

    def pressure(self) -> float | None:
        """What `set_pressure` said, 0 at first."""
        return self._psi

    def set_pressure(self, ratio: float | None) -> None:
        """Make memory PSI say so. Not part of the Protocol."""
        self._psi = ratio

    def foreign_tierers(self) -> tuple[ForeignTierer, ...]:
        """What `set_foreign_tierers` said, none at first."""
        return self._foreign

    def set_foreign_tierers(self, foreign: Sequence[ForeignTierer]) -> None:
        """Put somebody else on the machine. Not part of the Protocol."""
        self._foreign = tuple(foreign)

    # -- time --------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """Seconds of the simulated clock."""
        return self._clock.now()

    def sleep(self, seconds: float) -> None:
        """Let the simulated clock pass."""
        self._clock.sleep(seconds)

    def interrupt(self) -> None:
        """End every sleep, now and from now on; a virtual clock never waits anyway."""
        if isinstance(self._clock, RealClock):
            self._clock.woken.set()

    def cpu_times(self) -> CpuTimes:
        """Modelled kernel time, and this process's own less what the simulator burnt. On a
        virtual clock the latter is 0, so that runs repeat exactly."""
        user = max(time.process_time() - self._inside, 0.0) if self._measured else 0.0
        return CpuTimes(user, self._system)

    @contextmanager
    def _kernel(self) -> Iterator[None]:
        """Work of the simulator: exclusive, and not counted as tierd's."""
        began = time.thread_time()
        with self._lock:
            yield
        self._inside += time.thread_time() - began

    def _charge(self, seconds: float) -> None:
        self._system += seconds
        self._clock.work(seconds)

    # -- frames ----------------------------------------------------------------------------

    def flags(self, pfn: Pfns) -> NDArray[np.uint64]:
        """KPF_* bits per frame."""
        with self._kernel():
            self._charge(self._costs.call + self._costs.flags * len(pfn))
            return self._flags(pfn)

    def flags_run(self, start: int, out: NDArray[np.uint64]) -> None:
        """KPF_* bits of consecutive frames."""
        out[:] = self.flags(np.arange(start, start + len(out), dtype=np.uint64))

    def _flags(self, pfn: Pfns) -> NDArray[np.uint64]:
        ids = self.frames.ids(pfn)
        flags = np.full(len(pfn), _USER, np.uint64)
        flags[ids == FREE] = KPF.BUDDY
        flags[ids == KERNEL] = KPF.SLAB
        flags[ids == HOLE] = KPF.NOPAGE
        huge = (ids >= 0) & self.frames.huge[self.frames.locate(pfn)]
        head = pfn % np.uint64(BLOCK) == 0
        flags[huge & head] |= KPF.COMPOUND_HEAD | KPF.THP
        flags[huge & ~head] |= KPF.COMPOUND_TAIL | KPF.THP
        return flags

    def cgroup_inodes(self, pfn: Pfns) -> NDArray[np.uint64]:
        """Inode of each frame's cgroup."""
        with self._kernel():
            self._charge(self._costs.call + self._costs.flags * len(pfn))
            by_path = {cgroup.path: cgroup.inode for cgroup in self._cgroup_list}
            inodes = [by_path[program.cgroup] for program in self.programs]
            ids = self.frames.ids(pfn)
            return np.where(ids >= 0, np.array([*inodes, 0], np.uint64)[self._owner(ids)], 0)

    def map_counts(self, pfn: Pfns) -> NDArray[np.uint64]:
        """1 for every frame of a program."""
        with self._kernel():
            return (self.frames.ids(pfn) >= 0).astype(np.uint64)

    def _owner(self, ids: Ids) -> NDArray[np.int64]:
        """int64[n]: index of the program of each page, -1 for what is no page."""
        return np.where(ids >= 0, np.searchsorted(self._firsts, ids, side="right") - 1, -1)

    # -- idle bits ---------------------------------------------------------------------------

    def set_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """Mark heads of user pages idle."""
        with self._kernel():
            index, part = self._words(start, words)
            asked = words[part]
            open_ = asked & self._trackable(index)
            stale = np.flatnonzero((asked != 0) & ((self._idle[index] & ~open_) != 0))
            if len(stale):
                self._settle(index[stale])
            self._idle[index] |= open_
            self._marked[index[asked != 0]] = self._clock.now()
            marked = _bits(open_)
            self._charge(self._costs.call + self._costs.mark * marked)

    def read_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """Read idle bits; drawing whether each marked frame was accessed since."""
        with self._kernel():
            index, part = self._words(start, words)
            marked = _bits(self._idle[index])
            self._settle(index)
            words[:] = 0
            words[part] = self._idle[index]
            rest = len(index) * IDLE_WORD_FRAMES - marked
            self._charge(
                self._costs.call + self._costs.read * marked + self._costs.pass_over * rest
            )

    def _words(
        self, start: int, words: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the words are memory: their indexes here, and their places in `words`."""
        if start % IDLE_WORD_FRAMES:
            raise KernelError(errno.EINVAL, "not the first frame of a word", "page_idle")
        first = np.uint64(start) + np.arange(len(words), dtype=np.uint64) * np.uint64(64)
        block = self.frames.locate(first)
        part = np.flatnonzero(block >= 0)
        within = (first[part] // np.uint64(IDLE_WORD_FRAMES)).astype(np.int64) % _BLOCK_WORDS
        return block[part] * _BLOCK_WORDS + within, part

    def _trackable(self, index: NDArray[np.int64]) -> NDArray[np.uint64]:
        """uint64[n]: bits of frames that are heads of user pages, for each word."""
        blocks, back = np.unique(index // _BLOCK_WORDS, return_inverse=True)
        user = self.frames.rows(blocks) >= 0
        user[self.frames.huge[blocks], 1:] = False
        packed = np.packbits(user, axis=1, bitorder="little").view(np.uint64)
        return packed[back.reshape(-1), index % _BLOCK_WORDS]

    def _settle(self, index: NDArray[np.int64]) -> None:
        """Draw for every idle bit of some words whether its page was accessed since it was
        marked, clear those that were, and let the others' wait begin anew."""
        now = self._clock.now()
        live = index[self._idle[index] != 0]
        for part in range(0, len(live), 2048):
            words = live[part : part + 2048]
            bits = np.unpackbits(
                self._idle[words].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
            )
            row, bit = np.nonzero(bits)
            blocks = words[row] // _BLOCK_WORDS
            offset = words[row] % _BLOCK_WORDS * IDLE_WORD_FRAMES + bit
            expected = self._expected(blocks, offset, self._marked[words][row], now)
            idle = self._rng.random(len(row), np.float32) < np.exp(-expected)
            bits[row, bit] = idle
            self._idle[words] = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)[:, 0]
            self._marked[words] = now

    def _expected(
        self, blocks: Blocks, offset: NDArray[np.int64], since: Times, now: float
    ) -> Counts:
        """Accesses that the folio headed by each frame had to expect between `since` and now."""
        frames = (self.frames.start_of(blocks) + offset).astype(np.uint64)
        ids = self.frames.ids(frames)
        total = self._accesses(ids, since, now)
        for entry in np.flatnonzero(self.frames.huge[blocks] & (ids >= 0)).tolist():
            pages = np.arange(ids[entry], ids[entry] + BLOCK)
            total[entry] = self._accesses(pages, np.full(BLOCK, since[entry]), now).sum()
        return total

    def _accesses(self, ids: Ids, since: Times | None, now: float) -> Counts:
        """Expected accesses of each page since then, or its rate when `since` is None."""
        total = np.zeros(len(ids))
        owner = self._owner(ids)
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

    def move_phys_pages(
        self,
        pfn: Pfns,
        target: NDArray[np.int32],
        source: NDArray[np.int32],
        options: MoveOption,
    ) -> PhysMove:
        """Move folios as the call of the patched kernel does, one status per entry."""
        if Feature.MOVE_PHYS_PAGES in self._absent:
            raise KernelError(errno.ENOSYS, self._absent[Feature.MOVE_PHYS_PAGES], "simulated")
        with self._kernel():
            blocks = self.frames.locate(pfn)
            huge = (blocks >= 0) & self.frames.huge[blocks]
            heads = np.where(huge, pfn - pfn % np.uint64(BLOCK), pfn)
            unique, first, back = np.unique(heads, return_index=True, return_inverse=True)
            status = self._judge(unique, target[first], source[first], options)
            new = np.full(len(unique), NO_PFN, np.uint64)
            self._move_base(unique, target[first], status, new, huge[first])
            self._move_huge(unique, target[first], status, new, huge[first])
            pages = np.where(huge[first], BLOCK, 1)[new != NO_PFN].sum()
            self._charge(self._costs.call + self._costs.move * (int(pages) + 0.1 * len(pfn)))
            status, new = status[back.reshape(-1)], new[back.reshape(-1)]
        new[(heads != pfn) & (new != NO_PFN)] += (pfn - heads)[(heads != pfn) & (new != NO_PFN)]
        return PhysMove(status, new, len(pfn))

    def _judge(
        self,
        heads: Pfns,
        target: NDArray[np.int32],
        source: NDArray[np.int32],
        options: MoveOption,
    ) -> NDArray[np.int32]:
        """Status of each folio that will not move; int32 min for those that may."""
        ids = self.frames.ids(heads)
        node = np.where(ids == HOLE, -1, self.frames.node[self.frames.locate(heads)])
        known = np.isin(target, [entry.id for entry in self._nodes])
        allowed = self._allowed(ids, target)
        # Each line overrules the ones above it; the order is that of the kernel's own checks.
        status = np.full(len(heads), np.iinfo(np.int32).min, np.int32)
        for code, refused in self._refusals(ids, options):
            status[refused] = -code
        status[~allowed] = -errno.EACCES
        status = np.where(node == target, node, status).astype(np.int32)
        status[(node != source) & (ids >= 0)] = -errno.EAGAIN
        status[ids == HOLE] = -errno.ENXIO
        status[(ids == FREE) | (ids == KERNEL)] = -errno.ENOENT
        status[~known] = -errno.ENODEV
        return status

    def _refusals(self, ids: Ids, options: MoveOption) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """errno and the pages that refuse for it: a fixed part of all pages for each cause."""
        fails = self._failures
        yield errno.EBUSY, self._rng.random(len(ids)) < fails.busy
        draw = (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) / 2.0**64
        causes = [(errno.EBUSY, fails.pinned), (errno.EFAULT, fails.vma)]
        if MoveOption.SHARED not in options:
            causes.append((errno.EPERM, fails.shared))
        if MoveOption.MEMPOLICY in options:
            causes.append((errno.EXDEV, fails.mempolicy))
        low = 0.0
        for code, share in causes:
            yield code, (draw >= low) & (draw < low + share)
            low += share

    def _allowed(self, ids: Ids, target: NDArray[np.int32]) -> NDArray[np.bool_]:
        mems = {cgroup.path: cgroup.mems for cgroup in self._cgroup_list}
        owner = self._owner(ids)
        allowed = np.ones(len(ids), np.bool_)
        for index in np.unique(owner[owner >= 0]).tolist():
            mine = owner == index
            allowed[mine] = np.isin(target[mine], sorted(mems[self.programs[index].cgroup]))
        return allowed

    def _room(self, node: int) -> int:
        """Frames that may be taken on a node: it stays above its high watermark."""
        entry = next(entry for entry in self._nodes if entry.id == node)
        return max(self.frames.free_frames(node) - self._reserve(entry), 0)

    def _move_base(
        self,
        heads: Pfns,
        target: NDArray[np.int32],
        status: NDArray[np.int32],
        new: Pfns,
        huge: NDArray[np.bool_],
    ) -> None:
        ready = (status == np.iinfo(np.int32).min) & ~huge
        for node in np.unique(target[ready]).tolist():
            mine = np.flatnonzero(ready & (target == node))
            free = self.frames.find_free(node, min(len(mine), self._room(node)))
            status[mine] = -errno.ENOMEM
            mine = mine[: len(free)]
            ids = self.frames.ids(heads[mine])
            self._account(ids, heads[mine], node)
            self.frames.put(heads[mine], np.full(len(mine), FREE, np.int64))
            self.frames.put(free, ids)
            self._forget(heads[mine])
            self._forget(free)
            status[mine] = node
            new[mine] = free

    def _move_huge(
        self,
        heads: Pfns,
        target: NDArray[np.int32],
        status: NDArray[np.int32],
        new: Pfns,
        huge: NDArray[np.bool_],
    ) -> None:
        for entry in np.flatnonzero((status == np.iinfo(np.int32).min) & huge).tolist():
            node = int(target[entry])
            free = self.frames.free_blocks(node, 1)
            if not len(free) or self._room(node) < BLOCK:
                status[entry] = -errno.ENOMEM
                continue
            head = heads[entry : entry + 1]
            ids = self.frames.ids(head)
            self._account(ids, head, node, BLOCK)
            old = self.frames.locate(head)
            self.frames.clear(old)
            self.frames.fill(free, int(ids[0]), np.ones(1, np.bool_))
            self._forget_blocks(old)
            self._forget_blocks(free)
            status[entry] = node
            new[entry] = self.frames.start_of(free)[0]

    def _account(self, ids: Ids, heads: Pfns, node: int, pages: int = 1) -> None:
        """Pages per node of each program, as they leave for `node`."""
        left = self.frames.node[self.frames.locate(heads)]
        owner = self._owner(ids)
        for index in np.unique(owner).tolist():
            resident = self.programs[index].resident
            for source in np.unique(left[owner == index]).tolist():
                count = int(np.count_nonzero((owner == index) & (left == source))) * pages
                resident[source] = resident.get(source, 0) - count
                resident[node] = resident.get(node, 0) + count

    def _forget(self, pfn: Pfns) -> None:
        """Idle bits do not move with a page here, and a free frame has none."""
        word = self.frames.locate(pfn) * _BLOCK_WORDS + (
            pfn.astype(np.int64) // IDLE_WORD_FRAMES % _BLOCK_WORDS
        )
        bit = np.left_shift(np.uint64(1), pfn % np.uint64(IDLE_WORD_FRAMES))
        np.bitwise_and.at(self._idle, word, ~bit)

    def _forget_blocks(self, blocks: Blocks) -> None:
        self._idle.reshape(-1, _BLOCK_WORDS)[blocks] = 0

    # -- outside the Protocol: what a test or the demonstration does to the machine ------------

    def start(self, index: int) -> None:
        """Let a program allocate all its memory: the fastest node first, down to its watermark.

        Raises ValueError when it does not fit.
        """
        program = self.programs[index]
        with self._kernel():
            left = program.pages // BLOCK
            first = program.first
            for node in sorted(self._nodes, key=lambda node: (node.read_latency or 0.0, node.id)):
                want = min(left, self._room(node.id) // BLOCK)
                blocks = self.frames.free_blocks(node.id, want)
                huge = self._rng.random(len(blocks)) < self._huge
                self.frames.fill(blocks, first, huge)
                self._forget_blocks(blocks)
                program.resident[node.id] = len(blocks) * BLOCK
                first += len(blocks) * BLOCK
                left -= len(blocks)
            if left:
                raise ValueError(f"program {program.name} does not fit into memory")
            program.alive = True

    def exit(self, index: int) -> None:
        """Let a program end: its frames become free, whatever was known of them is stale."""
        program = self.programs[index]
        with self._kernel():
            for part in range(0, self.frames.blocks, 4096):
                blocks = np.arange(part, min(part + 4096, self.frames.blocks))
                ids = self.frames.rows(blocks)
                mine = (ids >= program.first) & (ids < program.first + program.pages)
                whole: NDArray[np.bool_] = np.all(mine, axis=1)
                self.frames.clear(blocks[whole])
                self._forget_blocks(blocks[whole])
                block, offset = np.nonzero(mine & ~whole[:, None])
                frames = (self.frames.start_of(blocks)[block] + offset).astype(np.uint64)
                if len(frames):
                    self.frames.put(frames, np.full(len(frames), FREE, np.int64))
                    self._forget(frames)
            program.resident = {}
            program.alive = False

    def rates(self, pfn: Pfns) -> Counts:
        """float64[n]: true accesses per second of the page in each frame, 0 for no page."""
        with self._kernel():
            return self._accesses(self.frames.ids(pfn), None, self._clock.now())

    def access_shares(self) -> Mapping[int, float]:
        """Share of all accesses that each node truly gets now. Costs 20 ns per frame."""
        total = dict.fromkeys((node.id for node in self._nodes), 0.0)
        with self._kernel():
            now = self._clock.now()
            for node in total:
                blocks = self.frames.of_node(node)
                blocks = blocks[self.frames.used[blocks] > 0]
                for part in range(0, len(blocks), 256):
                    ids = self.frames.rows(blocks[part : part + 256]).reshape(-1)
                    total[node] += float(self._accesses(ids, None, now).sum())
        everything = sum(total.values()) or 1.0
        return {node: value / everything for node, value in total.items()}

    def access_latency(self) -> float:
        """Mean seconds per access with the pages where they are now."""
        shares = self.access_shares()
        return sum(shares[node.id] * (node.read_latency or 0.0) for node in self._nodes)


def _bits(words: NDArray[np.uint64]) -> int:
    """How many bits are set. (numpy.bitwise_count needs numpy 2.)"""
    return int(np.unpackbits(words.view(np.uint8)).sum(dtype=np.int64))


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
        accesses = pattern(entry, pages, PAGE, spec.seed + index)
        yield Program(f"{entry.kind}-{index}", entry.cgroup, first, pages, accesses)
        first += pages
