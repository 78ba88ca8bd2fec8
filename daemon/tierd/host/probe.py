# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do, found out by looking at the thing itself, and who else uses it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tierd.host import Capability, Feature, ForeignTierer
from tierd.host.sysfs import read_int, read_text

HANDSHAKE: Final = "kernel/mm/move_phys_pages"
"""Directory below /sys in which the kernel names the system call; mode 0400 files."""

ABI_VERSION: Final = 1
"""The version of move_phys_pages that this host speaks."""

TIERING_DAEMONS: Final = frozenset(
    {"memtierd", "etmemd", "numad", "tmo-agent", "hmsdk", "damo", "tppd"}
)
"""Comm of programs that move pages between nodes on their own judgement."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What the kernel says about move_phys_pages: its number and the flags that it knows."""

    number: int
    features: frozenset[str]


def handshake(sys: Path) -> Handshake | str:
    """Read the handshake; a reason in one phrase where there is none to act on.

    Without it no number is ever called: numbers of earlier proposals are other calls today.
    """
    directory = sys / HANDSHAKE
    if not directory.is_dir():
        return f"{directory} does not exist: this kernel has no move_phys_pages"
    for name in ("number", "abi_version", "features"):
        try:
            (directory / name).read_bytes()
        except OSError as error:
            return f"{directory / name} cannot be read: {os.strerror(error.errno or errno.EIO)}"
    version = read_int(directory / "abi_version")
    if version != ABI_VERSION:
        found = read_text(directory / "abi_version") or "nothing"
        return f"{directory}/abi_version says {found}, this tierd speaks {ABI_VERSION} only"
    number = read_int(directory / "number")
    if number is None or not 0 < number < 2**31:
        return f"{directory}/number holds no system call number"
    return Handshake(number, frozenset((read_text(directory / "features") or "").split()))


def _openable(path: Path, flags: int, absent: str) -> tuple[bool, str]:
    """Whether a file opens and gives 8 bytes, with a reason either way."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        return False, f"{path} does not exist: {absent}"
    except OSError as error:
        return False, f"{path} cannot be opened: {_hint(error.errno)}"
    try:
        os.pread(fd, 8, 0)
    except OSError as error:
        return False, f"{path} cannot be read: {_hint(error.errno)}"
    finally:
        os.close(fd)
    return True, f"{path} is there"


def _hint(number: int | None) -> str:
    text = os.strerror(number or errno.EIO)
    if number in (errno.EACCES, errno.EPERM):
        return f"{text}: needs root with CAP_SYS_ADMIN"
    if number == errno.EROFS:
        return f"{text}: the service's ReadWritePaths must name it"
    return text


def _page_idle(sys: Path) -> tuple[bool, str]:
    path = sys / "kernel/mm/page_idle/bitmap"
    return _openable(path, os.O_RDWR, "kernel built without CONFIG_IDLE_PAGE_TRACKING")


def _damon(sys: Path) -> tuple[bool, str]:
    path = sys / "kernel/mm/damon/admin/kdamonds/nr_kdamonds"
    return _openable(path, os.O_RDWR, "kernel built without CONFIG_DAMON_SYSFS")


def _perf(sys: Path) -> tuple[bool, str]:
    devices = sys / "bus/event_source/devices"
    for path in (devices / "ibs_op", devices / "cpu/events/mem-loads"):
        if path.exists():
            return True, f"{path} is there"
    return False, (
        f"neither ibs_op nor cpu/events/mem-loads under {devices}:"
        " no memory access sampling on this CPU (or not in this virtual machine)"
    )


def _device(sys: Path) -> tuple[bool, str]:
    devices = sys / "bus/event_source/devices"
    units = sorted(devices.glob("cxl_hmu_*"))
    if units:
        return True, f"{units[0]} is there"
    return False, f"no cxl_hmu_* under {devices}: no CXL device with a hotness monitoring unit"


def _kpagecgroup(proc: Path, cgroup: Path) -> tuple[bool, str]:
    there, reason = _openable(
        proc / "kpagecgroup", os.O_RDONLY, "kernel built without CONFIG_MEMCG"
    )
    if there and "memory" not in _controllers(cgroup):
        return False, f"the memory controller is not on cgroup v2 at {cgroup}"
    return there, reason


def _cpuset(cgroup: Path) -> tuple[bool, str]:
    if "cpuset" in _controllers(cgroup):
        return True, f"the cpuset controller is on cgroup v2 at {cgroup}"
    return False, f"the cpuset controller is not on cgroup v2 at {cgroup}"


def _controllers(cgroup: Path) -> list[str]:
    return (read_text(cgroup / "cgroup.controllers") or "").split()


def _numa(nodes: int) -> tuple[bool, str]:
    if nodes > 1:
        return True, f"{nodes} nodes have memory"
    return False, "one node only has memory"


def file_capabilities(proc: Path, sys: Path, cgroup: Path, nodes: int) -> Iterator[Capability]:
    """Every feature that shows as a file; the two moving system calls are probed elsewhere."""
    monitor = "kernel built without CONFIG_PROC_PAGE_MONITOR"
    found = {
        Feature.PAGE_IDLE: _page_idle(sys),
        Feature.DAMON: _damon(sys),
        Feature.PERF: _perf(sys),
        Feature.DEVICE: _device(sys),
        Feature.KPAGEFLAGS: _openable(proc / "kpageflags", os.O_RDONLY, monitor),
        Feature.KPAGECGROUP: _kpagecgroup(proc, cgroup),
        Feature.KPAGECOUNT: _openable(proc / "kpagecount", os.O_RDONLY, monitor),
        Feature.CPUSET: _cpuset(cgroup),
        Feature.PSI: _openable(
            proc / "pressure/memory", os.O_RDONLY, "kernel built without CONFIG_PSI, or psi=0"
        ),
        Feature.NUMA: _numa(nodes),
    }
    for name, (available, reason) in found.items():
        yield Capability(name, available, reason)


def foreign_tierers(proc: Path, sys: Path) -> Iterator[ForeignTierer]:
    """NUMA balancing, reclaim demotion, DAMON's migration schemes, daemons known by name."""
    balancing = read_int(proc / "sys/kernel/numa_balancing")
    if balancing:
        yield ForeignTierer(
            "numa_balancing", f"/proc/sys/kernel/numa_balancing is {balancing}, 0 switches it off"
        )
    # Since 6.1 "true" and "false", before that 1 and 0 (mm/vmscan.c: demotion_enabled_show).
    if read_text(sys / "kernel/mm/numa/demotion_enabled") in ("true", "1"):
        yield ForeignTierer(
            "demotion", "/sys/kernel/mm/numa/demotion_enabled is true: reclaim demotes"
        )
    yield from _damon_schemes(sys)
    yield from _daemons(proc)


def _damon_schemes(sys: Path) -> Iterator[ForeignTierer]:
    for kdamond in sorted((sys / "kernel/mm/damon/admin/kdamonds").glob("[0-9]*")):
        if read_text(kdamond / "state") != "on":
            continue
        actions = {read_text(path) for path in kdamond.glob("contexts/*/schemes/*/action")}
        for action in sorted(actions & {"migrate_hot", "migrate_cold"}, key=str):
            yield ForeignTierer("damon", f"kdamond {kdamond.name} runs a {action} scheme")


def _daemons(proc: Path) -> Iterator[ForeignTierer]:
    own = str(os.getpid())
    for entry in os.listdir(proc):
        if entry.isdigit() and entry != own:
            comm = read_text(proc / entry / "comm")
            if comm in TIERING_DAEMONS:
                yield ForeignTierer("other", f"{comm} (pid {entry}) is running")
