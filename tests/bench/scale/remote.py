# SPDX-License-Identifier: Apache-2.0
"""`RemoteHost`: the daemon's side of a simulated machine in another process."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.scale.wire import Wire
from tierd.host import (
    Capability,
    Cgroup,
    CpuTimes,
    ForeignTierer,
    KernelError,
    MoveOption,
    Node,
    NodeMemory,
    Pfns,
    PhysMove,
)


class RemoteHost:
    """`tierd.host.Host` at the other end of a connection.

    CPU time is this process's own as the kernel counts it, without what carrying requests there
    and back took (a real kernel is asked by a system call, whose price is in the model), and
    with the modelled kernel time of the machine. The clock is virtual: it moves when somebody
    sleeps, and by all of that CPU time. So a cycle takes as long as on a host whose cores are
    its own.
    """

    page_size = 4096
    name = "simulated, in another process"

    def __init__(self, connection: Wire) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        self._carried = 0.0
        self._system = 0.0
        self._clock = 0.0
        self._told = 0.0
        self._told = self._own()

    def _own(self) -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime - self._carried

    def ask(self, name: str, *arguments: Any, out: NDArray[np.uint64] | None = None) -> Any:
        """Call a method of the machine; `out` is filled."""
        with self._lock:
            own = self._own()
            worked, self._told = max(own - self._told, 0.0), max(own, self._told)
            began = time.thread_time()
            self._connection.send((worked, name, arguments, out))
            self._clock, self._system, failed, result, filled = self._connection.receive()
            if filled is not None and out is not None:
                out[:] = filled
            self._carried += time.thread_time() - began
        if failed:
            raise KernelError(*result)
        return result

    # -- the Protocol ------------------------------------------------------------------------

    def capabilities(self) -> tuple[Capability, ...]:
        found: tuple[Capability, ...] = self.ask("capabilities")
        return found

    def nodes(self) -> tuple[Node, ...]:
        nodes: tuple[Node, ...] = self.ask("nodes")
        return nodes

    def node_memory(self) -> tuple[NodeMemory, ...]:
        memory: tuple[NodeMemory, ...] = self.ask("node_memory")
        return memory

    def cgroups(self) -> tuple[Cgroup, ...]:
        cgroups: tuple[Cgroup, ...] = self.ask("cgroups")
        return cgroups

    def cgroup_memory(self, path: str) -> Mapping[int, int]:
        memory: Mapping[int, int] = self.ask("cgroup_memory", path)
        return memory

    def flags(self, pfn: Pfns) -> NDArray[np.uint64]:
        flags: NDArray[np.uint64] = self.ask("flags", pfn)
        return flags

    def flags_run(self, start: int, out: NDArray[np.uint64]) -> None:
        self.ask("flags_run", start, out=out)

    def cgroup_inodes(self, pfn: Pfns) -> NDArray[np.uint64]:
        inodes: NDArray[np.uint64] = self.ask("cgroup_inodes", pfn)
        return inodes

    def map_counts(self, pfn: Pfns) -> NDArray[np.uint64]:
        counts: NDArray[np.uint64] = self.ask("map_counts", pfn)
        return counts

    def set_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        self.ask("set_idle", start, words)

    def read_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        self.ask("read_idle", start, out=words)

    def set_idle_words(self, first: Pfns, masks: NDArray[np.uint64]) -> None:
        self.ask("set_idle_words", first, masks)

    def read_idle_words(self, first: Pfns, words: NDArray[np.uint64]) -> None:
        self.ask("read_idle_words", first, out=words)

    def move_phys_pages(
        self,
        pfn: Pfns,
        target: NDArray[np.int32],
        source: NDArray[np.int32],
        options: MoveOption,
    ) -> PhysMove:
        moved: PhysMove = self.ask("move_phys_pages", pfn, target, source, options)
        return moved

    def pressure(self, cgroup: str = "") -> Mapping[str, float]:
        pressure: Mapping[str, float] = self.ask("pressure", cgroup)
        return pressure

    def foreign_tierers(self) -> tuple[ForeignTierer, ...]:
        foreign: tuple[ForeignTierer, ...] = self.ask("foreign_tierers")
        return foreign

    def monotonic(self) -> float:
        with self._lock:
            return self._clock + max(self._own() - self._told, 0.0)

    def sleep(self, seconds: float) -> None:
        self.ask("sleep", seconds)

    def interrupt(self) -> None:
        """Nothing sleeps for real."""

    def cpu_times(self) -> CpuTimes:
        with self._lock:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            own = usage.ru_utime + usage.ru_stime - self._carried
            return CpuTimes(own, self._system)
