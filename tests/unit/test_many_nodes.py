# SPDX-License-Identifier: Apache-2.0
"""More than two nodes: three tiers, distances, and nodes that must never be a target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakehost import in_folios
from tierd.config import Class, Config, Mode, Sampling, SimulatedNode, Simulation, Tier, Workload
from tierd.engine import CycleReport, Engine
from tierd.host import MoveOption, Node
from tierd.host.frames import FREE
from tierd.host.machine import Program
from tierd.host.simulated import SimulatedHost, VirtualClock
from tierd.movers import MoveResult
from tierd.movers.move_phys_pages import MovePhysPages
from tierd.planner import Direction, Moves
from tierd.samplers.page_idle import PageIdleSampler
from tierd.topology import build

FAST, NEAR, FAR = 0.0001, 0.00025, 0.0006
"""Latencies as the policy writes them, in ms."""

DISTANCES = {
    0: {0: 10, 1: 21, 2: 14, 3: 24},
    1: {0: 21, 1: 10, 2: 24, 3: 14},
    2: {0: 14, 1: 24, 2: 10, 3: 30},
    3: {0: 24, 1: 14, 2: 30, 3: 10},
}
"""Nodes 2 and 3 hang on the sockets of 0 and 1."""

TWO_AND_TWO = (Tier(name="dram", nodes=(0, 1)), Tier(name="cxl", nodes=(2, 3)))
THREE = (
    Tier(name="dram", nodes=(0, 1)),
    Tier(name="cxl", nodes=(2,)),
    Tier(name="far", nodes=(3,)),
)


class ManyNodes(SimulatedHost):
    """Nodes 0 to 3 with distances of their own."""

    def nodes(self) -> tuple[Node, ...]:
        return tuple(replace(node, distances=DISTANCES[node.id]) for node in super().nodes())


class Watched(MovePhysPages):
    """Remembers what it was asked to move since the last `clear`."""

    asked: list[Moves]
    flows: Counter[tuple[int, int]]

    def move(self, moves: Moves, deadline: float) -> MoveResult:
        self.asked.append(moves)
        result = super().move(moves, deadline)
        for pair in zip(
            moves.source[result.moved].tolist(), result.landed[result.moved].tolist(), strict=True
        ):
            self.flows[pair] += 1
        return result


def build_engine(
    sizes: Sequence[int],
    workloads: Sequence[Workload],
    tiers: Sequence[Tier] | None,
    *,
    classes: Sequence[Class] = (),
    seed: int = 1,
    folios: Mapping[str, str] | None = None,
    cpusets: Mapping[str, frozenset[int]] | None = None,
) -> tuple[ManyNodes, Engine, Watched]:
    """Nodes 0, 1 with CPUs, 2, 3 without; sizes in MiB. All frames are looked at each cycle."""
    spec = Simulation(
        nodes=tuple(
            SimulatedNode(
                id=node,
                size=f"{size}MiB",
                cpus=2 if node < 2 else 0,
                latency=f"{(FAST, FAST, NEAR, FAR)[node]:f}ms",
            )
            for node, size in enumerate(sizes)
        ),
        workloads=tuple(workloads if folios is None else in_folios(workloads, folios)),
        seed=seed,
    )
    host = ManyNodes(spec, VirtualClock(), cpusets=cpusets)
    config = Config(
        version=1,
        mode=Mode.TIER,
        classes=tuple(classes),
        sampling=Sampling(cpu="100%"),
        tiers=None if tiers is None else tuple(tiers),
    )
    topology = build(host.nodes(), config.tiers, 1)
    mover = Watched(host)
    mover.asked, mover.flows = [], Counter()
    sampler = PageIdleSampler(host, topology, config.sampling)
    return host, Engine(host, config, topology, [sampler], mover), mover


def run(host: SimulatedHost, engine: Engine, cycles: int) -> list[CycleReport]:
    reports = []
    for _ in range(cycles):
        reports.append(engine.cycle())
        host.sleep(1.0)
    return reports


def place(host: SimulatedHost, *nodes: int) -> None:
    """Put each program as a whole on a node, wherever it was."""
    for _ in range(3):  # one may have to leave before another has room
        for program, node in zip(host.programs, nodes, strict=True):
            mine = frames_of(host, program)
            here = host.machine.frames.node[host.machine.frames.locate(mine)].astype(np.int32)
            mine, here = mine[here != node], here[here != node]
            target = np.full(len(mine), node, np.int32)
            everywhere = [frozenset(range(4))] * len(host.programs)
            host.machine.move(mine, target, here, MoveOption.SHARED, everywhere)
    for program, node in zip(host.programs, nodes, strict=True):
        assert program.resident.get(node, 0) == program.pages


def all_frames(host: SimulatedHost) -> np.ndarray:
    spans = [span for node in host.nodes() for span in node.spans]
    return np.concatenate([np.arange(s.start, s.end, dtype=np.uint64) for s in spans])


def frames_of(host: SimulatedHost, program: Program) -> np.ndarray:
    frames = all_frames(host)
    ids = host.machine.frames.ids(frames)
    return frames[(ids >= program.first) & (ids < program.first + program.pages)]


def hot(size: str, accesses: float = 50e6, cgroup: str = "") -> Workload:
    return Workload(kind="uniform", size=size, accesses=accesses, cgroup=cgroup)


def test_pages_are_promoted_to_the_fast_node_that_is_nearest() -> None:
    host, engine, mover = build_engine((128, 128, 128, 128), (hot("32MiB"), hot("32MiB")), None)
    place(host, 2, 3)
    run(host, engine, 12)
    near = mover.flows[2, 0] + mover.flows[3, 1]
    assert near > 0
    assert mover.flows[2, 1] == mover.flows[3, 0] == 0
    assert host.programs[0].resident[0] > 0.95 * host.programs[0].pages
    assert host.programs[1].resident[1] > 0.95 * host.programs[1].pages


def test_when_the_nearest_fast_node_is_full_of_hotter_pages_the_other_one_is_taken() -> None:
    busy, guest, idle = hot("96MiB", 400e6), hot("32MiB"), hot("96MiB", 1e-6)
    host, engine, mover = build_engine((104, 104, 256, 64), (busy, idle, guest), TWO_AND_TWO)
    place(host, 0, 1, 2)
    run(host, engine, 20)
    assert mover.flows[2, 1] > 0
    assert host.programs[2].resident[1] > 0.9 * host.programs[2].pages
    assert host.programs[0].resident[0] > 0.9 * host.programs[0].pages


def test_pages_are_demoted_to_the_nearest_node_of_the_next_tier() -> None:
    cold = hot("124MiB", 1e-6)
    host, engine, mover = build_engine((128, 128, 128, 128), (cold, cold), TWO_AND_TWO)
    place(host, 0, 1)
    run(host, engine, 20)
    assert mover.flows[0, 2] > 0
    assert mover.flows[1, 3] > 0
    assert mover.flows[0, 3] == mover.flows[1, 2] == 0


def test_with_three_tiers_the_warm_middle_is_in_the_middle() -> None:
    """32 MiB hot, 64 MiB warm, 96 MiB idle; all begin in the wrong place."""
    loads = (hot("32MiB", 100e6), hot("64MiB", 3000.0), hot("96MiB", 1e-6))
    host, engine, _ = build_engine((24, 24, 96, 256), loads, THREE, folios={})
    place(host, 3, 3, 3)
    run(host, engine, 80)
    fast = host.programs[0].resident
    assert fast.get(0, 0) + fast.get(1, 0) > 0.95 * host.programs[0].pages
    warm = host.programs[1].resident
    assert warm.get(3, 0) < 0.2 * host.programs[1].pages
    assert warm.get(2, 0) > 0.65 * host.programs[1].pages
    assert host.programs[2].resident.get(3, 0) > 0.8 * host.programs[2].pages


@pytest.mark.parametrize(
    "tiers",
    [
        (Tier(name="dram", nodes=(0, 1), avoid=(1,)), *THREE[1:]),
        (Tier(name="dram", nodes=(0,)), Tier(name="other", nodes=(1,), target=False), *THREE[1:]),
    ],
    ids=["node", "tier"],
)
def test_a_node_that_must_never_be_a_target_is_left_but_never_entered(
    tiers: tuple[Tier, ...],
) -> None:
    loads = (hot("48MiB"), hot("124MiB", 1e-6))
    host, engine, mover = build_engine((64, 128, 128, 128), loads, tiers)
    place(host, 3, 1)
    run(host, engine, 20)
    assert all(target != 1 for _, target in mover.flows)
    assert mover.flows[3, 0] > 0
    assert sum(n for (source, _), n in mover.flows.items() if source == 1) > 0


def pages_in_use(host: SimulatedHost) -> np.ndarray:
    """Page ids in all frames, sorted."""
    ids = host.machine.frames.ids(all_frames(host))
    return np.sort(ids[ids > FREE])


def fast_pages(host: SimulatedHost, engine: Engine, cgroup: str) -> int:
    """Pages of a class in the fastest tier, as the machine has them."""
    fast = engine._topology.tiers[0].nodes
    mine = [program for program in host.programs if program.cgroup == cgroup]
    return sum(program.resident.get(node, 0) for program in mine for node in fast)


LOADS = st.lists(
    st.builds(
        Workload,
        kind=st.sampled_from(["zipf", "hotset", "uniform", "scan", "phase"]),
        size=st.sampled_from(["16MiB", "40MiB", "64MiB"]),
        hot=st.just("8MiB"),
        period=st.just("3s"),
        accesses=st.sampled_from([1e-6, 1e4, 1e6, 1e8]),
        cgroup=st.sampled_from(["", "a", "b"]),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.timeout(600)  # a dozen machines
@given(
    loads=LOADS,
    tiers=st.sampled_from(
        [None, TWO_AND_TWO, THREE, (Tier(name="dram", nodes=(0, 1), avoid=(0,)), *THREE[1:])]
    ),
    size=st.sampled_from([32, 64]),
    seed=st.integers(0, 2**16),
    folios=st.sampled_from([{}, {"2MiB": "50%"}, {"16KiB": "30%", "64KiB": "30%", "2MiB": "20%"}]),
)
@settings(max_examples=8)
def test_no_page_is_lost_or_moved_twice_and_floors_caps_and_room_hold(
    loads: list[Workload],
    tiers: tuple[Tier, ...] | None,
    size: int,
    seed: int,
    folios: dict[str, str],
) -> None:
    host, engine, mover = build_engine(
        (size, size, 128, 160),
        loads,
        tiers,
        classes=(Class(match="a", cap="8MiB"), Class(match="b", floor="8MiB")),
        seed=seed,
        folios=folios,
        cpusets={"a": frozenset({0, 2, 3})},
    )
    before = pages_in_use(host)
    assert len(np.unique(before)) == len(before)
    rank = {node: t for t, tier in enumerate(engine._topology.tiers) for node in tier.nodes}
    never = {node for tier in tiers or () for node in tier.avoid}
    for _ in range(8):
        mover.asked.clear()
        had = {name: fast_pages(host, engine, name) for name in "ab"}
        report = engine.cycle()
        has = {name: fast_pages(host, engine, name) for name in "ab"}
        assert has["a"] <= max(2048, had["a"]), "a class got beyond its cap"
        assert has["b"] >= min(2048, had["b"]), "a class was taken below its floor"
        host.sleep(1.0)
        asked = np.concatenate([np.zeros(0, np.uint64), *(m.pfn for m in mover.asked)])
        assert len(np.unique(asked)) == len(asked), "a folio was moved twice in a cycle"
        assert (pages_in_use(host) == before).all(), "pages were lost or doubled"
        for flow in report.flows:
            assert flow.target not in never
            down = rank[flow.target] > rank[flow.source]
            assert down == (flow.direction is Direction.DEMOTE)
        for room in host.node_memory():
            assert room.free >= 0
    assert mover.flows.keys().isdisjoint({(n, n) for n in rank})
