# SPDX-License-Identifier: Apache-2.0
"""tierd itself as one of the policies: the engine on a machine whose pages lie in arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from tierd.config import Config, Headroom, Migration, Mode
from tierd.engine import CycleReport, Engine
from tierd.host import (
    KPF,
    Capability,
    Cgroup,
    CpuTimes,
    Feature,
    Node,
    NodeMemory,
    Pfns,
    Span,
)
from tierd.hotness import CHUNK
from tierd.movers import MoveResult
from tierd.planner import Moves
from tierd.policy import DOOR
from tierd.samplers import SampleBatch, SamplerStatus
from tierd.topology import build

from .references import Flags, Pages

PAGE = 4096


class Machine:
    """Host, sampler and mover: a fast and a slow node; `page[f]` is the page in frame f or -1."""

    page_size = PAGE
    name = "bench"

    def __init__(self, fast: Flags, frames: int) -> None:
        """`fast`: which pages begin in the fast node, which has `frames` frames."""
        pages = len(fast)
        self.sizes = (frames, pages + pages // 8)
        self.bases = (CHUNK, CHUNK * (2 + frames // CHUNK))
        self.page = [np.full(size, -1) for size in self.sizes]
        self.page[0][: fast.sum()] = np.flatnonzero(fast)
        self.page[1][: (~fast).sum()] = np.flatnonzero(~fast)
        self.accessed: Flags = np.zeros(pages, np.bool_)
        self.now = 0.0
        self.window = 1.0

    def capabilities(self) -> tuple[Capability, ...]:
        return tuple(Capability(feature, True, "bench") for feature in Feature)

    def nodes(self) -> tuple[Node, ...]:
        return tuple(
            Node(
                n,
                frozenset({0} if n == 0 else ()),
                (Span(n, self.bases[n], self.bases[n] + self.sizes[n]),),
                {0: 10, 1: 20},
            )
            for n in (0, 1)
        )

    def node_memory(self) -> tuple[NodeMemory, ...]:
        return tuple(
            NodeMemory(n, self.sizes[n] * PAGE, int((self.page[n] < 0).sum()) * PAGE, 0)
            for n in (0, 1)
        )

    def cgroups(self) -> tuple[Cgroup, ...]:
        return ()

    def _split(self, pfn: Pfns) -> tuple[np.ndarray, np.ndarray]:
        where = pfn.astype(np.int64)
        node = (where >= self.bases[1]).astype(np.int64)
        return node, where - np.array(self.bases)[node]

    def flags(self, pfn: Pfns) -> np.ndarray:
        node, at = self._split(pfn)
        used = np.zeros(len(pfn), np.bool_)
        for n in (0, 1):
            used[node == n] = self.page[n][at[node == n]] >= 0
        return np.where(used, np.uint64(KPF.LRU | KPF.ANON), np.uint64(KPF.BUDDY))

    def cgroup_inodes(self, pfn: Pfns) -> np.ndarray:
        return np.zeros(len(pfn), np.uint64)

    def pressure(self, cgroup: str = "") -> Mapping[str, float]:
        return {}

    def monotonic(self) -> float:
        return self.now

    def cpu_times(self) -> CpuTimes:
        return CpuTimes(0.0, 0.0)

    def sample(self, cpu_budget: float) -> Iterator[SampleBatch]:
        for n in (0, 1):
            at = np.flatnonzero(self.page[n] >= 0)
            for chunk in range(0, len(at), CHUNK):
                these = at[chunk : chunk + CHUNK]
                weight = self.accessed[self.page[n][these]].astype(np.uint8)
                pfn = (these + self.bases[n]).astype(np.uint64)
                yield SampleBatch("bench", pfn, weight, self.now - self.window, self.now)

    def status(self) -> SamplerStatus:
        return SamplerStatus("bench", self.window, 1.0, 1.0)

    def forget(self, pfn: Pfns) -> None:
        pass

    def close(self) -> None:
        pass

    def move(self, moves: Moves, deadline: float) -> MoveResult:
        node, at = self._split(moves.pfn)
        target = int(moves.target[0])
        source = 1 - target
        assert (node == source).all()
        free = np.flatnonzero(self.page[target] < 0)[: len(at)]
        assert len(free) == len(at), "a move was planned without room for it"
        self.page[target][free] = self.page[source][at]
        self.page[source][at] = -1
        self.moved = self.page[target][free]
        new = (free + self.bases[target]).astype(np.uint64)
        everything = np.ones(len(at), np.bool_)
        return MoveResult(moves, everything, moves.target, new, {}, 0.0)


class Tierd:
    """The decision core under test."""

    name = "tierd"

    def start(self, fast: Flags, capacity: int, limit: int) -> None:
        high = Headroom().high
        frames = int(np.ceil(capacity / (1 - high)))
        self.machine = Machine(fast, frames)
        policy = Config(
            version=1,
            mode=Mode.TIER,
            migration=Migration.model_validate(
                {"promote": f"{limit * PAGE}B/s", "demote": f"{limit * PAGE}B/s"}
            ),
        )
        topology = build(self.machine.nodes(), None, 1)
        machine = self.machine
        self.engine = Engine(machine, policy, topology, [machine], machine)  # type: ignore[arg-type]
        self.report: CycleReport | None = None
        self.fast = fast.copy()

    def step(self, accessed: Flags) -> tuple[Pages, Pages]:
        self.machine.accessed = accessed
        self.report = self.engine.cycle()
        self.machine.now += 1.0
        now = np.zeros(len(self.fast), np.bool_)
        now[self.machine.page[0][self.machine.page[0] >= 0]] = True
        promoted, demoted = np.flatnonzero(now & ~self.fast), np.flatnonzero(self.fast & ~now)
        self.fast = now
        return promoted, demoted

    @property
    def stopped(self) -> bool:
        """Whether the governor holds promotions back."""
        return bool(self.engine._thrash.stopped.any())

    def found(self, fresh: Pages) -> float:
        """Share of the pages `fresh` that are in the fast tier already, or among as many frames
        of the slow one that the planner would be offered first."""
        page = self.machine.page[1]
        waiting = np.isin(page, fresh)
        offered = self.engine._heat.search.hottest([1], 2 * int(waiting.sum()), looks=DOOR)
        slots = offered.pfn.astype(np.int64) - self.machine.bases[1]
        return 1 - float(waiting.sum() - waiting[slots].sum()) / len(fresh)
