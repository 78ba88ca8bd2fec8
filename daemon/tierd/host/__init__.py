# SPDX-License-Identifier: Apache-2.0
"""The narrow waist: everything that tierd asks of a kernel, as one Protocol.

`tierd.host.linux` answers from a real kernel, `tierd.host.simulated` from a machine in
arrays. Whatever is above this line runs unchanged on either, so it may not know which.

Units: bytes, seconds, ratios 0..1. A page frame number (PFN) is ``np.uint64``; a batch of
them is sorted and unique unless a function says otherwise. One frame is `Host.page_size`
bytes.

Absence of a kernel feature is a `Capability` with a reason. A call that the kernel refuses
although the capability was there raises `KernelError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag, StrEnum
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Pfns = NDArray[np.uint64]
"""Page frame numbers, shape (n,)."""

NO_PFN: Final = np.uint64(2**64 - 1)
"""Stands where a PFN is not known, for instance after a move that reported no new address."""

IDLE_WORD_FRAMES: Final = 64
"""Frames in one word of the idle bitmap (Documentation/admin-guide/mm/idle_page_tracking.rst)."""


PRESSURES: Final = ("memory", "cpu", "io")
"""What a task can wait for, as PSI has it (Documentation/accounting/psi.rst)."""


class KPF:
    """Bits of a kpageflags entry (include/uapi/linux/kernel-page-flags.h, and for RESERVED and
    MLOCKED include/linux/kernel-page-flags.h), as masks."""

    LOCKED: Final = np.uint64(1 << 0)
    REFERENCED: Final = np.uint64(1 << 2)
    UPTODATE: Final = np.uint64(1 << 3)
    DIRTY: Final = np.uint64(1 << 4)
    LRU: Final = np.uint64(1 << 5)
    ACTIVE: Final = np.uint64(1 << 6)
    SLAB: Final = np.uint64(1 << 7)
    WRITEBACK: Final = np.uint64(1 << 8)
    BUDDY: Final = np.uint64(1 << 10)
    MMAP: Final = np.uint64(1 << 11)
    ANON: Final = np.uint64(1 << 12)
    SWAPBACKED: Final = np.uint64(1 << 14)
    COMPOUND_HEAD: Final = np.uint64(1 << 15)
    COMPOUND_TAIL: Final = np.uint64(1 << 16)
    HUGE: Final = np.uint64(1 << 17)
    UNEVICTABLE: Final = np.uint64(1 << 18)
    HWPOISON: Final = np.uint64(1 << 19)
    NOPAGE: Final = np.uint64(1 << 20)
    KSM: Final = np.uint64(1 << 21)
    THP: Final = np.uint64(1 << 22)
    OFFLINE: Final = np.uint64(1 << 23)
    ZERO_PAGE: Final = np.uint64(1 << 24)
    IDLE: Final = np.uint64(1 << 25)
    PGTABLE: Final = np.uint64(1 << 26)
    RESERVED: Final = np.uint64(1 << 32)
    MLOCKED: Final = np.uint64(1 << 33)


def free_frames(flags: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool, of any shape: frames that by their flags hold nothing, or are none. A page that is off
    the LRU for a moment is not one of them."""
    free: NDArray[np.bool_] = (flags == 0) | ((flags & (KPF.BUDDY | KPF.NOPAGE)) != 0)
    return free


def frames_from(first: Pfns, count: NDArray[np.integer]) -> Pfns:
    """uint64[sum of count]: the `count` frames from each of `first` on, in that order."""
    count = count.astype(np.int64)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    frames: Pfns = np.repeat(first, count) + within.astype(np.uint64)
    return frames


class KernelError(OSError):
    """A kernel interface that should have answered did not: errno, and which interface."""


class Feature(StrEnum):
    """Names of what `Host.capabilities` reports on, one `Capability` each."""

    PAGE_IDLE = "page_idle"
    DAMON = "damon"
    PERF = "perf"
    DEVICE = "device"
    MOVE_PHYS_PAGES = "move_phys_pages"
    MOVE_PAGES = "move_pages"
    KPAGEFLAGS = "kpageflags"
    KPAGECGROUP = "kpagecgroup"
    KPAGECOUNT = "kpagecount"
    CPUSET = "cpuset"
    PSI = "psi"
    NUMA = "numa"


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether the kernel can do something, and why we say so. `reason` is never empty."""

    name: Feature
    available: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Span:
    """A run of page frames of one node without a hole: start <= pfn < end."""

    node: int
    start: int
    end: int

    @property
    def frames(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node with memory.

    `memory_tier` is the kernel's own number (lower is faster), None where it has none.
    Latency in seconds and bandwidth in bytes per second are what the firmware reports for
    the best initiator (sysfs node*/access0), None where it says nothing.
    """

    id: int
    cpus: frozenset[int]
    spans: tuple[Span, ...]
    distances: Mapping[int, int]
    memory_tier: int | None = None
    read_latency: float | None = None
    read_bandwidth: float | None = None


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """Room on one node, in bytes. `high_watermark` is the sum over the node's zones."""

    node: int
    total: int
    free: int
    high_watermark: int


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup v2 directory. `inode` is what kpagecgroup reports, `path` is relative to the
    root without a leading slash ("" is the root), `mems` is cpuset.mems.effective."""

    inode: int
    path: str
    mems: frozenset[int]


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """CPU seconds of this process since its start (or between two readings)."""

    user: float
    system: float

    def __sub__(self, other: CpuTimes) -> CpuTimes:
        return CpuTimes(self.user - other.user, self.system - other.system)

    @property
    def total(self) -> float:
        return self.user + self.system


@dataclass(frozen=True, slots=True)
class ForeignTierer:
    """Somebody else who moves pages between nodes on this host.

    `name` is the key of config.Conflicts that says what to do about it: numa_balancing,
    demotion, damon or other; `detail` says who and where, in one phrase.
    """

    name: str
    detail: str


class MoveOption(IntFlag):
    """What a caller of `Host.move_phys_pages` may ask for. Bits are ours, not the kernel's:
    the host translates them to the flags that this kernel's handshake names."""

    SHARED = 1
    """Also pages that several processes map (MPOL_MF_MOVE_ALL)."""
    MEMPOLICY = 2
    """Refuse a page whose memory policy forbids the target."""
    NONBLOCK = 4
    """Wait for nothing and reclaim nothing."""
    UNMAPPED = 8
    """Also page cache that nobody maps."""


