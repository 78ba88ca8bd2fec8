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
import heapq
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tierd.host import (
    PRESSURES,
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
)
from tierd.host.kpage import GAP
from tierd.host.machine import PAGE, Failures, Machine, Program, SimulationSpec
from tierd.host.workload import Counts


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


class SimulatedHost:
    """`tierd.host.Host` over arrays. One thread at a time may change it."""

    def __init__(
        self,
        spec: SimulationSpec,
        clock: Clock | None = None,
        *,
        failures: Failures | None = None,
        costs: Costs | None = None,
        cpusets: Mapping[str, frozenset[int]] | None = None,
        absent: Mapping[Feature, str] | None = None,
        kernel_share: float = 0.02,
    ) -> None:
        """cpusets: allowed nodes by cgroup path; below it they are inherited.
        absent: features to be reported missing, with the reason.
        kernel_share: share of each node with CPUs that the kernel keeps.
        Raises ValueError when the programs do not fit.
        """
        self._clock: Clock = clock if clock is not None else RealClock()
        self._measured = not isinstance(self._clock, VirtualClock)
        self._costs = costs or Costs()
        self._absent = dict(absent or {})
        self._cpusets = dict(cpusets or {})
        self._lock = threading.RLock()
        self._system = 0.0
        self._inside = 0.0
        self._psi: dict[str, Mapping[str, float]] = {"": dict.fromkeys(PRESSURES, 0.0)}
        self._foreign: tuple[ForeignTierer, ...] = ()
        self.machine = Machine(spec, failures or Failures(), kernel_share)
        self._cgroup_list = self._make_cgroups()
        # Programs of one workload do not end all at once.
        mortal = [i for i, each in enumerate(self.programs) if each.lifetime is not None]
        self._ends = [
            ((self.programs[index].lifetime or 0.0) * (1 + turn / len(mortal)), index)
            for turn, index in enumerate(mortal)
        ]
        heapq.heapify(self._ends)

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
        return self.machine.nodes

    @property
    def programs(self) -> tuple[Program, ...]:
        """What runs on the machine. Not part of the Protocol."""
        return self.machine.programs

    def node_memory(self) -> tuple[NodeMemory, ...]:
        """Room on each node."""
        with self._lock:
            return tuple(
                NodeMemory(
                    node.id,
                    self.machine.total(node) * PAGE,
                    self.machine.frames.free_frames(node.id) * PAGE,
                    self.machine.reserve(node) * PAGE,
                )
                for node in self.machine.nodes
            )

    def cgroups(self) -> tuple[Cgroup, ...]:
        """The cgroups of all programs, and those above them."""
        return self._cgroup_list

    def _make_cgroups(self) -> tuple[Cgroup, ...]:
        paths = {""}
        for path in [program.cgroup for program in self.programs] + list(self._cpusets):
            parts = path.split("/") if path else []
            paths.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        everywhere = frozenset(node.id for node in self.machine.nodes)
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

    def pressure(self, cgroup: str = "") -> Mapping[str, float]:
        """What `set_pressure` said, 0 for the host at first."""
        return self._psi.get(cgroup, {})

    def set_pressure(self, cgroup: str = "", **ratios: float) -> None:
        """Make PSI say so, by resource; nothing else is told then. Not part of the Protocol."""
        self._psi[cgroup] = ratios

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
            self._let_end()
            yield
        self._inside += time.thread_time() - began

    def _let_end(self) -> None:
        """Let programs whose life is over be replaced."""
        now = self._clock.now()
        while self._ends and self._ends[0][0] <= now:
            when, index = heapq.heappop(self._ends)
            self.machine.replace(index)
            lifetime = self.programs[index].lifetime or math.inf
            heapq.heappush(self._ends, (max(when, now - lifetime) + lifetime, index))

    def _charge(self, seconds: float) -> None:
        self._system += seconds
        self._clock.work(seconds)

    # -- frames ----------------------------------------------------------------------------

    def flags(self, pfn: Pfns) -> NDArray[np.uint64]:
        """KPF_* bits per frame."""
        with self._kernel():
            calls = 1 + int(np.count_nonzero(np.diff(pfn) > GAP))
            self._charge(self._costs.call * calls + self._costs.flags * len(pfn))
            return self.machine.flags(pfn)

    def flags_run(self, start: int, out: NDArray[np.uint64]) -> None:
        """KPF_* bits of consecutive frames."""
        with self._kernel():
            self._charge(self._costs.call + self._costs.flags * len(out))
            self.machine.flags_run(start, out)

    def cgroup_inodes(self, pfn: Pfns) -> NDArray[np.uint64]:
        """Inode of each frame's cgroup."""
        with self._kernel():
            self._charge(self._costs.call + self._costs.flags * len(pfn))
            by_path = {cgroup.path: cgroup.inode for cgroup in self._cgroup_list}
            inodes = [by_path[program.cgroup] for program in self.programs]
            owner = self.machine.owner(self.machine.frames.ids(pfn))
            return np.array([*inodes, 0], np.uint64)[owner]  # -1, no program, is the last

    def map_counts(self, pfn: Pfns) -> NDArray[np.uint64]:
        """1 for every frame of a program."""
        with self._kernel():
            return (self.machine.frames.ids(pfn) >= 0).astype(np.uint64)

    def set_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """Mark heads of user pages idle."""
        with self._kernel():
            marked = self.machine.idle.mark(start, words, self._clock.now())
            self._charge(self._costs.call + self._costs.mark * marked)

    def read_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """Read idle bits; drawing whether each marked frame was accessed since."""
        with self._kernel():
            marked, rest = self.machine.idle.read(start, words, self._clock.now())
            cost = self._costs.read * marked + self._costs.pass_over * rest
            self._charge(self._costs.call + cost)

    def set_idle_words(self, first: Pfns, masks: NDArray[np.uint64]) -> None:
        """Mark heads of user pages idle in single words; a call for each, as on Linux."""
        with self._kernel():
            marked = self.machine.idle.mark_words(first, masks, self._clock.now())
            self._charge(self._costs.call * len(first) + self._costs.mark * marked)

    def read_idle_words(self, first: Pfns, words: NDArray[np.uint64]) -> None:
        """Read single words of idle bits; a call for each, as on Linux."""
        with self._kernel():
            marked, rest = self.machine.idle.read_words(first, words, self._clock.now())
            cost = self._costs.read * marked + self._costs.pass_over * rest
            self._charge(self._costs.call * len(first) + cost)

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
        by_path = {cgroup.path: cgroup.mems for cgroup in self._cgroup_list}
        mems = [by_path[program.cgroup] for program in self.programs]
        with self._kernel():
            status, new, pages = self.machine.move(pfn, target, source, options, mems)
            self._charge(self._costs.call + self._costs.move * (pages + 0.1 * len(pfn)))
        return PhysMove(status, new, len(pfn))

    # -- outside the Protocol: what a test or the demonstration does to the machine ------------

    def start(self, index: int) -> None:
        """Let a program that has ended allocate its memory again. Raises ValueError when it does
        not fit."""
        with self._kernel():
            self.machine.start(index)

    def exit(self, index: int) -> None:
        """Let a program end: its frames become free, whatever was known of them is stale."""
        with self._kernel():
            self.machine.exit(index)

    def rates(self, pfn: Pfns) -> Counts:
        """float64[n]: true accesses per second of the page in each frame, 0 for no page."""
        with self._kernel():
            return self.machine.rates(pfn, self._clock.now())

    def access_shares(self) -> Mapping[int, float]:
        """Share of all accesses that each node truly gets now: the fastest node's is the hit
        ratio. Costs 20 ns or more per frame."""
        with self._kernel():
            return self.machine.access_shares(self._clock.now())

    def access_latency(self) -> float:
        """Mean seconds per access with the pages where they are now."""
        shares = self.access_shares()
        return sum(shares[node.id] * (node.read_latency or 0.0) for node in self.nodes())
