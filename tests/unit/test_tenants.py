# SPDX-License-Identifier: Apache-2.0
"""Two tenants on a simulated host, told apart by kpagecgroup: floors, caps, never and excluded
hold against a noisy neighbour, by what the machine says and not by tierd's own estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from fakehost import MIB, machine, topology_of
from tierd.config import Class, Config, Mode, Sampling, Workload
from tierd.engine import CycleReport, Engine
from tierd.engine.owners import _terms
from tierd.host.machine import Program
from tierd.host.simulated import SimulatedHost
from tierd.movers.move_phys_pages import MovePhysPages
from tierd.planner import Direction, Reason
from tierd.samplers.page_idle import PageIdleSampler

QUIET = "tenants/quiet"
NOISY = "tenants/noisy"

LOADS = (
    # In fast memory at first, and rarely used.
    Workload(kind="uniform", size="100MiB", accesses=200, cgroup=f"{QUIET}/app"),
    # All of it hotter than anything of the quiet one, and twice what the fast tier holds.
    Workload(kind="zipf", size="256MiB", accesses=3e6, cgroup=f"{NOISY}/app"),
)


@dataclass
class Host:
    host: SimulatedHost
    engine: Engine
    reports: list[CycleReport]

    @property
    def quiet(self) -> Program:
        return self.host.programs[0]

    @property
    def noisy(self) -> Program:
        return self.host.programs[1]

    def run(self, cycles: int) -> None:
        for _ in range(cycles):
            self.reports.append(self.engine.cycle())
            self.host.sleep(1.0)

    def skipped(self, direction: Direction, reason: Reason) -> int:
        return sum(report.skipped.get((direction, reason), 0) for report in self.reports)


def build(*classes: Class, folios: Mapping[str, str] | None = None) -> Host:
    host = machine(fast="128MiB", slow="384MiB", workloads=LOADS, folios=folios or {})
    topology = topology_of(host)
    config = Config(
        version=1, mode=Mode.TIER, sampling=Sampling(cpu="100%"), classes=tuple(classes)
    )
    sampler = PageIdleSampler(host, topology, config.sampling)
    return Host(host, Engine(host, config, topology, [sampler], MovePhysPages(host)), [])


def mib(program: Program, node: int) -> float:
    return program.resident.get(node, 0) * 4096 / MIB


def test_without_classes_the_noisy_one_takes_it_all() -> None:
    """What the others are measured by."""
    here = build()
    assert mib(here.quiet, 0) == 100
    here.run(30)
    assert mib(here.quiet, 0) < 20
    assert mib(here.noisy, 0) > 100


@pytest.mark.parametrize("folios", [{}, {"2MiB": "50%"}, {"64KiB": "100%"}], ids=str)
def test_a_floor_holds_against_a_noisy_neighbour(folios: dict[str, str]) -> None:
    here = build(Class(match=QUIET, floor="64MiB"), Class(match=NOISY), folios=folios)
    here.run(30)
    assert mib(here.quiet, 0) >= 64
    assert mib(here.noisy, 0) > 0.8 * (122 - 64)
    assert here.skipped(Direction.DEMOTE, Reason.LIMIT) == 0  # not chosen, rather than refused
    report = next(each for each in here.reports[-1].classes if each.match == QUIET)
    assert report.resident["tier0"] == mib(here.quiet, 0) * MIB


def test_a_floor_holds_roughly_where_the_kernel_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without memory.numa_stat what a class has is estimated from a sample of owners."""
    monkeypatch.setattr(SimulatedHost, "cgroup_memory", lambda host, path: {})
    here = build(Class(match=QUIET, floor="64MiB"), Class(match=NOISY))
    here.run(30)
    assert mib(here.quiet, 0) >= 0.9 * 64


def test_memory_of_nested_classes_is_counted_once() -> None:
    classes = {"": -1, "a": 0, "a/x": 0, "a/y": 1, "a/y/z": 1, "a/y/z/w": 0, "b": -1, "b/c": 1}
    assert sorted(_terms(classes)) == [
        ("a", 0, 1),
        ("a/y", 0, -1),
        ("a/y", 1, 1),
        ("a/y/z/w", 0, 1),
        ("a/y/z/w", 1, -1),
        ("b/c", 1, 1),
    ]


