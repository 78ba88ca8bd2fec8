# SPDX-License-Identifier: Apache-2.0
"""Huge pages where much is free and nothing of it in one piece: the whole engine, simulated."""

from __future__ import annotations

import numpy as np
import pytest

from fakehost import MIB, machine, topology_of
from tierd.config import Config, Mode, Sampling, Workload
from tierd.engine import Engine
from tierd.host import Pfns, frames_from
from tierd.host.frames import FREE
from tierd.host.simulated import SimulatedHost
from tierd.movers import MoveResult
from tierd.movers.move_phys_pages import MovePhysPages
from tierd.planner import Direction, Moves
from tierd.samplers.page_idle import PageIdleSampler

HUGE, SMALL = {"2MiB": "100%"}, dict[str, str]()


def load(size: str, accesses: float, folios: dict[str, str]) -> Workload:
    return Workload(kind="uniform", size=size, accesses=accesses, folios=folios)


def host_of(*loads: Workload) -> SimulatedHost:
    """128 MiB fast, filled with what comes first, and 384 MiB slow; all of it is there to be
    used."""
    host = machine(fast="128MiB", slow="384MiB", workloads=loads, kernel_share=0.0)
    host.machine.reserve = lambda node: 0  # type: ignore[method-assign]
    return host


def frames_on(host: SimulatedHost, program: int, node: int) -> Pfns:
    """Frames that a program's pages are in, sorted."""
    own, frames = host.programs[program], host.machine.frames
    blocks = frames.of_node(node)
    ids = frames.rows(blocks)
    row, offset = np.nonzero((ids >= own.first) & (ids < own.first + own.pages))
    return (frames.start_of(blocks)[row] + offset).astype(np.uint64)


def break_up(host: SimulatedHost, program: int, node: int) -> None:
    """Nothing is free on a node but every second one of the frames of a program there."""
    frames = host.machine.frames
    frames.reserve(frames.free_blocks(node, frames.blocks))
    gone = frames_on(host, program, node)[::2]
    frames.put(gone, np.full(len(gone), FREE))


def engine_on(host: SimulatedHost) -> Engine:
    topology = topology_of(host)
    config = Config(version=1, mode=Mode.TIER, sampling=Sampling(cpu="100%"))
    sampler = PageIdleSampler(host, topology, config.sampling)
    return Engine(host, config, topology, [sampler], MovePhysPages(host))


def mib(host: SimulatedHost, program: int, node: int) -> float:
    return host.programs[program].resident.get(node, 0) * 4096 / MIB


def test_hot_huge_pages_take_the_place_of_cold_ones_where_free_room_is_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = host_of(load("32MiB", 1.0, HUGE), load("96MiB", 1e-6, SMALL), load("8MiB", 1e6, HUGE))
    break_up(host, 1, 0)
    engine = engine_on(host)
    move = MovePhysPages.move

    def onto_stale_heat(mover: MovePhysPages, moves: Moves, deadline: float) -> MoveResult:
        """Where a huge page comes to, small pages were known before."""
        result = move(mover, moves, deadline)
        here = np.sort(result.new_pfn[result.moved & (moves.pages > 1)])
        stale = frames_from(here + np.uint64(1), np.full(len(here), 511))
        engine._heat.observe(stale, np.zeros(len(stale), np.uint8))
        return result

    monkeypatch.setattr(MovePhysPages, "move", onto_stale_heat)
    vain = 0
    for cycle in range(20):
        report = engine.cycle()
        host.sleep(1.0)
        flows = [flow for flow in report.flows if flow.direction is Direction.PROMOTE]
        if cycle >= 10:
            vain += sum(flow.attempted - flow.moved for flow in flows)
    assert mib(host, 2, 0) == 8
    moved = frames_on(host, 2, 0)
    states = engine._heat.states(moved)
    assert np.flatnonzero(states).tolist() == np.flatnonzero(moved % np.uint64(512) == 0).tolist()
    assert vain == 0


def test_a_huge_page_that_finds_no_room_on_the_slow_node_is_left_alone_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = host_of(load("96MiB", 1e-6, HUGE), load("32MiB", 1e4, SMALL), load("200MiB", 1.0, SMALL))
    break_up(host, 2, 1)
    engine = engine_on(host)
    memory = host.node_memory()[0]
    assert memory.free < engine._config.migration.headroom.low * memory.total
    tried: list[int] = []
    move = MovePhysPages.move

    def noted(mover: MovePhysPages, moves: Moves, deadline: float) -> MoveResult:
        tried.extend(moves.pfn[moves.pages > 1].tolist())
        return move(mover, moves, deadline)

    monkeypatch.setattr(MovePhysPages, "move", noted)
    for _ in range(9):  # within the minimum residency
        engine.cycle()
        host.sleep(1.0)
    memory = host.node_memory()[0]
    assert memory.free >= engine._config.migration.headroom.low * memory.total
    assert mib(host, 0, 0) == 96
    assert len(tried) == len(set(tried)) > 0
