# SPDX-License-Identifier: Apache-2.0
"""The real kernel. The only module that calls through ctypes.

Roots of /proc, /sys and cgroup v2 are injectable: for containers with host mounts, and tests.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import resource
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import (
    NO_PFN,
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
    probe,
    sysfs,
)
from tierd.host.kpage import FrameFile, IdleBitmap

# include/uapi/linux/mempolicy.h, and the call's own flags above them.
_MOVE: Final = 1 << 1
_MOVE_ALL: Final = 1 << 2
_SOURCE: Final = 1 << 19
_REPORT: Final = 1 << 20
_OPTION_FLAGS: Final = {
    MoveOption.MEMPOLICY: ("mempolicy", 1 << 16),
    MoveOption.NONBLOCK: ("nonblock", 1 << 17),
    MoveOption.UNMAPPED: ("unmapped", 1 << 18),
}

_MOVE_PAGES_NUMBERS: Final = {"x86_64": 279, "aarch64": 239}
"""move_pages(2) has been at these numbers since 2.6.18 and 3.7; it is not wrapped by libc."""

NOT_WRITTEN: Final = np.int32(-(2**31))
"""Status of an entry that the kernel never reached; no node and no errno."""

WATERMARK_SECONDS: Final = 30.0
"""How long watermarks are taken to stay: only an operator or hotplug changes them, and
/proc/zoneinfo is as long as there are CPUs."""

Syscall = Callable[..., int]
"""syscall(2): number and arguments in, the result or -1 with ctypes.get_errno() out."""


def libc_syscall() -> Syscall:
    """syscall(2) of the C library; releases the GIL and keeps errno per thread."""
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long

    def call(number: int, *arguments: object) -> int:
        return int(function(ctypes.c_long(number), *arguments))

    return call


_M_ARENA_MAX: Final = -8
"""malloc.h of glibc."""

_MADV_DONTNEED: Final = 4
"""asm-generic/mman-common.h."""

_PROGRAM: Final = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) r-[x-]p \S+ \S+ [1-9]\d*\b.*\n(?:[A-Z].*\n)*?Anonymous: +0 kB\n"
    r"(?:[A-Z].*\n)*?Swap: +0 kB$",
    re.MULTILINE,
)
"""Begin and end of code and constants in /proc/PID/smaps that come from a file and that nobody
has written to (relocations, a debugger's breakpoints)."""


class Footprint:
    """What is done so that this process stays as small as it can be. Does nothing about the heap
    with another C library than glibc."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._madvise = library.madvise
        self._trim = getattr(library, "malloc_trim", None)
        self._mallopt = getattr(library, "mallopt", None)

    def share_one_arena(self) -> None:
        """Threads that all but take turns need no heap each."""
        if self._mallopt is not None:
            self._mallopt(ctypes.c_int(_M_ARENA_MAX), ctypes.c_int(1))

    def let_go_of_program(self) -> None:
        """Take code and constants that only the start has used out of the resident set (docs/
        cost.md says how much). What goes on being used is mapped again from the page cache."""
        for begin, end in _PROGRAM.findall(sysfs.read_text("/proc/self/smaps") or ""):
            start, size = int(begin, 16), int(end, 16) - int(begin, 16)
            self._madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTNEED)

    def give_back(self) -> None:
        """Return the pages of freed memory to the kernel. A millisecond."""
        if self._trim is not None:
            self._trim(ctypes.c_size_t(0))


def _address(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class LinuxHost:
    """`tierd.host.Host` over a running kernel. Nothing is opened before it is needed."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        cgroup: Path = Path("/sys/fs/cgroup"),
        syscall: Syscall | None = None,
    ) -> None:
        self._proc = proc
        self._sys = sys
        self._cgroup = cgroup
        self._syscall = libc_syscall() if syscall is None else syscall
        self._kpageflags = FrameFile(proc / "kpageflags")
        self._kpagecgroup = FrameFile(proc / "kpagecgroup")
        self._kpagecount = FrameFile(proc / "kpagecount")
        self._idle = IdleBitmap(sys / "kernel/mm/page_idle/bitmap")
        self._handshake: probe.Handshake | str | None = None
        self._woken = threading.Event()
        self._page_size = os.sysconf("SC_PAGE_SIZE")
        self._kept = sysfs.KeptFiles()
        self._watermarks: Mapping[int, int] | None = None
        self._watermarks_until = 0.0

    # -- what this is ----------------------------------------------------------------------

    @property
    def page_size(self) -> int:
        """Bytes in one frame."""
        return self._page_size

    @property
    def name(self) -> str:
        """Kernel release and machine."""
        system = os.uname()
        return f"Linux {system.release} {system.machine}"

    def capabilities(self) -> tuple[Capability, ...]:
        """Probe every feature anew; a handshake that has changed is taken over."""
        files = probe.file_capabilities(self._proc, self._sys, self._cgroup, len(self.nodes()))
        calls = (self._probe_move_phys_pages(), self._probe_move_pages())
        return (*files, *calls)

    def nodes(self) -> tuple[Node, ...]:
        """Online nodes with memory, by id."""
        return sysfs.nodes(self._proc, self._sys)

    def node_memory(self) -> tuple[NodeMemory, ...]:
        """Room on each node now."""
        text = self._kept.read(f"{self._sys}/devices/system/node/online")
        online = sorted(sysfs.parse_list(text)) or [0]
        now = self.monotonic()
        if self._watermarks is None or now >= self._watermarks_until:
            self._watermarks = sysfs.watermarks(self._proc)
            self._watermarks_until = now + WATERMARK_SECONDS
        rooms = sysfs.node_memory(self._proc, self._sys, online, self._watermarks, self._kept.read)
        return tuple(room for room in rooms if room.total)

    def cgroups(self) -> tuple[Cgroup, ...]:
        """Every cgroup below the root of the v2 tree, and the root."""
        return sysfs.cgroups(self._cgroup, self._memory_nodes())

    def _memory_nodes(self) -> frozenset[int]:
        root = self._sys / "devices/system/node"
        return sysfs.parse_list(sysfs.read_text(root / "has_memory")) or frozenset({0})

    def cgroup_memory(self, path: str) -> Mapping[int, int]:
        """Bytes per node that are charged to a cgroup."""
        return sysfs.cgroup_memory(self._cgroup, path)

    def pressure(self, cgroup: str = "") -> Mapping[str, float]:
        """PSI, "some avg10" (Documentation/accounting/psi.rst), as ratios by resource."""
        if cgroup:
            files = {name: f"{self._cgroup}/{cgroup}/{name}.pressure" for name in PRESSURES}
        else:
            files = {name: f"{self._proc}/pressure/{name}" for name in PRESSURES}
        # A kernel that has PSI switched off (psi=0) has the files and refuses to open them.
        found = {name: sysfs.pressure(self._kept.read(path)) for name, path in files.items()}
        return {name: ratio for name, ratio in found.items() if ratio is not None}

    def foreign_tierers(self) -> tuple[ForeignTierer, ...]:
        """Who else moves pages here."""
        return tuple(probe.foreign_tierers(self._proc, self._sys))

    # -- frames ----------------------------------------------------------------------------

    def flags(self, pfn: Pfns) -> NDArray[np.uint64]:
        """KPF_* bits per frame; a hole has NOPAGE, or 0 past the end of memory."""
        return self._kpageflags.read(pfn)

    def flags_run(self, start: int, out: NDArray[np.uint64]) -> None:
        """KPF_* bits of consecutive frames."""
        self._kpageflags.read_run(start, out)

    def cgroup_inodes(self, pfn: Pfns) -> NDArray[np.uint64]:
        """Inode of each frame's memory cgroup; of a removed one its nearest living ancestor's
        (page_cgroup_ino in mm/memcontrol.c)."""
        return self._kpagecgroup.read(pfn)

    def map_counts(self, pfn: Pfns) -> NDArray[np.uint64]:
        """Page-table entries that map each frame."""
        return self._kpagecount.read(pfn)

    def set_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """Mark frames idle; see the Protocol."""
        self._idle.write(start, words)

    def read_idle(self, start: int, words: NDArray[np.uint64]) -> None:
        """Read idle bits; see the Protocol."""
        self._idle.read(start, words)

    def set_idle_words(self, first: Pfns, masks: NDArray[np.uint64]) -> None:
        """Mark frames idle in single words; see the Protocol."""
        self._idle.write_words(first, masks)

    def read_idle_words(self, first: Pfns, words: NDArray[np.uint64]) -> None:
        """Read single words of idle bits; see the Protocol."""
        self._idle.read_words(first, words)

    # -- the two calls that move -------------------------------------------------------------

    def move_phys_pages(
        self,
        pfn: Pfns,
        target: NDArray[np.int32],
        source: NDArray[np.int32],
        options: MoveOption,
    ) -> PhysMove:
        """One call. Options that this kernel's handshake does not name are left out."""
        known = self._shake()
        if isinstance(known, str):
            raise KernelError(errno.ENOSYS, known, "move_phys_pages")
        count = len(pfn)
        shift = np.uint64(self._page_size.bit_length() - 1)
        pages = np.left_shift(pfn, shift, dtype=np.uint64)
        nodes = np.ascontiguousarray(target, np.int32)
        status = np.full(count, NOT_WRITTEN, np.int32)
        if "source" in known.features:
            status[:] = source
        left = self._syscall(
            known.number,
            ctypes.c_ulong(count),
            _address(pages),
            _address(nodes),
            _address(status),
            ctypes.c_uint(_flags(known.features, options)),
        )
        if left < 0:
            number = ctypes.get_errno()
            raise KernelError(number, os.strerror(number), "move_phys_pages")
        attempted = count - min(left, count)
        landed = np.right_shift(pages, shift)
        moved = (landed != pfn) & (status == nodes)
        moved[attempted:] = False
        return PhysMove(status, np.where(moved, landed, NO_PFN), attempted)

    def _shake(self) -> probe.Handshake | str:
        if self._handshake is None:
            self._handshake = probe.handshake(self._sys)
        return self._handshake

    def _probe_move_phys_pages(self) -> Capability:
        """The handshake first; only then the number that it names, with no pages."""
        self._handshake = None
        known = self._shake()
        if isinstance(known, str):
            return Capability(Feature.MOVE_PHYS_PAGES, False, known)
        reason = self._probe_call(known.number, ctypes.c_uint(_MOVE))
        if reason is not None:
            self._handshake = reason  # nobody is to call it by mistake
            return Capability(Feature.MOVE_PHYS_PAGES, False, reason)
        features = ", ".join(sorted(known.features)) or "none"
        named = f"the kernel names it as system call {known.number} (features: {features})"
        return Capability(Feature.MOVE_PHYS_PAGES, True, named)

    def _probe_call(self, number: int, flags: ctypes.c_uint) -> str | None:
        """Call with count 0: 0 is expected. A reason where it does not work."""
        null = ctypes.c_void_p(None)
        if self._syscall(number, ctypes.c_ulong(0), null, null, null, flags) == 0:
            return None
        code = ctypes.get_errno()
        text = f"system call {number}, which the kernel names, answers {os.strerror(code)}"
        if code == errno.ENOSYS:
            return f"{text}: a seccomp filter (SystemCallFilter=) is in the way"
        if code == errno.EPERM:
            return f"{text}: needs CAP_SYS_ADMIN in the initial user namespace"
        return text

    def _probe_move_pages(self) -> Capability:
        machine = platform.machine()
        number = _MOVE_PAGES_NUMBERS.get(machine)
        if number is None:
            reason = f"its number on {machine} is not known to tierd"
            return Capability(Feature.MOVE_PAGES, False, reason)
        null = ctypes.c_void_p(None)
        result = self._syscall(
            number,
            ctypes.c_int(0),
            ctypes.c_ulong(0),
            null,
            null,
            null,
            ctypes.c_int(_MOVE),
        )
        if result == 0:
            return Capability(Feature.MOVE_PAGES, True, "move_pages(2) answers")
        text = os.strerror(ctypes.get_errno())
        return Capability(Feature.MOVE_PAGES, False, f"move_pages(2) answers {text}")

    # -- time --------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC in seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait, or return early after `interrupt`."""
        self._woken.wait(max(seconds, 0.0))

    def interrupt(self) -> None:
        """End every sleep now and from now on: the process is to stop."""
        self._woken.set()

    def cpu_times(self) -> CpuTimes:
        """CPU seconds of all threads of this process."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return CpuTimes(usage.ru_utime, usage.ru_stime)


def _flags(features: frozenset[str], options: MoveOption) -> int:
    """The kernel's flags: only those that its handshake names."""
    flags = _MOVE_ALL if MoveOption.SHARED in options else _MOVE
    for option, (name, bit) in _OPTION_FLAGS.items():
        if option in options and name in features:
            flags |= bit
    if "source" in features:
        flags |= _SOURCE
    if "report" in features:
        flags |= _REPORT
    return flags