def test_the_floor_is_for_the_hottest_of_the_class() -> None:
    """Whoever is protected still exchanges with itself."""
    here = build(Class(match=QUIET, floor="50MiB"))
    here.run(10)
    pages = here.quiet.pages
    hot = np.arange(pages - 2560, pages)  # 10 MiB that were demoted among others

    class Changed:
        def rates(self, index: np.ndarray, now: float) -> np.ndarray:
            return np.where(np.isin(index, hot), 50.0, 0.01)

        def expected(self, index: np.ndarray, since: np.ndarray, now: float) -> np.ndarray:
            return self.rates(index, now) * (now - since)

    here.quiet.pattern = Changed()
    here.run(25)
    assert mib(here.quiet, 0) >= 50
    frames = np.concatenate(
        [np.arange(s.start, s.end, dtype=np.uint64) for s in here.host.machine.nodes[0].spans]
    )
    ids = here.host.machine.frames.ids(frames) - here.quiet.first
    assert np.isin(hot, ids).mean() > 0.9


def test_a_cap_holds_however_hot_the_class_is() -> None:
    here = build(Class(match=QUIET), Class(match=NOISY, cap="40MiB"))
    here.run(30)
    assert mib(here.noisy, 0) <= 1.05 * 40
    assert mib(here.quiet, 0) > 122 - 40 - 8  # it loses no more than its neighbour may have
    assert here.skipped(Direction.PROMOTE, Reason.LIMIT) > 0


def test_a_cap_that_is_set_later_is_enforced() -> None:
    here = build()
    here.run(30)
    before = mib(here.noisy, 0)
    assert before > 100
    config = Config(
        version=1,
        mode=Mode.TIER,
        sampling=Sampling(cpu="100%"),
        classes=(Class(match=NOISY, cap="40MiB"),),
    )
    here.engine.reconfigure(config)
    here.run(15)
    assert mib(here.noisy, 0) <= 1.05 * 40


def test_never_demote_keeps_all_that_is_there() -> None:
    here = build(Class(match=QUIET, never=("demote",)))
    here.run(20)
    assert mib(here.quiet, 0) == 100
    assert here.skipped(Direction.DEMOTE, Reason.NEVER) > 0


def test_never_promote_keeps_out() -> None:
    here = build(Class(match=NOISY, never=("promote",)))
    first = mib(here.noisy, 0)
    here.run(15)
    assert mib(here.noisy, 0) <= first
    assert here.skipped(Direction.PROMOTE, Reason.NEVER) > 0


def test_who_is_excluded_is_not_touched() -> None:
    here = build(Class(match=NOISY, excluded=True))
    before = dict(here.noisy.resident)
    here.run(15)
    assert here.noisy.resident == before
    assert here.skipped(Direction.PROMOTE, Reason.EXCLUDED) > 0


def test_weight_shares_a_fast_tier_that_both_want() -> None:
    """Two programs alike; the one with four times the weight has most of the fast tier."""
    loads = tuple(
        Workload(kind="zipf", size="128MiB", skew=0.8, accesses=20_000, cgroup=name)
        for name in "ab"
    )
    host = machine(fast="64MiB", slow="384MiB", workloads=loads, folios={})
    topology = topology_of(host)
    config = Config(
        version=1,
        mode=Mode.TIER,
        sampling=Sampling(cpu="100%"),
        classes=(Class(match="b", weight=400), Class(match="a", weight=100)),
    )
    sampler = PageIdleSampler(host, topology, config.sampling)
    engine = Engine(host, config, topology, [sampler], MovePhysPages(host))
    here = Host(host, engine, [])
    here.run(40)
    assert mib(host.programs[1], 0) > 1.5 * mib(host.programs[0], 0)


@pytest.mark.parametrize("before", [(), (Class(match=QUIET, floor="48MiB"),)], ids=len)
def test_other_classes_take_effect_while_decisions_are_put_off(before: tuple[Class, ...]) -> None:
    here = build(*before)
    here.run(5)
    here.engine._budget.decided(30.0)
    after = (Class(match=QUIET, floor="32MiB"), Class(match=NOISY, cap="64MiB"))
    config = here.engine._config.model_copy(update={"classes": after[: 2 - 2 * len(before)]})
    here.engine.reconfigure(config)
    here.run(5)
    assert all(report.deferred for report in here.reports[-5:])
    here.engine._budget._decisions = 0.0
    here.run(5)
    assert not here.reports[-1].deferred
    assert len(here.reports[-1].classes) == len(config.classes)
