# SPDX-License-Identifier: Apache-2.0
"""The engine on a machine in arrays: what is hot ends up in the fast tier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from tierd.config import Class, Config, Migration, Mode
from tierd.engine import Engine, cycle
from tierd.engine.scout import _union
from tierd.host import (
    KPF,
    NO_PFN,
    Capability,
    Cgroup,
    CpuTimes,
    Feature,
    Node,
    NodeMemory,
    Pfns,
    Span,
)
from tierd.hotness import Candidates
from tierd.movers import MoveResult
from tierd.planner import Direction, Moves, Reason
from tierd.samplers import SampleBatch, SamplerStatus
from tierd.topology import build

FAST, SLOW = 0, 1


class Machine:
    """Two nodes of `frames` frames each; `page[f]` is the page in a frame, -1 when free.

    Host, sampler and mover in one: a look finds the pages in `hot` accessed.
    """

    page_size = 4096
    name = "fake"

    def __init__(self, frames: int = 4096, base: int = 512) -> None:
        self.frames, self.base = frames, base
        self.page = np.full(2 * frames, -1)
        self.cgroup = np.zeros(2 * frames, np.uint64)
        self.hot = np.zeros(2 * frames, bool)
        self.now = 0.0
        self.refuse: set[int] = set()
        self.groups: tuple[Cgroup, ...] = ()
        self.confirmed = 0
        self.forgotten: set[int] = set()
        self.looks = 0
        self.psi: dict[str, dict[str, float]] = {}

    def fill(self, node: int, count: int, first: int, cgroup: int = 0) -> None:
        """Put pages first..first+count-1 on a node."""
        free = np.flatnonzero(self.page[self._of(node)] < 0)[:count] + node * self.frames
        assert len(free) == count
        self.page[free] = np.arange(first, first + count)
        self.cgroup[free] = cgroup

    def _of(self, node: int) -> slice:
        return slice(node * self.frames, (node + 1) * self.frames)

    def on(self, node: int, pages: np.ndarray) -> int:
        return int(np.isin(self.page[self._of(node)], pages).sum())

    # Host
    def capabilities(self) -> tuple[Capability, ...]:
        return tuple(Capability(feature, True, "fake") for feature in Feature)

    def nodes(self) -> tuple[Node, ...]:
        span = [
            Span(n, self.base + n * self.frames, self.base + (n + 1) * self.frames) for n in (0, 1)
        ]
        return tuple(
            Node(n, frozenset({0} if n == 0 else ()), (span[n],), {0: 10, 1: 20}) for n in (0, 1)
        )

    def node_memory(self) -> tuple[NodeMemory, ...]:
        size = self.frames * 4096
        free = [int((self.page[self._of(n)] < 0).sum()) * 4096 for n in (0, 1)]
        return tuple(NodeMemory(n, size, free[n], 0) for n in (0, 1))

    def cgroups(self) -> tuple[Cgroup, ...]:
        return self.groups

    def flags(self, pfn: Pfns) -> np.ndarray:
        used = self.page[pfn.astype(int) - self.base] >= 0
        return np.where(used, np.uint64(KPF.LRU | KPF.ANON), np.uint64(KPF.BUDDY))

    def cgroup_inodes(self, pfn: Pfns) -> np.ndarray:
        return self.cgroup[pfn.astype(int) - self.base]

    def cgroup_memory(self, path: str) -> Mapping[int, int]:
        return {}  # so that owners are drawn

    def pressure(self, cgroup: str = "") -> Mapping[str, float]:
        return self.psi.get(cgroup, {})

    def monotonic(self) -> float:
        return self.now

    def cpu_times(self) -> CpuTimes:
        return CpuTimes(0.0, 0.0)

    # Sampler
    def sample(self, cpu_budget: float) -> Iterator[SampleBatch]:
        self.looks += 1
        if self.looks == 1:
            return  # only marks
        at = np.flatnonzero(self.page >= 0)
        weight = self.hot[self.page[at]].astype(np.uint8)
        yield SampleBatch("fake", (at + self.base).astype(np.uint64), weight, 0, 1)

    def status(self) -> SamplerStatus:
        return SamplerStatus("fake", 1.0, 1.0, 1.0, confirmed=self.confirmed)

    def forget(self, pfn: Pfns) -> None:
        self.forgotten |= set(pfn.tolist())

    def close(self) -> None:
        self.looks = -1

    # Mover
    def move(self, moves: Moves, deadline: float) -> MoveResult:
        n = len(moves.pfn)
        moved, new = np.zeros(n, bool), np.full(n, NO_PFN)
        landed = moves.source.copy()
        failed = {Reason.BUSY: 0}
        for i, (pfn, target) in enumerate(zip(moves.pfn, moves.target, strict=True)):
            old = int(pfn) - self.base
            assert self.page[old] >= 0
            assert old // self.frames == moves.source[i]
            free = np.flatnonzero(self.page[self._of(int(target))] < 0)
            assert len(free), "a move was started without room for it"
            if self.page[old] in self.refuse:
                failed[Reason.BUSY] += 1
                continue
            there = int(free[0]) + int(target) * self.frames
            self.page[there], self.page[old] = self.page[old], -1
            self.cgroup[there], self.cgroup[old] = self.cgroup[old], 0
            moved[i], landed[i], new[i] = True, target, there + self.base
        return MoveResult(moves, moved, landed, new, failed, 0.0)


def engine_for(machine: Machine, **config: object) -> Engine:
    migration = Migration.model_validate(config.pop("migration", {}))
    policy = Config(version=1, mode=Mode.TIER, migration=migration).model_copy(update=config)
    topology = build(machine.nodes(), None, 1)
    return Engine(machine, policy, topology, [machine], machine)  # type: ignore[arg-type]


def run(engine: Engine, machine: Machine, cycles: int) -> list:
    reports = []
    for _ in range(cycles):
        reports.append(engine.cycle())
        machine.now += 1.0
    return reports


def moved(reports: list, direction: Direction) -> int:
    return sum(f.moved for r in reports for f in r.flows if f.direction is direction)


def test_hot_pages_are_promoted_into_free_room_and_the_rest_stays() -> None:
    machine = Machine()
    machine.fill(SLOW, 1600, 0)
    machine.hot[:256] = True
    engine = engine_for(machine)
    reports = run(engine, machine, 4)
    assert machine.on(FAST, np.arange(256)) == 256
    assert moved(reports, Direction.PROMOTE) == 256
    assert moved(reports, Direction.DEMOTE) == 0


def test_what_was_seen_while_decisions_waited_is_not_forgotten() -> None:
    machine = Machine()
    machine.fill(SLOW, 1600, 0)
    engine = engine_for(machine)
    run(engine, machine, 4)  # nothing is hot: there is nothing to plan before something is seen
    machine.hot[:256] = True
    engine._budget._decisions = 1e9
    run(engine, machine, 1)  # accessed once
    assert all(report.deferred for report in run(engine, machine, 4))
    engine._budget._decisions = 0.0
    machine.sample = lambda cpu_budget: iter(())  # type: ignore[method-assign]
    run(engine, machine, 2)
    assert machine.on(FAST, np.arange(256)) == 256


def test_a_frame_that_was_drawn_twice_is_one_candidate() -> None:
    drawn = Candidates(np.array([7, 3, 7, 5], np.uint64), np.array([1, 2, 1, 4], np.uint16))
    found = _union([drawn])
    assert found.pfn.tolist() == [3, 5, 7]
    assert found.state.tolist() == [2, 4, 1]


def test_samplers_are_told_of_candidates_that_are_free() -> None:
    """Free frames read as accessed."""
    machine = Machine()
    machine.fill(SLOW, 1600, 0)
    machine.hot[:256] = True
    engine = engine_for(machine)
    engine._budget._decisions = 1e9  # no decisions yet
    run(engine, machine, 4)
    freed = np.flatnonzero(machine.page[machine.frames :] < 256)[:256] + machine.frames
    machine.page[freed] = -1
    engine._budget._decisions = 0.0
    machine.sample = lambda cpu_budget: iter(())  # type: ignore[method-assign]
    (report,) = run(engine, machine, 1)
    assert machine.forgotten == set((freed + machine.base).tolist())
    assert report.skipped[Direction.PROMOTE, Reason.STALE] == 256


def test_heat_of_frames_that_a_source_calls_gone_is_forgotten() -> None:
    machine = Machine()
    machine.fill(SLOW, 1600, 0)
    engine = engine_for(machine, mode=Mode.OBSERVE)
    run(engine, machine, 4)
    here = (np.flatnonzero(machine.page >= 0) + machine.base).astype(np.uint64)
    assert np.all(engine._heat.states(here) > 0)
    none, gone = here[:0], here[:100]
    weight = np.zeros(0, np.uint8)
    machine.sample = lambda _: iter([SampleBatch("fake", none, weight, 0, 1, gone=gone)])  # type: ignore[method-assign]
    known = engine._heat.histogram((SLOW,))[0]
    run(engine, machine, 1)
    assert not engine._heat.states(gone).any()
    assert np.all(engine._heat.states(here[100:]) > 0)
    assert engine._heat.histogram((SLOW,))[0] == known + 100


def test_what_is_repeated_counts_for_heat_but_is_no_look() -> None:
    machine = Machine()
    machine.fill(SLOW, 1600, 0)
    engine = engine_for(machine, mode=Mode.OBSERVE)
    run(engine, machine, 4)
    some = (np.flatnonzero(machine.page >= 0)[:100] + machine.base).astype(np.uint64)
    before = engine._heat.states(some)
    again = SampleBatch(
        "fake", some, np.ones(100, np.uint8), 0, 1, cold_evidence=False, repeated=True
    )
    machine.sample = lambda _: iter([again])  # type: ignore[method-assign]
    (report,) = run(engine, machine, 1)
    assert np.all(engine._heat.states(some) > before)
    assert sum(each.looked for each in report.samplers) == 0
    assert sum(tier.accessed_frames for tier in report.tiers) == 0


def test_what_has_just_been_found_is_decided_on_credit() -> None:
    machine = Machine()
    machine.fill(SLOW, 1600, 0)
    machine.hot[:256] = True
    engine = engine_for(machine)
    engine._budget._decisions = 4 * engine._budget._part
    assert all(report.deferred for report in run(engine, machine, 4))
    assert engine._budget._decisions > 1.5 * engine._budget._part
    machine.confirmed = 1
    (report,) = run(engine, machine, 1)
    assert not report.deferred
    assert machine.on(FAST, np.arange(256)) == 256


def test_a_shifted_hot_set_is_followed_within_three_cycles() -> None:
    machine = Machine()
    machine.fill(FAST, 3900, 2000)
    machine.fill(SLOW, 1600, 0)
    machine.hot[:256] = True
    engine = engine_for(machine)
    run(engine, machine, 12)
    assert machine.on(FAST, np.arange(256)) >= 244
    machine.hot[:] = False
    machine.hot[256:512] = True
    reports = run(engine, machine, 3)
    assert machine.on(FAST, np.arange(256, 512)) >= 244
    assert moved(reports, Direction.PROMOTE) <= 1.05 * 256


def test_a_single_access_promotes_nothing() -> None:
    machine = Machine()
    machine.fill(SLOW, 1600, 0)
    engine = engine_for(machine)
    run(engine, machine, 4)
    machine.hot[:] = True
    reports = run(engine, machine, 1)
    machine.hot[:] = False
    reports += run(engine, machine, 6)
    assert moved(reports, Direction.PROMOTE) == 0


def test_headroom_is_restored_from_the_coldest() -> None:
    machine = Machine()
    machine.fill(FAST, 4090, 0)
    machine.hot[:2000] = True
    engine = engine_for(machine)
    reports = run(engine, machine, 8)
    free = machine.node_memory()[FAST].free
    assert reports[-1].tiers[0].headroom_low <= free <= reports[-1].tiers[0].headroom_high + 4096
    assert machine.on(FAST, np.arange(2000)) == 2000


def test_under_pressure_less_is_moved_and_what_stays_is_counted() -> None:
    machine = Machine()
    machine.fill(SLOW, 1600, 0)
    machine.hot[:1024] = True
    limits = {"promote": "1MiB/s", "back_off": {"memory": "10%"}}
    engine = engine_for(machine, migration=limits)
    machine.psi[""] = {"memory": 0.5}
    reports = run(engine, machine, 6)
    assert [report.back_off for report in reports] == [0.5, 0.75, 0.875, *[0.9375] * 3]
    assert reports[-1].back_off_causes == ("memory",)
    assert moved(reports[-1:], Direction.PROMOTE) == 16  # 1/16 of 256 pages
    assert reports[-1].skipped[Direction.PROMOTE, Reason.PRESSURE] > 0
    assert not reports[-1].skipped.get((Direction.PROMOTE, Reason.BUDGET))
    machine.psi[""] = {"memory": 0.01}
    reports = run(engine, machine, 14)
    assert reports[-1].back_off == 0
    assert machine.on(FAST, np.arange(1024)) == 1024


def test_the_pressure_of_a_cgroup_counts_where_the_policy_names_one() -> None:
    machine = Machine()
    machine.fill(SLOW, 100, 0)
    machine.psi = {"": {"cpu": 0.9}, "db": {"cpu": 0.2}}
    of = {"back_off": {"cpu": "50%", "cgroup": "db"}}
    engine = engine_for(machine, migration=of)
    assert run(engine, machine, 1)[0].back_off == 0
    machine.psi["db"] = {"cpu": 0.6}
    report = run(engine, machine, 1)[0]
    assert (report.back_off_causes, report.degraded) == (("cpu",), ())
    del machine.psi["db"]
    (reason,) = run(engine, machine, 1)[0].degraded
    assert "cgroup db" in reason


def test_a_page_stays_for_the_minimum_residency() -> None:
    """Its program stops using it at once, and others want its place."""
    machine = Machine()
    machine.fill(FAST, 3900, 2000)
    machine.fill(SLOW, 1600, 0)
    machine.hot[:256] = True
    engine = engine_for(machine, migration={"min_residency": "8s"})
    run(engine, machine, 4)
    assert machine.on(FAST, np.arange(256)) == 256
    promoted = machine.now
    machine.hot[:] = False
    machine.hot[2000:] = True
    machine.hot[512:1024] = True
    kept = []
    while machine.now < promoted + 20:
        run(engine, machine, 1)
        kept.append((machine.now, machine.on(FAST, np.arange(256))))
    # The first of them came two cycles before `promoted` at the earliest.
    assert all(count == 256 for when, count in kept if when <= promoted + 8 - 3)
    assert kept[-1][1] < 256


def test_a_move_the_kernel_refuses_is_counted_once_under_its_reason() -> None:
    machine = Machine()
    machine.fill(SLOW, 100, 0)
    machine.hot[:10] = True
    machine.refuse = {3, 4}
    engine = engine_for(machine)
    reports = run(engine, machine, 3)
    assert machine.on(FAST, np.arange(10)) == 8
    assert reports[-1].kernel_refused[Direction.PROMOTE, Reason.BUSY] == 2
    assert reports[-1].skipped[Direction.PROMOTE, Reason.BUSY] == 2


@pytest.mark.parametrize("mode", ["observe", "paused"])
def test_nothing_moves_but_the_plan_is_told(mode: str) -> None:
    machine = Machine()
    machine.fill(SLOW, 100, 0)
    machine.hot[:10] = True
    engine = engine_for(machine, mode=Mode.OBSERVE if mode == "observe" else Mode.TIER)
    for _ in range(4):
        report = engine.cycle(paused=mode == "paused")
        machine.now += 1
    assert report.mode == mode
    assert [(f.attempted, f.moved) for f in report.flows] == [(10, 0)]
    assert machine.on(FAST, np.arange(10)) == 0


def test_a_cpuset_that_forbids_the_fast_node_is_respected_and_counted() -> None:
    machine = Machine()
    machine.groups = (Cgroup(7, "a", frozenset({1})), Cgroup(8, "b", frozenset({0, 1})))
    machine.fill(SLOW, 50, 0, cgroup=7)
    machine.fill(SLOW, 50, 50, cgroup=8)
    machine.hot[:100] = True
    engine = engine_for(machine)
    reports = run(engine, machine, 4)
    assert machine.on(FAST, np.arange(50)) == 0
    assert machine.on(FAST, np.arange(50, 100)) == 50
    assert reports[-1].skipped[Direction.PROMOTE, Reason.CPUSET] == 50


def test_a_class_keeps_its_cap_and_never_is_kept() -> None:
    machine = Machine()
    machine.groups = (
        Cgroup(7, "capped", frozenset({0, 1})),
        Cgroup(8, "still", frozenset({0, 1})),
    )
    machine.fill(SLOW, 500, 0, cgroup=7)
    machine.fill(SLOW, 500, 500, cgroup=8)
    machine.hot[:1000] = True
    classes = (
        Class.model_validate({"match": "capped", "cap": "1MiB"}),
        Class.model_validate({"match": "still", "never": ["promote"]}),
    )
    engine = engine_for(machine, classes=classes)
    reports = run(engine, machine, 6)
    assert 240 <= machine.on(FAST, np.arange(500)) <= 300
    assert machine.on(FAST, np.arange(500, 1000)) == 0
    assert reports[2].skipped[Direction.PROMOTE, Reason.NEVER] == 500
    assert reports[2].skipped[Direction.PROMOTE, Reason.LIMIT] == 500 - 256


def test_explain_tells_looks_and_verdict() -> None:
    machine = Machine()
    machine.fill(SLOW, 100, 0)
    machine.hot[:10] = True
    engine = engine_for(machine, mode=Mode.OBSERVE)
    run(engine, machine, 4)
    frame = machine.base + machine.frames
    assert engine.explain(frame).looks == ".AAA"
    assert engine.explain(frame).verdict.startswith("promoted")
    assert engine.explain(frame + 50).verdict.startswith("stays")
    assert not engine.explain(frame + 2000).known
    assert engine.explain(frame + 2000).neighbours == 1.0
    assert engine.explain(1).tier == ""


def test_explain_tells_what_neighbours_make_of_what_may_be_promoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()
    machine.fill(FAST, 100, 0)
    machine.fill(SLOW, 100, 100)
    machine.hot[:] = True
    engine = engine_for(machine, mode=Mode.OBSERVE)
    run(engine, machine, 4)
    monkeypatch.setattr(engine._heat, "neighbours", lambda pfn, state: np.full(len(pfn), 1e-9))
    slow = engine.explain(machine.base + machine.frames)
    assert slow.neighbours == 1e-9
    assert slow.verdict == "promoted if there is free room: colder than the threshold"
    assert engine.explain(machine.base).neighbours == 1.0


class Spends(Machine):
    """Sampling takes all the CPU time that it is given."""

    used = 0.0

    def cpu_times(self) -> CpuTimes:
        return CpuTimes(self.used, 0.0)

    def sample(self, cpu_budget: float) -> Iterator[SampleBatch]:
        self.used += cpu_budget
        return super().sample(cpu_budget)


class Bursts(Spends):
    """Every tenth cycle reading the nodes takes 0.1 s."""

    waiting = 0.0

    def node_memory(self) -> tuple[NodeMemory, ...]:
        self.used, self.waiting = self.used + self.waiting, 0.0
        return super().node_memory()

    def sample(self, cpu_budget: float) -> Iterator[SampleBatch]:
        self.waiting = 0.1 if self.looks % 10 == 0 else 0.0
        return super().sample(cpu_budget)


def test_the_cpu_share_holds_though_upkeep_comes_in_bursts() -> None:
    machine = Bursts(frames=64)
    engine = engine_for(machine)
    run(engine, machine, 20)
    begun = machine.used
    run(engine, machine, 200)
    assert 0.9 * 0.03 < (machine.used - begun) / 200 <= 1.02 * 0.03


def test_the_cpu_share_holds_though_decisions_are_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Spends(frames=64)
    machine.fill(SLOW, 32, 0)
    machine.hot[:8] = True
    engine = engine_for(machine, mode=Mode.OBSERVE)
    candidates = engine._scout.candidates

    def dear(*args: object, **keys: object) -> object:
        machine.used += 0.1
        return candidates(*args, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._scout, "candidates", dear)
    run(engine, machine, 20)
    begun = machine.used
    reports = run(engine, machine, 400)
    assert 0.9 * 0.03 < (machine.used - begun) / 400 <= 1.03 * 0.03
    # Half of the share at most: one in seven cycles.
    assert 0.8 < np.mean([report.deferred for report in reports]) < 0.95


def test_nothing_is_planned_while_nothing_on_the_slow_node_is_accessed_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()
    machine.fill(FAST, 2000, 2000)
    machine.fill(SLOW, 1600, 0)
    machine.hot[2000:3000] = True
    engine = engine_for(machine)
    run(engine, machine, 6)
    asked = []
    candidates = engine._scout.candidates
    monkeypatch.setattr(
        engine._scout,
        "candidates",
        lambda *args, **keys: asked.append(args) or candidates(*args, **keys),
    )
    run(engine, machine, 4)
    assert not asked
    for accessed in (True, False, False, False, False):  # once is not enough
        machine.hot[:100] = accessed
        run(engine, machine, 1)
    assert not asked
    machine.hot[:100] = True
    run(engine, machine, 3)
    assert asked
    assert machine.on(FAST, np.arange(100)) == 100
    machine.hot[3000:3100] = True
    machine.sample = lambda cpu_budget: iter(())  # type: ignore[method-assign]
    engine.reconfigure(engine._config)
    asked.clear()
    run(engine, machine, 1)
    assert asked  # another policy may allow what this one does not


@pytest.mark.parametrize("planned", [True, False], ids=["planned", "put off"])
def test_the_end_of_what_was_wanted_is_seen_whether_or_not_anything_is_planned(
    planned: bool,
) -> None:
    machine = Machine()
    machine.fill(SLOW, 1600, 0)
    machine.hot[:256] = True
    engine = engine_for(machine)
    run(engine, machine, 8)
    assert machine.on(FAST, np.arange(256)) == 256
    assert len(engine._scout._wanted[0])
    told = []
    update = engine._thrash.update
    engine._thrash.update = lambda *args: told.append(args[-1]) or update(*args)  # type: ignore
    run(engine, machine, 1)
    if not planned:
        engine._budget._decisions = 1e9
    machine.hot[:] = False
    run(engine, machine, 1)
    assert [persists.tolist() for persists in told] == [[True], [False]]


def test_without_looks_nothing_is_decided_anew_unless_room_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()
    machine.fill(FAST, 3900, 0)
    engine = engine_for(machine)
    run(engine, machine, 8)
    machine.sample = lambda cpu_budget: iter(())  # type: ignore[method-assign]
    run(engine, machine, 2)
    decided = []
    original = cycle.decide
    monkeypatch.setattr(
        cycle, "decide", lambda *args, **keys: decided.append(args) or original(*args, **keys)
    )
    run(engine, machine, 3)
    assert not decided
    free = machine.node_memory()[FAST].free // machine.page_size
    machine.fill(FAST, free, 4000)
    (report,) = run(engine, machine, 1)
    assert decided
    assert moved([report], Direction.DEMOTE) > 0


class Slow(Spends):
    """Reading the nodes takes 0.025 s in every cycle, of a share of 0.03; nothing is looked at
    before 0.01 s can be paid."""

    def node_memory(self) -> tuple[NodeMemory, ...]:
        self.used += 0.025
        return super().node_memory()

    def sample(self, cpu_budget: float) -> Iterator[SampleBatch]:
        return super().sample(cpu_budget) if cpu_budget >= 0.01 else iter(())


def test_a_host_on_which_a_cycle_takes_nearly_all_of_the_share_is_tiered() -> None:
    machine = Slow()
    machine.fill(SLOW, 1600, 0)
    machine.hot[:256] = True
    engine = engine_for(machine)
    reports = run(engine, machine, 60)
    assert machine.on(FAST, np.arange(256)) == 256
    machine.hot[:] = False
    machine.hot[256:512] = True
    reports = run(engine, machine, 60)
    assert machine.on(FAST, np.arange(256, 512)) == 256
    assert not any(report.deferred for report in reports)


def test_making_forecasts_comes_out_of_the_cpu_share(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Bursts(frames=64)
    engine = engine_for(machine)
    tick = engine._heat.tick

    def slow(cooling: float = 0.0, heating: float = 0.0) -> None:
        machine.used += 0.003
        tick(cooling, heating)

    monkeypatch.setattr(engine._heat, "tick", slow)
    run(engine, machine, 20)
    begun = machine.used
    run(engine, machine, 200)
    assert 0.9 * 0.03 < (machine.used - begun) / 200 <= 1.02 * 0.03
