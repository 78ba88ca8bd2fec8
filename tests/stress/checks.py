# SPDX-License-Identifier: Apache-2.0
"""What a guest's memory must look like when a storm is over."""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rig import Guest

SOURCES = Path(__file__).resolve().parents[1] / "guest" / "programs" / "stress"

FREE_TOLERANCE_KIB = 8 * 1024
"""Free memory may be that much less than what the kernel's own growth explains: mapped files
that were dropped come back, and the system's own services live on."""

KERNEL_TOLERANCE_KIB = {"debug": 96 * 1024}
"""How much slab, stacks, page tables and per-CPU memory may grow. Slab caches keep what they got
at a peak. KASAN keeps freed objects as well, up to a 32nd of memory, and SLUB's red zones and
tracks make each of them larger."""

KERNEL_TOLERANCE_ELSE_KIB = 16 * 1024

ANON_TOLERANCE = 1024
"""nr_anon_pages may be that much more: systemd, the journal and the agent allocate, too."""

GHOST_TOLERANCE = 0
"""Pages that nobody has and that are not free. None: each one is a leaked reference."""

_SETTLE = """
sync
for i in 1 2 3; do echo 3 > /proc/sys/vm/drop_caches; done
echo 1 > /proc/sys/vm/compact_memory
echo 1 > /proc/sys/vm/stat_refresh
cat /proc/vmstat
awk '/^ +count:/ { sum += $2 } END { print "on_cpus", sum }' /proc/zoneinfo
awk '/^(MemFree|Slab|KernelStack|PageTables|Percpu):/ { print $1, $2 }' /proc/meminfo
echo ghosts $(stress ghosts)
"""

_NO_DISK = """
mkdir -p /run/systemd/journald.conf.d
printf '[Journal]\\nStorage=volatile\\n' > /run/systemd/journald.conf.d/volatile.conf
systemctl restart systemd-journald
sync
mount -t tmpfs -o size=64M tmpfs /var/tmp
mount -o remount,ro / || true
"""
"""QEMU's disk cannot read from CXL memory: a dirty page that comes to be there is never written,
and whoever waits for it, as offlining does, waits for good."""

_CYCLE = """
for block in {blocks}; do
    state=/sys/devices/system/memory/memory$block/state
    timeout {patience} sh -c "echo offline > $state" || echo offline $block: $(cat $state)
done
for block in {blocks}; do
    echo online_movable > /sys/devices/system/memory/memory$block/state || echo online $block
done
"""
"""Offlining waits as long as a page there has a reference too many, hence the limit."""


