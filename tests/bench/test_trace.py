# SPDX-License-Identifier: Apache-2.0
"""What a trace takes on disk, and how near the truth a forecast is (docs/trace.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierd.config import Config, Mode, Sampling, SimulatedNode, Simulation, Workload
from tierd.engine import CycleReport, Engine
from tierd.host.simulated import SimulatedHost, VirtualClock
from tierd.movers.move_phys_pages import MovePhysPages
from tierd.planner import Direction
from tierd.recorder import begin
from tierd.replay import replay
from tierd.samplers.page_idle import PageIdleSampler
from tierd.topology import build
from tierd.trace.file import Reader

pytestmark = pytest.mark.bench

CASES = {
    "1 GiB, every page each second, zipf": (1, "100%", {"kind": "zipf", "accesses": 2e5}),
    "1 GiB, every page each second, 90/10": (
        1,
        "100%",
        {"kind": "hotset", "hot": "96MiB", "accesses": 2e5},
    ),
    "16 GiB, 3% of a core, zipf": (16, "3%", {"kind": "zipf", "accesses": 3e6}),
    "64 GiB, 3% of a core, zipf": (64, "3%", {"kind": "zipf", "accesses": 1e7}),
}


@pytest.mark.parametrize("name", CASES)
def test_size_of_a_trace(name: str, tmp_path: Path) -> None:
    size, cpu, load = CASES[name]
    spec = Simulation(
        nodes=(
            SimulatedNode(id=0, size=f"{size * 256}MiB", cpus=4, latency="0.0001ms"),
            SimulatedNode(id=1, size=f"{size * 1024}MiB", latency="0.0003ms"),
        ),
        workloads=(Workload.model_validate({"size": f"{size * 1000}MiB", **load}),),
    )
    host = SimulatedHost(spec, VirtualClock())
    config = Config(version=1, mode=Mode.OBSERVE, sampling=Sampling(cpu=cpu))
    topology = build(host.nodes(), None, 1)
    sampler = PageIdleSampler(host, topology, config.sampling)
    engine = Engine(host, config, topology, [sampler], None)
    engine.watcher = recorder = begin(host, topology, tmp_path / "t", config)
    marks = []
    began = host.monotonic()
    for cycle in range(120):
        engine.cycle()
        host.sleep(1.0)
        if cycle in (59, 119):
            marks.append((host.monotonic() - began, recorder.writer.size))
    recorder.close()
    with Reader(tmp_path / "t") as trace:
        looks = sum(len(look.pfn) for cycle in trace.cycles() for look in cycle.looks)
    (early, first), (late, both) = marks
    gib = size * 1000 / 1024
    rate = (both - first) / (late - early) * 3600 / gib / 2**20
    print(
        f"\n{name}: {rate:.1f} MiB per GiB and hour once settled, the first minute"
        f" {first / 2**20:.1f} MiB; {both * 8 / looks:.2f} bits per frame looked at"
    )
    assert both * 8 < 3 * looks + 8 * 120 * 1000, "more than a few bits per frame and window"


@pytest.mark.parametrize("folios", [{}, {"2MiB": "25%"}, {"64KiB": "50%", "2MiB": "25%"}], ids=str)
def test_forecast_beside_the_real_run(folios: dict[str, str], tmp_path: Path) -> None:
    """The same machine twice: recorded without a move, and with the policy at work."""
    spec = Simulation(
        nodes=(
            SimulatedNode(id=0, size="256MiB", cpus=2, latency="0.0001ms"),
            SimulatedNode(id=1, size="1GiB", latency="0.0003ms"),
        ),
        workloads=(
            Workload(kind="hotset", size="600MiB", hot="96MiB", accesses=1e5, folios=folios),
            Workload(kind="zipf", size="300MiB", accesses=1e5, folios=folios),
        ),
    )
    policy = Config(version=1, mode=Mode.TIER, sampling=Sampling(cpu="100%"))
    real = _Real()
    for mode in (Mode.OBSERVE, Mode.TIER):
        host = SimulatedHost(spec, VirtualClock())
        topology = build(host.nodes(), None, 1)
        sampler = PageIdleSampler(host, topology, policy.sampling)
        config = policy.model_copy(update={"mode": mode})
        engine = Engine(host, config, topology, [sampler], MovePhysPages(host))
        engine.watcher = recorder = begin(host, topology, tmp_path / mode.value, config)
        for _ in range(30):
            report = engine.cycle()
            host.sleep(1.0)
            real.add(report, mode)
        recorder.close()
    with Reader(tmp_path / "observe") as trace:
        (told,) = replay(trace.header, trace.cycles(), [policy]).outcomes
    print(
        f"\n{folios} in large folios: hit ratio foretold {told.last():.1%}, real"
        f" {real.hit_ratio:.1%}; promoted {told.total('promoted') >> 20} MiB, real"
        f" {real.promoted >> 20}; demoted {told.total('demoted') >> 20} MiB, real"
        f" {real.demoted >> 20}"
    )


class _Real:
    """What the run with the policy at work came to."""

    def __init__(self) -> None:
        self.hit_ratio = 0.0
        self.promoted = self.demoted = 0

    def add(self, report: CycleReport, mode: Mode) -> None:
        if mode is Mode.TIER:
            self.hit_ratio = report.hit_ratio or 0.0
            for flow in report.flows:
                if flow.direction is Direction.PROMOTE:
                    self.promoted += flow.moved * 4096
                else:
                    self.demoted += flow.moved * 4096
