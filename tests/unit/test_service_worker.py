# SPDX-License-Identifier: Apache-2.0
"""The worker on a simulated host with a virtual clock: cadence, failures, hot-plug, rivals."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tierd import assembly, config, worker
from tierd.config import Simulation
from tierd.control import Verb
from tierd.engine import CycleReport, Engine
from tierd.host import ForeignTierer, KernelError, Node, NodeMemory
from tierd.host.simulated import SimulatedHost, VirtualClock
from tierd.journal import Event
from tierd.metrics import Exporter
from tierd.notify import Notifier
from tierd.pace import HostPace
from tierd.state import Reload, State, status, top
from tierd.trace.file import Reader
from tierd.worker import MAX_FAILURES, Stopping, Worker

POLICY = """\
version: 1
mode: tier
conflicts: {numa_balancing: refuse}
simulation:
  nodes:
    - {id: 0, size: 8MiB, cpus: 1, latency: 0.0001ms}
    - {id: 1, size: 8MiB, latency: 0.0003ms}
    - {id: 2, size: 8MiB, latency: 0.0003ms}
  workloads: [{kind: hotset, size: 4MiB, hot: 1MiB}]
"""


class Plug(SimulatedHost):
    """A host whose last node can be unplugged, and that can be slow or fail."""

    unplugged = False
    error: Exception | None = None
    delay = 0.0

    def nodes(self) -> tuple[Node, ...]:
        every = super().nodes()
        return every[:-1] if self.unplugged else every

    def node_memory(self) -> tuple[NodeMemory, ...]:
        every = super().node_memory()
        return every[:-1] if self.unplugged else every

    def pressure(self, cgroup: str = "") -> Mapping[str, float]:
        # Asked once per cycle.
        self.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return super().pressure(cgroup)


class Bench:
    """A worker and what it needs; `run` runs it to the end of its limit."""

    def __init__(self, tmp_path: Path, policy: str = POLICY) -> None:
        self.policy = tmp_path / "tierd.yaml"
        self.policy.write_text(policy)
        loaded = self.load()
        machine = loaded.config.simulation
        assert machine is not None
        self.host = self._host(machine)
        foundation = assembly.survey(self.host, loaded, 1)
        self.engine: Engine = assembly.assemble(self.host, foundation)
        self.state = State(
            host="x",
            page_size=4096,
            foundation=foundation,
            started=time.time(),
            reload=Reload(True, time.time(), loaded.source),
        )
        self.exporter = Exporter(None)
        self.seen: list[State] = []
        self.events: list[tuple[int, str]] = []

    def _host(self, machine: Simulation) -> Plug:
        return Plug(machine, VirtualClock())

    def load(self) -> config.Loaded:
        return config.load([self.policy])

    def worker(self, limit: int) -> Worker:
        return Worker(
            self.host,
            self.engine,
            self.state,
            self.load,
            self.exporter,
            Notifier({}),
            HostPace(self.host),
            limit=limit,
            watch=self.watch,
        )

    def watch(self, state: State) -> None:
        """Called after each cycle; tests change the host here."""
        self.seen.append(state)

    def metric(self, name: str) -> float:
        text = self.exporter.text()[0].decode()
        return float(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def _records(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger="tierd"):
        yield


def events(caplog: pytest.LogCaptureFixture, event: Event) -> list[Any]:
    return [each for each in caplog.records if getattr(each, "tierd_event", None) is event]


def finish(running: Worker) -> None:
    running.start()
    running.join()


def test_cycles_keep_their_cadence(bench: Bench) -> None:
    running = bench.worker(5)
    finish(running)
    assert [state.cycles for state in bench.seen] == [1, 2, 3, 4, 5]
    starts = [state.report.started for state in bench.seen if state.report]
    assert [round(b - a) for a, b in itertools.pairwise(starts)] == [1, 1, 1, 1]
    assert running.failure is None
    assert bench.metric("tierd_cycles_total") == 5
    with pytest.raises(Stopping):
        running.call(lambda: None)


def test_a_cycle_that_is_too_long_is_counted_and_not_made_up_for(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.host.delay = 3.0
    running = bench.worker(4)
    finish(running)
    assert running.state.overruns == 3
    assert bench.metric("tierd_cycle_overruns_total") == 3
    assert len(events(caplog, Event.OVERRUN)) == 1, "the journal hears of it once in a while"


def test_a_failed_cycle_is_counted_and_the_next_one_may_succeed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.host.error = KernelError(5, "Input/output error", "/proc/kpageflags")
    running = bench.worker(7)
    running.call(lambda: None)
    calls = 0
    failed = running._failed

    def heal(number: int, error: Exception) -> None:
        nonlocal calls
        calls += 1
        failed(number, error)
        if calls == 5:
            bench.host.error = None

    running._failed = heal  # type: ignore[method-assign]
    finish(running)
    assert (running.state.cycles, running.state.failures) == (2, 5)
    assert bench.metric("tierd_cycle_failures_total") == 5
    assert len(events(caplog, Event.CYCLE_FAILED)) == 3, "1st, 2nd and 4th"
    assert "/proc/kpageflags" in events(caplog, Event.CYCLE_FAILED)[0].getMessage()
    assert len(events(caplog, Event.RECOVERED)) == 1
    assert [state.report.number for state in bench.seen if state.report] == [6, 7]


def test_a_daemon_whose_every_cycle_fails_ends(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.host.error = ValueError("a bug")
    running = bench.worker(1000)
    finish(running)
    assert running.state.failures == MAX_FAILURES
    assert isinstance(running.failure, RuntimeError)


def test_hotplug_makes_another_topology(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def watch(state: State) -> None:
        bench.seen.append(state)
        bench.host.unplugged = True

    bench.watch = watch  # type: ignore[method-assign]
    running = bench.worker(worker.CHECK_CYCLES + 1)
    finish(running)
    assert running.state.foundation.topology.generation == 2
    (record,) = events(caplog, Event.HOTPLUG)
    assert record.tierd_fields == {"generation": 2, "nodes": "0,1"}
    tiers = status(running.state)["tiers"]
    assert [tier["nodes"] for tier in tiers] == [[0], [1]]
    assert running.state.failures == 0


def test_memory_blocks_are_looked_at_when_a_size_changed_or_seldom(bench: Bench) -> None:
    asked: list[int] = []
    nodes = bench.host.nodes

    def counted() -> tuple[Node, ...]:
        asked.append(len(bench.seen))
        return nodes()

    def watch(state: State) -> None:
        bench.seen.append(state)
        bench.host.nodes = counted  # type: ignore[method-assign]

    bench.watch = watch  # type: ignore[method-assign]
    finish(bench.worker(worker.FOREIGN_CYCLES + 1))
    assert asked == [worker.CHECK_CYCLES - 1, worker.FOREIGN_CYCLES - 1]


def test_nodes_that_no_longer_fit_the_policy_hold_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiers = "tiers: [{name: a, nodes: [0]}, {name: b, nodes: [1, 2]}]\n"
    bench = Bench(tmp_path, POLICY + tiers)

    def watch(state: State) -> None:
        bench.seen.append(state)
        bench.host.unplugged = state.cycles < 15

    bench.watch = watch  # type: ignore[method-assign]
    running = bench.worker(2 * worker.CHECK_CYCLES + 1)
    finish(running)
    during = bench.seen[worker.CHECK_CYCLES]
    assert during.mode == "paused"
    assert "no longer fit the policy" in during.degraded[0]
    assert len(events(caplog, Event.HOTPLUG)) == 2
    assert running.state.mode == "tier"
    assert running.state.degraded == ()
    assert running.state.failures == 0


def test_a_rival_is_named_once_and_held_against_where_the_policy_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    rival = ForeignTierer("numa_balancing", "/proc/sys/kernel/numa_balancing is 1")
    other = ForeignTierer("other", "memtierd is running")
    bench.host.set_foreign_tierers([rival, other])
    running = bench.worker(2)
    running.call(running.look_for_foreign)
    running.call(running.look_for_foreign)
    finish(running)
    assert [each.tierd_fields["name"] for each in events(caplog, Event.FOREIGN_TIERER)] == [
        "numa_balancing",
        "other",
    ]
    assert running.state.mode == "paused"
    assert "numa_balancing is 1" in running.state.degraded[0]


def test_a_reload_ends_what_the_old_policy_held_against(bench: Bench) -> None:
    rival = ForeignTierer("numa_balancing", "/proc/sys/kernel/numa_balancing is 1")
    bench.host.set_foreign_tierers([rival])
    running = bench.worker(4)
    running.call(running.look_for_foreign)

    def watch(state: State) -> None:
        bench.seen.append(state)
        if state.cycles == 2:
            bench.policy.write_text(POLICY.replace("refuse", "warn"))
            running.call(running.reload)

    running._watch = watch
    finish(running)
    assert [state.mode for state in bench.seen] == ["paused", "paused", "tier", "tier"]
    assert [each.name for each in running.state.foundation.foreign] == ["numa_balancing"]


def test_a_reload_that_fails_in_an_unforeseen_way_is_told_and_changes_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal has no caller who would hear of an exception."""
    running = bench.worker(2)
    whole = assembly.assemble
    failing = iter([ZeroDivisionError("oh"), None])

    def assemble(*arguments: Any) -> Engine:
        if (error := next(failing)) is not None:
            raise error
        return whole(*arguments)

    monkeypatch.setattr(assembly, "assemble", assemble)
    bench.policy.write_text(POLICY + "sampling: {cpu: 5%}\n")
    future = running.call(running.reload)
    finish(running)
    assert future.result().problems == ("ZeroDivisionError: oh",)
    assert running.state.reload == future.result()
    assert events(caplog, Event.CONFIG_REJECTED)
    assert bench.metric("tierd_config_last_reload_successful") == 0
    assert running.state.foundation.config.sampling.cpu == 0.03
    assert next(failing, "spent") == "spent", "the old engine was not put together again"
    assert running.state.cycles == 2


