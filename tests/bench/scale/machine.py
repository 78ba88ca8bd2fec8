# SPDX-License-Identifier: Apache-2.0
"""The simulated machine in a process of its own: `python -m bench.scale.machine FD GIB`.

Serves `tierd.host.simulated.SimulatedHost` over a connected socket, one request at a time, so
that none of the machine's memory and CPU time is the daemon's.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.scale.wire import Wire
from tierd.config import SimulatedNode, Simulation, Workload
from tierd.host import KPF, KernelError, Pfns
from tierd.host.simulated import SimulatedHost, VirtualClock
from tierd.host.workload import Counts, Indexes, Times

PAGE = 4096
GIB = 2**30
NEWCOMER = 64 * 2**20
"""Bytes of the hot set that appears."""
QUIET = 1e-9
"""Accesses per second of what is not used."""


Shares = NDArray[np.float64]


class Newcomer:
    """Silent until `begin`; then 64 MiB of it get ten accesses per page and second."""

    def __init__(self, pages: int) -> None:
        self.all = pages
        self.first = 0
        self.pages = NEWCOMER // PAGE
        self.begin = float("inf")

    def start(self, number: int, now: float) -> None:
        """Become hot, in another place for each number from 0 to 7; what was hot falls silent."""
        self.first = self.all * (2 * number + 1) // 16 // 512 * 512
        self.begin = now

    def _hot(self, index: Indexes) -> Counts:
        return ((index >= self.first) & (index < self.first + self.pages)) * 10.0

    def rates(self, index: Indexes, now: float) -> Counts:
        return self._hot(index) * (now >= self.begin)

    def expected(self, index: Indexes, since: Times, now: float) -> Counts:
        return self._hot(index) * np.clip(now - np.maximum(since, self.begin), 0.0, None)


def simulation(gib: int) -> Simulation:
    """A quarter of the memory is fast and full of what came first; 95 % of all is in use: cold
    bulk, a hot set of 2 % of memory (at most 8 GiB), zipf (at most 8 GiB), a scan, and a program
    that is silent at first."""
    size = gib * GIB

    def work(kind: str, share: float, per_page: float, hot: float = 0.0, **keys: Any) -> Workload:
        """A program on `share` of all memory, `hot` of which gets `per_page` accesses per page
        and second."""
        return Workload(
            kind=kind,  # type: ignore[arg-type]
            size=mib(share),
            hot=mib(hot) if hot else None,
            accesses=max(size * (hot or share) / PAGE * per_page, QUIET),
            **keys,
        )

    def mib(share: float) -> str:
        return f"{int(size * share) // 2**21 * 2}MiB"

    zipf = min(1 / 8, 8 / gib)
    return Simulation(
        nodes=(
            SimulatedNode(id=0, size=mib(0.25), cpus=16, latency="0.0001ms"),
            SimulatedNode(id=1, size=mib(0.75), latency="0.00025ms"),
        ),
        workloads=(
            work("uniform", 0.55, 0.001, cgroup="bulk.slice"),
            work("hotset", 0.2, 3.0, hot=min(0.02, 8 / gib), cgroup="hot.slice"),
            work("zipf", zipf, 10.0, skew=0.99, cgroup="zipf.slice"),
            work("scan", 0.01, 0.5, cgroup="scan.slice"),
            work("uniform", 0.05, 0.0, cgroup="new.slice"),
        ),
    )


class Bench:
    """What the bench itself asks of the machine, beside the Protocol."""

    def __init__(self, gib: int) -> None:
        self.host = SimulatedHost(simulation(gib), VirtualClock())
        self._program = self.host.programs[-1]
        self._newcomer = Newcomer(self._program.pages)
        self._program.pattern = self._newcomer

    def arm(self, number: int) -> None:
        """Let the newcomer's hot set begin, at one of several places."""
        self._newcomer.start(number, self.host.monotonic())

    def huge(self) -> NDArray[np.uint32]:
        """uint32[n]: numbers of the 2 MiB blocks that are a huge page, sorted. There are no large
        folios of other sizes."""
        found = []
        for part in range(0, self.host.machine.frames.blocks, 1 << 20):
            blocks = np.arange(part, min(part + (1 << 20), self.host.machine.frames.blocks))
            last = self.host.machine.frames.start_of(blocks).astype(np.uint64) + np.uint64(511)
            tail = (self.host.machine.flags(last) & KPF.COMPOUND_TAIL) != 0
            found.append((last[tail] // np.uint64(512)).astype(np.uint32))
        return np.sort(np.concatenate(found))

    def newcomer(self) -> tuple[float, Pfns, Shares]:
        """Share of the newcomer's hot pages in fast memory; and of the folios that are not, the
        first frame (sorted) and the share of the hot pages that is in each."""
        first = self._program.first + self._newcomer.first
        pfn = self._frames(first, first + self._newcomer.pages)
        frames, flags = self.host.machine.frames, self.host.machine.flags(pfn)
        slow = frames.node[frames.locate(pfn)] != 0
        heads = pfn[slow & ((flags & KPF.COMPOUND_TAIL) == 0)]
        owner = np.searchsorted(heads, pfn[slow], side="right") - 1
        pages = np.bincount(owner[owner >= 0], minlength=len(heads))
        return float(1 - slow.mean()), heads, pages / self._newcomer.pages

    def _frames(self, first: int, end: int) -> Pfns:
        """uint64[n]: where pages first..end-1 are, sorted."""
        frames = self.host.machine.frames
        found = []
        for part in range(0, frames.blocks, 1 << 20):
            blocks = np.arange(part, min(part + (1 << 20), frames.blocks))
            blocks = blocks[frames.may_hold(blocks, first, end)]
            ids = frames.rows(blocks)
            row, offset = np.nonzero((ids >= first) & (ids < end))
            found.append((frames.start_of(blocks)[row] + offset).astype(np.uint64))
        frame: Pfns = np.sort(np.concatenate(found))
        return frame


def serve(connection: Wire, bench: Bench) -> None:
    """Answer until the other end closes. A request is (seconds that the daemon worked since the
    last one, method, arguments, array to fill or None); the answer is (time, kernel seconds,
    failed, result, the filled array)."""
    host = bench.host
    while True:
        try:
            worked, name, arguments, out = connection.receive()
        except EOFError:
            return
        host.sleep(worked)
        target = bench if hasattr(Bench, name) else host
        try:
            more = () if out is None else (out,)
            result, failed = getattr(target, name)(*arguments, *more), False
        except KernelError as error:
            result, failed = error.args, True
        connection.send((host.monotonic(), host.cpu_times().system, failed, result, out))


if __name__ == "__main__":
    served = Bench(int(sys.argv[2]))
    link = Wire(socket.socket(fileno=int(sys.argv[1])))
    link.send("ready")
    serve(link, served)
