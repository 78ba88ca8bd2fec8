# SPDX-License-Identifier: Apache-2.0
"""A host of any size that costs nothing to ask: what is left to measure is tierd's own."""

from __future__ import annotations

import resource
from collections.abc import Mapping

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
    MoveOption,
    Node,
    NodeMemory,
    Pfns,
    PhysMove,
    Span,
)

PAGE = 4096
GIB_FRAMES = 2**30 // PAGE


class StillHost:
    """A quarter of the memory is fast. Every frame is a mapped page on the LRU, and one in
    `one_in` words of the bitmap has all of its frames accessed, always the same ones.

    The clock is virtual: it moves when tierd sleeps, and by `tick`.
    """

    page_size = PAGE
    name = "still"

    def __init__(self, frames: int, one_in: int = 16) -> None:
        fast = frames // 4
        cpus = frozenset({0, 1})
        self._nodes = (
            Node(0, cpus, (Span(0, 0, fast),), {0: 10, 1: 20}, 4, 1e-7),
            Node(1, frozenset(), (Span(1, fast, frames),), {0: 20, 1: 10}, 22, 3e-7),
        )
        self._pattern = np.full(512, np.uint64(2**64 - 1))
        self._pattern[::one_in] = 0
        self._now = 0.0

    def tick(self, seconds: float) -> None:
        self._now += seconds

    def capabilities(self) -> tuple[Capability, ...]:
        return tuple(Capability(name, True, "a host for measuring") for name in Feature)

    def nodes(self) -> tuple[Node, ...]:
        return self._nodes

    def node_memory(self) -> tuple[NodeMemory, ...]:
        return tuple(
            NodeMemory(node.id, total, total // 10, total // 1000)
            for node in self._nodes
            for total in [sum(span.frames for span in node.spans) * PAGE]
        )

    def cgroups(self) -> tuple[Cgroup, ...]:
        return (Cgroup(1, "", frozenset({0, 1})),)

    def cgroup_memory(self, path: str) -> Mapping[int, int]:
        return {}

    def flags(self, pfn: Pfns) -> NDArray[np.uint64]:
        return np.full(len(pfn), KPF.LRU | KPF.ANON | KPF.MMAP, np.uint64)

    def flags_run(self, start: int, out: NDArray[np.uint64]) -> None:
        out[:] = KPF.LRU | KPF.ANON | KPF.MMAP

    def cgroup_inodes(self, pfn: Pfns) -> NDArray[np.uint64]:
        return np.ones(len(pfn), np.uint64)

    def map_counts(self, pfn: Pfns) -> NDArray[np.uint64]:
        return np.ones(len(pfn), np.uint64)

    def set_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """Marking is the kernel's work."""

    def read_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        words[:] = self._pattern[: len(words)]

    def set_idle_words(self, first: Pfns, masks: NDArray[np.uint64]) -> None:
        """Marking is the kernel's work."""

    def read_idle_words(self, first: Pfns, words: NDArray[np.uint64]) -> None:
        words[:] = self._pattern[(first // np.uint64(64)).astype(np.intp) % len(self._pattern)]

    def move_phys_pages(
        self,
        pfn: Pfns,
        target: NDArray[np.int32],
        source: NDArray[np.int32],
        options: MoveOption,
    ) -> PhysMove:
        return PhysMove(target.copy(), np.full(len(pfn), NO_PFN), len(pfn))

    def pressure(self, cgroup: str = "") -> Mapping[str, float]:
        return {}

    def foreign_tierers(self) -> tuple[ForeignTierer, ...]:
        return ()

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds

    def interrupt(self) -> None:
        """Nothing sleeps for real."""

    def cpu_times(self) -> CpuTimes:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return CpuTimes(usage.ru_utime, usage.ru_stime)


class HugeHost(StillHost):
    """All memory is huge pages, of which one in `one_in` is accessed."""

    def flags(self, pfn: Pfns) -> NDArray[np.uint64]:
        huge = np.uint64(KPF.LRU | KPF.ANON | KPF.MMAP | KPF.THP)
        part = np.where(pfn % 512 == 0, KPF.COMPOUND_HEAD, KPF.COMPOUND_TAIL).astype(np.uint64)
        return huge | part

    def flags_run(self, start: int, out: NDArray[np.uint64]) -> None:
        out[:] = self.flags(np.arange(start, start + len(out), dtype=np.uint64))

    def read_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        first = np.arange(start, start + 64 * len(words), 64, dtype=np.uint64)
        self.read_idle_words(first, words)

    def read_idle_words(self, first: Pfns, words: NDArray[np.uint64]) -> None:
        """A tail reads 0, and so does what was accessed."""
        block = (first // np.uint64(512)).astype(np.intp)
        words[:] = self._pattern[block % len(self._pattern)] & np.uint64(1) & (first % 512 == 0)