def test_a_reload_that_is_the_same_is_said_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    running = bench.worker(3)
    futures = [running.call(running.reload) for _ in range(2)]
    finish(running)
    assert all(future.result().ok for future in futures)
    assert not events(caplog, Event.CONFIG_LOADED)


def test_a_recording_follows_the_policy_and_heat_survives_its_beginning_and_end(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = bench.worker(12)
    before = bench.engine
    there = f"trace: {{directory: {tmp_path}}}\n"
    steps = {2: POLICY + there, 6: POLICY, 8: POLICY + f"trace: {{directory: {tmp_path}/no}}\n"}

    def watch(state: State) -> None:
        if state.cycles in steps:
            bench.policy.write_text(steps[state.cycles])
            running.call(running.reload)

    running._watch = watch
    finish(running)
    assert running._engine is before
    (path,) = tmp_path.glob("*.trace")
    with Reader(path) as trace:
        assert len(list(trace.cycles())) == 4
        assert trace.complete
    assert running.state.cycles == 12
    (warning,) = [each for each in caplog.messages if "nothing is recorded" in each]
    assert "no/tierd-" in warning
    assert "cannot be created: No such file or directory" in warning


def test_a_recording_ends_at_the_size_that_the_policy_allows(bench: Bench, tmp_path: Path) -> None:
    bench.policy.write_text(POLICY + f"trace: {{directory: {tmp_path}, size: 3KiB}}\n")
    running = bench.worker(30)
    running.call(running.reload)
    finish(running)
    (path,) = tmp_path.glob("*.trace")
    assert 3 * 1024 <= path.stat().st_size < 6 * 1024
    with Reader(path) as trace:
        assert 0 < len(list(trace.cycles())) < 30
        assert trace.complete
    assert running.state.cycles == 30
    told = status(running.state)["trace"]
    assert (told["file"], told["size"]) == (str(path), path.stat().st_size)
    assert "has reached the size that the policy allows" in told["ended"]


def test_heat_survives_a_reload_of_budgets_only(bench: Bench) -> None:
    running = bench.worker(6)
    before = bench.engine

    def watch(state: State) -> None:
        if state.cycles == 2:
            bench.policy.write_text(POLICY + "migration: {promote: 1MiB/s}\n")
            running.call(running.reload)
        if state.cycles == 4:
            bench.policy.write_text(POLICY + "sampling: {cpu: 1%}\n")
            running.call(running.reload)
            assert running._engine is before

    running._watch = watch
    finish(running)
    assert running._engine is not before
    assert running.state.reload.ok


def test_totals_add_up(bench: Bench) -> None:
    running = bench.worker(4)
    finish(running)
    moved = sum(flow.moved for state in bench.seen if state.report for flow in state.report.flows)
    assert sum(running.state.totals.moved.values()) == moved


def test_status_is_json_whatever_the_numbers(bench: Bench) -> None:
    running = bench.worker(1)
    finish(running)
    report = running.state.report
    assert isinstance(report, CycleReport)
    sampler = replace(report.samplers[0], round_time=float("inf"))
    state = replace(running.state, report=replace(report, samplers=(sampler,)))
    assert status(state)["samplers"][0]["round_time"] is None


def test_the_page_on_the_control_socket_names_every_key(bench: Bench) -> None:
    running = bench.worker(2)
    finish(running)
    page = (Path(__file__).parents[2] / "docs" / "control.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", page))

    def keys(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield key
                if "skipped" not in key and key != "heat":
                    yield from keys(value)
        elif isinstance(node, list):
            for value in node:
                yield from keys(value)

    documents = [status(running.state), top(running.state), asdict(running.explain(5000))]
    missing = {key for document in documents for key in keys(document)} - named
    assert missing <= {"tiers", "promote", "demote"}, missing
    assert {verb.value for verb in Verb} <= named
