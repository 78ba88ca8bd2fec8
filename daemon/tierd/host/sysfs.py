# SPDX-License-Identifier: Apache-2.0
"""Nodes, memory blocks, watermarks and cgroups as files show them. Plain readers: a file that
is not there is None or empty, never an exception."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tierd.host import Cgroup, Node, NodeMemory, Span

_MEM_TOTAL: Final = re.compile(r"\bMemTotal:\s+(\d+) kB")
_MEM_FREE: Final = re.compile(r"\bMemFree:\s+(\d+) kB")
_SOME: Final = re.compile(r"^some avg10=([0-9.]+)", re.MULTILINE)


def read_text(path: Path | str) -> str | None:
    """Contents without the surrounding white space, None when it cannot be read."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # A file of the kernel's may give less than was asked for before its end.
        parts = list(iter(lambda: os.read(opened, 1 << 16), b""))
    except OSError:
        return None
    finally:
        os.close(opened)
    return b"".join(parts).decode("ascii", "replace").strip()


class KeptFiles:
    """Files of the kernel's that are read in every cycle, kept open: to open the six of them took
    an emulated guest as long as to read them. Not thread-safe."""

    def __init__(self) -> None:
        self._opened: dict[str, int] = {}

    def read(self, path: str) -> str | None:
        """As `read_text`. Read from its beginning such a file is made anew; one that was removed
        says so, and whatever has its name by now is opened."""
        for _ in range(2):
            opened = self._opened.get(path)
            try:
                if opened is None:
                    opened = self._opened[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                return os.pread(opened, 1 << 16, 0).decode("ascii", "replace").strip()
            except OSError:
                if self._opened.pop(path, None) is None:
                    return None
                if opened is not None:
                    os.close(opened)
        return None


def read_int(path: Path | str) -> int | None:
    text = read_text(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None


def pressure(text: str | None) -> float | None:
    """ "some avg10" of a PSI file's text as a ratio; None where there is none."""
    found = _SOME.search(text or "")
    return float(found[1]) / 100 if found else None


def parse_list(text: str | None) -> frozenset[int]:
    """Numbers of a kernel list such as "0-3,8" (lib/bitmap-str.c); empty for nothing."""
    numbers: set[int] = set()
    for part in (text or "").split(","):
        low, _, high = part.strip().partition("-")
        if low.isdigit():
            numbers.update(range(int(low), int(high or low) + 1))
    return frozenset(numbers)


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone of /proc/zoneinfo; `high` is its high watermark. All in frames."""

    node: int
    start: int
    spanned: int
    high: int


def zones(proc: Path) -> tuple[Zone, ...]:
    """Populated zones (mm/vmstat.c: zoneinfo_show_print)."""
    found: list[Zone] = []
    text = read_text(proc / "zoneinfo") or ""
    for part in re.split(r"^(?=Node )", text, flags=re.MULTILINE):
        head = re.match(r"Node (\d+), zone", part)
        values = {
            name: int(value)
            for name, value in re.findall(
                # "high:" with a colon is a limit of a CPU's page list, not the watermark.
                r"^\s+(high|spanned|present|start_pfn:)\s+(\d+)$",
                part,
                flags=re.MULTILINE,
            )
        }
        if head and values.get("present"):
            start = values.get("start_pfn:", 0)
            found.append(Zone(int(head[1]), start, values["spanned"], values.get("high", 0)))
    return tuple(found)


def nodes(proc: Path, sys: Path) -> tuple[Node, ...]:
    """Online nodes that have memory, by id. A kernel without NUMA shows as one node 0."""
    root = sys / "devices/system/node"
    online = sorted(parse_list(read_text(root / "online"))) if root.is_dir() else [0]
    spans = memory_spans(proc, sys, online)
    tiers = memory_tiers(sys)
    found: list[Node] = []
    for node in online:
        if not spans.get(node):
            continue
        directory = root / f"node{node}"
        distances = (read_text(directory / "distance") or "").split()
        access = directory / "access0/initiators"
        latency, bandwidth = read_int(access / "read_latency"), read_int(access / "read_bandwidth")
        found.append(
            Node(
                id=node,
                cpus=_cpus(sys, directory),
                spans=spans[node],
                distances=dict(zip(online, map(int, distances), strict=False)) or {node: 10},
                memory_tier=tiers.get(node),
                # Documentation/admin-guide/mm/numaperf.rst: nanoseconds and MiB per second.
                read_latency=latency * 1e-9 if latency else None,
                read_bandwidth=float(bandwidth * 2**20) if bandwidth else None,
            )
        )
    return tuple(found)


def _cpus(sys: Path, directory: Path) -> frozenset[int]:
    own = read_text(directory / "cpulist")
    return parse_list(own if own is not None else read_text(sys / "devices/system/cpu/online"))


def memory_tiers(sys: Path) -> Mapping[int, int]:
    """Node -> number of its memory tier, lower is faster (mm/memory-tiers.c)."""
    tiers: dict[int, int] = {}
    for directory in (sys / "devices/virtual/memory_tiering").glob("memory_tier*"):
        number = directory.name.removeprefix("memory_tier")
        if number.isdigit():
            tiers |= dict.fromkeys(parse_list(read_text(directory / "nodelist")), int(number))
    return tiers


def memory_spans(proc: Path, sys: Path, online: Sequence[int]) -> dict[int, tuple[Span, ...]]:
    """Frames of each node: from its online memory blocks, else from its zones.

    A block that two nodes share is cut along their zones. Holes inside a block (firmware) stay:
    their frames read as no page.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    text = read_text(sys / "devices/system/memory/block_size_bytes")
    by_zone = {
        node: [(zone.start, zone.start + zone.spanned) for zone in zones(proc) if zone.node == node]
        for node in online
    }
    if not text:  # no memory hot-plug in this kernel, hence no blocks
        return {node: _merge(node, runs) for node, runs in by_zone.items()}
    frames = int(text, 16) // page
    blocks = {node: _blocks(sys, node, len(online) == 1) for node in online}
    owners: dict[int, int] = {}
    for numbers in blocks.values():
        for number in numbers:
            owners[number] = owners.get(number, 0) + 1
    spans: dict[int, tuple[Span, ...]] = {}
    for node, numbers in blocks.items():
        runs: list[tuple[int, int]] = []
        for number in numbers:
            run = (number * frames, (number + 1) * frames)
            runs += [run] if owners[number] == 1 else _cut(run, by_zone[node])
        spans[node] = _merge(node, runs)
    return spans


def _blocks(sys: Path, node: int, only: bool) -> list[int]:
    """Numbers of the node's online memory blocks."""
    directory = sys / f"devices/system/node/node{node}"
    if only and not directory.is_dir():
        directory = sys / "devices/system/memory"
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    numbers = sorted(int(name[6:]) for name in names if re.fullmatch(r"memory[0-9]+", name))
    memory = sys / "devices/system/memory"
    return [n for n in numbers if read_text(memory / f"memory{n}/state") in ("online", None)]


def _cut(run: tuple[int, int], pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    cut = [(max(run[0], start), min(run[1], end)) for start, end in pieces]
    return [(start, end) for start, end in cut if start < end]


def _merge(node: int, runs: Iterable[tuple[int, int]]) -> tuple[Span, ...]:
    """Spans of overlapping or touching runs joined."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(Span(node, start, end) for start, end in merged)


def watermarks(proc: Path) -> dict[int, int]:
    """Bytes that the high watermarks of a node's zones come to."""
    page = os.sysconf("SC_PAGE_SIZE")
    high: dict[int, int] = {}
    for zone in zones(proc):
        high[zone.node] = high.get(zone.node, 0) + zone.high * page
    return high


def node_memory(
    proc: Path,
    sys: Path,
    ids: Iterable[int],
    high: Mapping[int, int],
    read: Callable[[str], str | None] = read_text,
) -> tuple[NodeMemory, ...]:
    """Room per node from its meminfo (kB there); `high` as from `watermarks`."""
    rooms: list[NodeMemory] = []
    for node in ids:
        text = read(f"{sys}/devices/system/node/node{node}/meminfo")
        if text is None:
            text = read(f"{proc}/meminfo") or ""
        # The first lines; a search for all of both would go on to the end.
        total, free = (
            int(match[1]) * 1024 if (match := pattern.search(text)) else 0
            for pattern in (_MEM_TOTAL, _MEM_FREE)
        )
        rooms.append(NodeMemory(node, total, free, high.get(node, 0)))
    return tuple(rooms)


def cgroups(root: Path, all_nodes: frozenset[int]) -> tuple[Cgroup, ...]:
    """All cgroups of a v2 tree; empty where `root` is none.

    A cgroup without the cpuset controller has no cpuset.mems.effective and obeys its parent's.
    The inode is the one that kpagecgroup reports (cgroup_ino, the kernfs node's).
    """
    if not (root / "cgroup.controllers").exists():
        return ()
    try:
        inode = root.stat().st_ino
    except OSError:
        return ()
    top = _mems(root, all_nodes)
    return (Cgroup(inode, "", top), *_below(root, "", top))


def _below(directory: Path, path: str, inherited: frozenset[int]) -> Iterator[Cgroup]:
    try:
        with os.scandir(directory) as entries:
            children = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # removed meanwhile
        return
    for entry in children:
        child = directory / entry.name
        name = f"{path}/{entry.name}" if path else entry.name
        mems = _mems(child, inherited)
        yield Cgroup(entry.inode(), name, mems)
        yield from _below(child, name, mems)


def _mems(directory: Path, inherited: frozenset[int]) -> frozenset[int]:
    return parse_list(read_text(directory / "cpuset.mems.effective")) or inherited


def cgroup_memory(root: Path, path: str) -> Mapping[int, int]:
    """Bytes per node: `anon` and `file` of memory.numa_stat (mm/memcontrol.c); `file` counts
    shared memory too."""
    total: dict[int, int] = {}
    for line in (read_text(root / path / "memory.numa_stat") or "").splitlines():
        name, *values = line.split()
        if name in ("anon", "file"):
            for node, size in re.findall(r"N(\d+)=(\d+)", " ".join(values)):
                total[int(node)] = total.get(int(node), 0) + int(size)
    return total