@dataclass(frozen=True, slots=True)
class PhysMove:
    """What became of one `move_phys_pages` call over n entries.

    status: int32[n]; a node number where the page is now, or a negative errno. Entries from
    `attempted` on were not tried and hold no meaning.
    new_pfn: uint64[n]; the frame that holds the data now, NO_PFN where it did not move or
    the kernel did not say.
    """

    status: NDArray[np.int32]
    new_pfn: Pfns
    attempted: int


class Host(Protocol):
    """Everything tierd asks of a kernel. Methods are thread-safe unless they say otherwise."""

    @property
    def page_size(self) -> int:
        """Bytes in one frame."""

    @property
    def name(self) -> str:
        """What this is, for people: "Linux 6.12.1 x86_64" or "simulated"."""

    def capabilities(self) -> tuple[Capability, ...]:
        """Probe every `Feature`, one entry each, by looking at the thing itself."""

    def nodes(self) -> tuple[Node, ...]:
        """Online nodes that have memory, by id."""

    def node_memory(self) -> tuple[NodeMemory, ...]:
        """Room on each node now, by id."""

    def cgroups(self) -> tuple[Cgroup, ...]:
        """All cgroups now, in no particular order; empty without cgroup v2."""

    def cgroup_memory(self, path: str) -> Mapping[int, int]:
        """Bytes charged to the cgroup at `path` (and below it) per node: anonymous memory and
        page cache, from memory.numa_stat; empty when the cgroup is gone or has no such file."""

    def flags(self, pfn: Pfns) -> NDArray[np.uint64]:
        """KPF_* bits per frame (Documentation/admin-guide/mm/pagemap.rst); a hole reads as
        NOPAGE or 0."""

    def flags_run(self, start: int, out: NDArray[np.uint64]) -> None:
        """KPF_* bits of the frames start, start+1, ... into `out` (contiguous)."""

    def cgroup_inodes(self, pfn: Pfns) -> NDArray[np.uint64]:
        """Inode of the memory cgroup each frame is charged to; 0 for none."""

    def map_counts(self, pfn: Pfns) -> NDArray[np.uint64]:
        """How many page-table entries map each frame (kpagecount)."""

    def set_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """Mark frames idle: bit i of word k is frame start + 64*k + i. `start` is a multiple of
        64. Clear bits are left alone. Frames that are not a user page's head are ignored."""

    def read_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """Read idle bits into `words`, same layout. 0 means accessed since, or not trackable."""

    def set_idle_words(self, first: Pfns, masks: NDArray[np.uint64]) -> None:
        """Mark frames idle in single words: bit i of masks[k] is frame first[k] + i. `first` is
        uint64[n], sorted, multiples of 64, each once."""

    def read_idle_words(self, first: Pfns, words: NDArray[np.uint64]) -> None:
        """Read single words of idle bits into `words`; `first` as in `set_idle_words`."""

    def move_phys_pages(
        self,
        pfn: Pfns,
        target: NDArray[np.int32],
        source: NDArray[np.int32],
        options: MoveOption,
    ) -> PhysMove:
        """Move each frame's folio to its target node if it is still on its source node.

        `pfn` need not be sorted. Only to be called where MOVE_PHYS_PAGES is available.
        Raises KernelError when the kernel refuses the call as a whole.
        """

    def pressure(self, cgroup: str = "") -> Mapping[str, float]:
        """PSI, "some avg10" as a ratio, by resource: memory, cpu, io. Of the cgroup at that path,
        or of the whole host. What cannot be read is left out."""

    def foreign_tierers(self) -> tuple[ForeignTierer, ...]:
        """Who else moves pages between nodes here now."""

    def monotonic(self) -> float:
        """Seconds on a clock that does not go back; the simulator's is virtual or real."""

    def sleep(self, seconds: float) -> None:
        """Let that much of `monotonic` pass (or return early when the process is told to stop)."""

    def interrupt(self) -> None:
        """End every sleep, now and from now on: the process is told to stop."""

    def cpu_times(self) -> CpuTimes:
        """CPU seconds of this process so far, kernel time included."""


@dataclass(frozen=True, slots=True)
class CapabilitySet:
    """The answer of `Host.capabilities`, looked up by name."""

    entries: tuple[Capability, ...]
    _by_name: Mapping[Feature, Capability] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {entry.name: entry for entry in self.entries})

    def __getitem__(self, name: Feature) -> Capability:
        return self._by_name[name]

    def has(self, name: Feature) -> bool:
        return self._by_name[name].available
