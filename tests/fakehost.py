# SPDX-License-Identifier: Apache-2.0
"""Fake trees of /proc, /sys and cgroup v2, and small simulated machines, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tierd.config import SimulatedNode, Simulation, Workload
from tierd.config.simulation import parse_folios
from tierd.host.simulated import SimulatedHost, VirtualClock
from tierd.host.workload import HotSet
from tierd.topology import Topology, build

MIB = 2**20
BLOCK_BYTES = 128 * MIB
"""Bytes of one memory block in the fake tree: 0x8000000."""


def make_tree(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files below `root`, with the directories above them."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def node_files(
    node: int, blocks: list[int], *, cpus: str, distance: str, latency: int | None = None
) -> dict[str, str]:
    """Files below /sys of one node with some memory blocks, all online."""
    base = f"devices/system/node/node{node}"
    total = len(blocks) * BLOCK_BYTES // 1024
    files = {
        f"{base}/cpulist": cpus + "\n",
        f"{base}/distance": distance + "\n",
        f"{base}/meminfo": f"Node {node} MemTotal:  {total} kB\nNode {node} MemFree:  4096 kB\n",
    }
    for block in blocks:
        files[f"{base}/memory{block}/phys_index"] = f"{block:08x}\n"
        files[f"devices/system/memory/memory{block}/state"] = "online\n"
    if latency is not None:
        files[f"{base}/access0/initiators/read_latency"] = f"{latency}\n"
        files[f"{base}/access0/initiators/read_bandwidth"] = "20480\n"
    return files


def two_nodes(root: Path) -> Path:
    """A /sys of two nodes: 0 with CPUs and a hole in its memory, 1 without CPUs."""
    files = {
        "devices/system/node/online": "0-1\n",
        "devices/system/node/has_memory": "0-1\n",
        "devices/system/memory/block_size_bytes": f"{BLOCK_BYTES:x}\n",
        "devices/virtual/memory_tiering/memory_tier4/nodelist": "0\n",
        "devices/virtual/memory_tiering/memory_tier22/nodelist": "1\n",
    }
    files |= node_files(0, [0, 1, 4], cpus="0-1", distance="10 20", latency=100)
    files |= node_files(1, [8, 9], cpus="", distance="20 10", latency=300)
    return make_tree(root, files)


def in_folios(loads: Sequence[Workload], folios: Mapping[str, str]) -> tuple[Workload, ...]:
    """The same workloads, with their memory in folios of these sizes."""
    return tuple(load.model_copy(update={"folios": parse_folios(folios)}) for load in loads)


def machine(
    *,
    fast: str = "256MiB",
    slow: str = "256MiB",
    workloads: tuple[Workload, ...] = (),
    folios: Mapping[str, str] | None = None,
    seed: int = 1,
    **options: object,
) -> SimulatedHost:
    """A machine of two nodes on a virtual clock. `folios` are those of all workloads where it is
    given. `options` go to SimulatedHost."""
    nodes = (
        SimulatedNode(id=0, size=fast, cpus=2, latency="0.0001ms"),
        SimulatedNode(id=1, size=slow, latency="0.0003ms"),
    )
    if folios is not None:
        workloads = in_folios(workloads, folios)
    spec = Simulation(nodes=nodes, workloads=workloads, seed=seed)
    return SimulatedHost(spec, VirtualClock(), **options)  # type: ignore[arg-type]


def topology_of(host: SimulatedHost) -> Topology:
    return build(host.nodes(), None, 1)


def pages_of(host: SimulatedHost, program: int) -> np.ndarray:
    """Frames that hold a program's pages, sorted."""
    store = host.machine.frames
    found = host.programs[program]
    frames = []
    for block in range(store.blocks):
        blocks = np.array([block])
        ids = store.rows(blocks)[0]
        mine = (ids >= found.first) & (ids < found.first + found.pages)
        frames.append(store.start_of(blocks)[0] + np.flatnonzero(mine))
    return np.sort(np.concatenate(frames)).astype(np.uint64)


def hot_only(host: SimulatedHost, program: int, hot: int, accesses: float = 1e7) -> None:
    """Let a program access its first `hot` pages and nothing else."""
    found = host.programs[program]
    found.pattern = HotSet(found.pages, accesses, hot, None, 1.0)