@functools.cache
def program() -> bytes:
    """The stress program, linked statically so that it runs in any guest."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "stress")
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(out)]
        subprocess.run([*command, *map(str, sorted(SOURCES.glob("*.c")))], check=True)
        return out.read_bytes()


@dataclass(frozen=True, slots=True)
class Memory:
    """A guest at rest. Pages are base pages."""

    free_kib: int
    """MemFree, and what is free in the lists of the CPUs, which MemFree leaves out."""
    anon: int
    isolated_anon: int
    isolated_file: int
    ghosts_anon: int
    ghosts_file: int
    kernel_kib: int
    """Slab, stacks, page tables and per-CPU memory."""

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def measure(guest: Guest) -> tuple[Memory, dict[str, int]]:
    """Caches dropped and counters of all CPUs summed up: memory, and /proc/vmstat."""
    done = guest.run(_SETTLE, timeout=120).stdout
    lines = [line.split(None, 1) for line in done.splitlines()]
    ghosts = json.loads(next(rest for key, rest in lines if key == "ghosts"))
    numbers = {key.rstrip(":"): int(rest) for key, rest in lines if key != "ghosts"}
    memory = Memory(
        free_kib=numbers["MemFree"] + 4 * numbers["on_cpus"],
        anon=numbers["nr_anon_pages"],
        isolated_anon=numbers["nr_isolated_anon"],
        isolated_file=numbers["nr_isolated_file"],
        ghosts_anon=ghosts["anon"],
        ghosts_file=max(ghosts["file"], 0),
        kernel_kib=sum(numbers[key] for key in ("Slab", "KernelStack", "PageTables", "Percpu")),
    )
    return memory, numbers


def wrong(before: Memory, after: Memory, kernel: str) -> list[str]:
    """What of `after` is not as it was on that kernel; empty when all is."""
    found = [
        f"nr_{name} is {getattr(after, name)}, not 0"
        for name in ("isolated_anon", "isolated_file")
        if getattr(after, name) != 0
    ]
    found += [
        f"{name}: {getattr(after, name)} pages nobody has and that are not free"
        for name in ("ghosts_anon", "ghosts_file")
        if getattr(after, name) > getattr(before, name) + GHOST_TOLERANCE
    ]
    if after.anon > before.anon + ANON_TOLERANCE:
        found.append(f"nr_anon_pages is {after.anon}, was {before.anon}")
    growth = after.kernel_kib - before.kernel_kib
    if growth > KERNEL_TOLERANCE_KIB.get(kernel, KERNEL_TOLERANCE_ELSE_KIB):
        found.append(f"the kernel's own memory is {after.kernel_kib} KiB, {growth} KiB more")
    lost = before.free_kib - after.free_kib - growth
    if lost > FREE_TOLERANCE_KIB:
        found.append(f"{after.free_kib} KiB are free, {lost} KiB less than can be explained")
    return found


def baseline(guest: Guest) -> tuple[Memory, dict[str, int]]:
    """Measure until nothing is between two states, or for a while: what is there then has to be
    there for good, and is not held against the storm that follows."""
    end = time.monotonic() + 10 * guest.patience
    while True:
        memory, numbers = measure(guest)
        loose = memory.isolated_anon, memory.isolated_file, memory.ghosts_anon, memory.ghosts_file
        if not any(loose) or time.monotonic() > end:
            return memory, numbers
        time.sleep(0.5)


def come_to_rest(
    guest: Guest, before: Memory, only: Sequence[str] = ()
) -> tuple[Memory, dict[str, int], list[str]]:
    """Measure until nothing is wrong but `only`, or for a while: what exits late is no leak."""
    end = time.monotonic() + 30 * guest.patience
    while True:
        memory, numbers = measure(guest)
        found = wrong(before, memory, guest.kernel)
        if found == list(only) or time.monotonic() > end:
            return memory, numbers, found
        time.sleep(1)


def movable_blocks(guest: Guest, node: int) -> list[int]:
    """Memory blocks of the node that are in ZONE_MOVABLE."""
    script = (
        f"cd /sys/devices/system/node/node{node} && for b in memory*; do"
        ' grep -q "^Movable" $b/valid_zones && echo ${b#memory}; done; true'
    )
    return sorted(map(int, guest.run(script).stdout.split()))


def prepare(guest: Guest, slow: int = 1) -> list[int]:
    """Install the program, and make movable what can be of the slow node.

    The blocks of an ordinary RAM node are taken offline and come back movable, but for those
    that the kernel itself has memory in. Returns the movable blocks."""
    guest.put("/usr/local/bin/stress", program(), 0o755)
    script = (
        f"cd /sys/devices/system/node/node{slow} && for b in memory*; do"
        ' grep -q "^Movable" $b/valid_zones && continue;'
        f' timeout {20 * guest.patience:.0f} sh -c "echo offline > $b/state" 2> /dev/null'
        " && echo online_movable > /sys/devices/system/memory/$b/state; done; true"
    )
    guest.run(script, timeout=200)
    if guest.machine.cxl:
        guest.run(_NO_DISK, timeout=60)
    return movable_blocks(guest, slow)


def cycle_offline(guest: Guest, blocks: list[int], patience: float = 30) -> list[str]:
    """Take the blocks offline and bring them back; what did not go well.

    One leaked reference to one page in a block keeps it online; `patience` is how many seconds
    to wait for that to end, for a release kernel on machine A."""
    words = " ".join(map(str, blocks))
    script = _CYCLE.format(blocks=words, patience=round(patience * guest.patience))
    done = guest.run(script, timeout=60 + (patience + 5) * len(blocks)).stdout
    return [f"memory block did not go {line}" for line in done.splitlines()]
