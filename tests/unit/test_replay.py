# SPDX-License-Identifier: Apache-2.0
"""Record and replay: the forecast agrees with what a daemon under the same policy really does."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakehost import machine, topology_of
from tierd import cli, service
from tierd.config import Class, Config, Mode, Sampling, Workload
from tierd.engine import Engine
from tierd.host import Span
from tierd.host.simulated import SimulatedHost
from tierd.movers.move_phys_pages import MovePhysPages
from tierd.planner import Direction
from tierd.recorder import Recorder
from tierd.replay import Forecast, replay
from tierd.replay.host import TracedHost
from tierd.replay.placement import Placement
from tierd.samplers.page_idle import PageIdleSampler
from tierd.trace import Header, Layout, Look, Moved
from tierd.trace.file import Reader, Writer

LOADS = (
    Workload(kind="zipf", size="160MiB", accesses=2e4, cgroup="a"),
    Workload(kind="hotset", size="200MiB", hot="60MiB", accesses=1e5, cgroup="b"),
)
POLICY = Config(version=1, mode=Mode.TIER, sampling=Sampling(cpu="100%"))


@dataclasses.dataclass
class Live:
    """A daemon's engine on a simulated host, recorded."""

    host: SimulatedHost
    path: Path
    moved: dict[Direction, int]
    hit_ratio: float | None


def record(
    path: Path,
    mode: Mode,
    *,
    cycles: int = 20,
    folios: Mapping[str, str] | None = None,
    **policy: object,
) -> Live:
    host = machine(fast="128MiB", slow="512MiB", workloads=LOADS, folios=folios or {})
    topology = topology_of(host)
    config = POLICY.model_copy(update={"mode": mode, **policy})
    sampler = PageIdleSampler(host, topology, config.sampling)
    engine = Engine(host, config, topology, [sampler], MovePhysPages(host))
    header = Header("test", host.name, 4096, 0.0, 1.0, host.nodes())
    recorder = Recorder(host, topology, Writer(path, header), cpu=1.0)
    engine.watcher = recorder
    live = Live(host, path, dict.fromkeys(Direction, 0), None)
    for _ in range(cycles):
        report = engine.cycle()
        for flow in report.flows:
            live.moved[flow.direction] += flow.moved * 4096
        host.sleep(1.0)
    recorder.close()
    live.hit_ratio = report.hit_ratio
    return live


def replayed(path: Path, *policies: Config) -> Forecast:
    with Reader(path) as trace:
        forecast = replay(trace.header, trace.cycles(), policies)
        assert trace.complete
    return forecast


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return record(tmp_path_factory.mktemp("trace") / "observed", Mode.OBSERVE)


@pytest.fixture(scope="module")
def tiered(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return record(tmp_path_factory.mktemp("trace") / "tiered", Mode.TIER)


def test_the_forecast_is_what_the_daemon_does(observed: Live, tiered: Live) -> None:
    """Recorded without moving anything, against the same machine with the policy at work."""
    (outcome,) = replayed(observed.path, POLICY).outcomes
    assert tiered.hit_ratio is not None
    assert outcome.last() == pytest.approx(tiered.hit_ratio, abs=0.05)
    assert outcome.last("recorded") == pytest.approx(observed.hit_ratio, abs=0.02)
    assert outcome.last() > outcome.last("recorded") + 0.15
    for name, direction in (("promoted", Direction.PROMOTE), ("demoted", Direction.DEMOTE)):
        assert outcome.total(name) == pytest.approx(tiered.moved[direction], rel=0.15)


def test_moves_of_the_recording_daemon_are_followed(observed: Live, tiered: Live) -> None:
    """The same policy on a trace in which pages moved all the time, and on one without moves."""
    with_moves, without = (
        replayed(path, POLICY).outcomes[0] for path in (tiered.path, observed.path)
    )
    assert with_moves.last() == pytest.approx(without.last(), abs=0.05)
    assert with_moves.last("recorded") == pytest.approx(tiered.hit_ratio, abs=0.02)
    # What was moved while it was recorded has gaps in its history, and is moved a little more.
    for outcome, error in ((with_moves, 0.25), (without, 0.15)):
        promoted = tiered.moved[Direction.PROMOTE]
        assert outcome.total("promoted") == pytest.approx(promoted, rel=error)


def test_placement_by_class_is_that_of_the_machine(observed: Live) -> None:
    classes = (Class(match="a"), Class(match="b"))
    policy = POLICY.model_copy(update={"classes": classes, "migration": still()})
    (outcome,) = replayed(observed.path, policy).outcomes
    resident = outcome.points[-1].resident
    for program, name in zip(observed.host.programs, "ab", strict=True):
        for node, tier in ((0, "tier0"), (1, "tier1")):
            assert resident[tier][name] == pytest.approx(program.resident.get(node, 0), abs=64)
    assert resident["tier0"][""] + resident["tier1"][""] < 64


def still() -> object:
    """Rates so low that nothing moves."""
    return POLICY.migration.model_copy(update={"promote": 0, "demote": 0})


def test_two_policies_are_compared_on_one_trace(observed: Live) -> None:
    slow = POLICY.model_copy(
        update={"migration": POLICY.migration.model_copy(update={"promote": 2**20})}
    )
    fast, slow_ = replayed(observed.path, POLICY, slow).outcomes
    assert fast.mean() > slow_.mean() + 0.1
    assert slow_.total("promoted") <= 2**20 * 25
    assert fast.mean("recorded") == slow_.mean("recorded")
    assert replayed(observed.path, POLICY).outcomes[0].points == fast.points  # they do not meet


def test_a_cap_is_kept_and_a_floor_is_not_broken(observed: Live) -> None:
    classes = (Class(match="b", cap="20MiB"), Class(match="a", floor="40MiB"))
    policy = POLICY.model_copy(update={"classes": classes})
    (outcome,) = replayed(observed.path, policy).outcomes
    fast = outcome.points[-1].resident["tier0"]
    assert fast["b"] <= 1.1 * 20 * 256
    assert fast["a"] >= 0.9 * 40 * 256


def test_large_folios_are_moved_whole(tmp_path: Path) -> None:
    live = record(tmp_path / "t", Mode.OBSERVE, folios={"64KiB": "30%", "2MiB": "40%"}, cycles=12)
    with Reader(live.path) as trace:
        orders = {int(n) for c in trace.cycles() for n in np.unique(c.layout.order)}
    assert orders == {0, 4, 9}
    (outcome,) = replayed(live.path, POLICY).outcomes
    assert outcome.total("promoted") > 0
    used = {sum(sum(tier.values()) for tier in p.resident.values()) for p in outcome.points[4:]}
    assert used == {sum(program.pages for program in live.host.programs)}


def test_what_is_freed_leaves_the_replayed_machine(tmp_path: Path) -> None:
    host = machine(fast="64MiB", slow="256MiB", workloads=LOADS[:1], folios={})
    topology = topology_of(host)
    sampler = PageIdleSampler(host, topology, POLICY.sampling)
    config = POLICY.model_copy(update={"mode": Mode.OBSERVE})
    engine = Engine(host, config, topology, [sampler], MovePhysPages(host))
    header = Header("test", host.name, 4096, 0.0, 1.0, host.nodes())
    engine.watcher = recorder = Recorder(host, topology, Writer(tmp_path / "t", header), cpu=1.0)
    for cycle in range(30):
        if cycle == 10:
            host.exit(0)
        engine.cycle()
        host.sleep(1.0)
    recorder.close()
    (outcome,) = replayed(tmp_path / "t", POLICY).outcomes
    used = [sum(sum(tier.values()) for tier in p.resident.values()) for p in outcome.points]
    assert used[9] == host.programs[0].pages
    assert used[-1] == 0


# -- placement -----------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=60)
def test_counts_always_agree_with_the_pages(seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    placement = Placement([Span(5, 0, 256), Span(9, 512, 1024)], [5, 9])
    placement.owners(3)
    every = np.concatenate([np.arange(256), np.arange(512, 1024)]).astype(np.uint64)
    for _ in range(steps):
        some = np.sort(rng.choice(every, rng.integers(0, 80), replace=False))
        match rng.integers(0, 5):
            case 0:
                weight = rng.integers(0, 2, len(some)).astype(np.uint8)
                placement.look(Look("x", some, weight, 0, 1))
            case 1:
                order = np.uint64(rng.integers(0, 5))
                heads = np.unique(some >> order << order)
                layout = Layout(heads, np.full(len(heads), order, np.uint8), heads, gone=some[:0])
                placement.describe(layout, rng.integers(0, 4, len(heads)).astype(np.uint16))
            case 2:
                placement.forget(some)
            case 3:
                ids = placement.ids(placement.at(some))
                ids = ids[(placement.node(ids) >= 0) & ~placement.is_tail(ids)]
                placement.put(ids, int(rng.integers(0, 2)))
            case 4:
                n = len(some) // 2
                order = np.zeros(n, np.uint8)
                shuffled = rng.permutation(some)
                placement.recorded_moves(Moved(shuffled[:n], shuffled[n : 2 * n], order))
        check(placement)


def check(placement: Placement) -> None:
    """Count anew, page by page."""
    count, home = np.zeros_like(placement.count), np.zeros_like(placement.home)
    hot, hot_home = np.zeros_like(placement.hot), np.zeros_like(placement.hot_home)
    ids = np.arange(len(placement._placed))
    assert ((placement._placed > 0) == (placement._homed > 0)).all()
    if placement._ids is not None:
        assert (np.sort(placement._ids) == ids).all()
    for i in ids[placement._placed > 0]:
        at, of, owner = placement._placed[i] - 1, placement._homed[i] - 1, placement._owner[i]
        count[at, owner] += 1
        home[of, owner] += 1
        if placement._meta[i] & 0x10:
            hot[at] += 1 << (placement._meta[i] & 15)
            hot_home[of] += 1 << (placement._meta[i] & 15)
    for name, counted in (("count", count), ("home", home), ("hot", hot), ("hot_home", hot_home)):
        assert (getattr(placement, name) == counted).all(), name


def test_chains_of_recorded_moves_are_followed_in_order() -> None:
    """A page is demoted, and another one is promoted into its frame."""
    placement = Placement([Span(0, 0, 64), Span(1, 64, 128)], [0, 1])
    both = np.array([3, 70], np.uint64)
    placement.look(Look("x", both, np.array([0, 1], np.uint8), 0, 1))
    cold, hot = placement.ids(placement.at(both))
    old, new = np.array([3, 70], np.uint64), np.array([100, 3], np.uint64)
    placement.recorded_moves(Moved(old, new, np.zeros(2, np.uint8)))
    assert placement.ids(placement.at(np.array([100, 3], np.uint64))).tolist() == [cold, hot]
    assert placement.hot_home.tolist() == [1, 0]
    assert placement.hot.tolist() == [0, 1]  # the replay moved nothing


def test_a_traced_host_keeps_room_and_cpusets(observed: Live) -> None:
    with Reader(observed.path) as trace:
        host = TracedHost(trace.header)
        for number, cycle in enumerate(trace.cycles()):
            host.begin(cycle)
            seen = [host.see(look) for look in cycle.looks]
            host.end(cycle)
            if number == 4:
                break
    pfn = np.unique(np.concatenate(seen))
    slow = pfn[pfn >= host.stride]
    n = len(slow)
    result = host.move_phys_pages(slow, np.zeros(n, np.int32), np.ones(n, np.int32), 0)
    room = next(room for room in host.node_memory() if room.node == 0)
    assert 0 < (result.status == 0).sum() < n
    assert set(np.unique(result.status).tolist()) == {0, -12}  # ENOMEM
    assert room.high_watermark <= room.free < room.high_watermark + 4096
    again = host.move_phys_pages(slow[:1], np.zeros(1, np.int32), np.ones(1, np.int32), 0)
    assert again.status.tolist() == [-2]  # ENOENT: it is in another frame now


# -- the commands --------------------------------------------------------------------------------

SIMULATED = """\
version: 1
mode: tier
sampling: {cpu: 100%}
classes: [{match: a}, {match: b, cap: 8MiB}]
simulation:
  nodes:
    - {id: 0, size: 64MiB, cpus: 1, latency: 0.0001ms}
    - {id: 1, size: 256MiB, latency: 0.0003ms}
  workloads:
    - {kind: hotset, size: 100MiB, hot: 30MiB, accesses: 100000, cgroup: a}
    - {kind: uniform, size: 60MiB, accesses: 1000, cgroup: b}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(SIMULATED)
    return path


def tierd(*arguments: str | Path) -> int:
    return cli.main([str(each) for each in arguments])


def recorded(policy: Path, out: Path, *more: str) -> int:
    return tierd(
        "record", "--config", policy, "--out", out, "--clock", "virtual", "--cycles", "8", *more
    )


def test_record_and_replay_by_command(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.trace"
    assert recorded(policy, out) == 0
    said = capsys.readouterr().out
    assert f"recording to {out}; Ctrl-C ends it" in said
    assert f"{out}: 8 cycles, " in said
    assert out.stat().st_mode & 0o777 == 0o600

    assert tierd("replay", out, "--config", policy, "--against", policy, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    first, second = document["policies"]
    assert first == second
    assert document["trace"]["cycles"] == 8
    assert document["trace"]["complete"] is True
    assert len(first["series"]) == 8
    assert first["hit_ratio"]["last"] > first["recorded_hit_ratio"]["last"]
    assert first["resident"].keys() == {"tier0", "tier1"}
    assert first["resident"]["tier0"].keys() == {"a", "b", ""}

    assert tierd("replay", out, "--config", policy) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "hit ratio, at the end" in text
    assert tierd("replay", out, "--config", policy, "--against", policy) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, 1, "tierd: {trace}: cannot be read: No such file or directory"),
        (b"\x7fELF", 1, "tierd: {trace}: not a trace of tierd"),
        (b"TIERDTRC\x63\x00\x00\x00\x00\x00\x00\x00", 1, "tierd: {trace}: written in format 99, "),
    ],
)
def test_replay_says_in_one_line_what_is_wrong_with_the_file(
    tmp_path: Path,
    policy: Path,
    capsys: pytest.CaptureFixture[str],
    text: bytes | None,
    code: int,
    message: str,
) -> None:
    trace = tmp_path / "x.trace"
    if text is not None:
        trace.write_bytes(text)
    assert tierd("replay", trace, "--config", policy) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message.format(trace=trace))


def test_a_policy_that_does_not_fit_the_recorded_host_is_refused_with_its_line(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.trace"
    assert recorded(policy, out) == 0
    other = tmp_path / "other.yaml"
    other.write_text(
        "version: 1\ntiers:\n  - {name: dram, nodes: [0]}\n  - {name: cxl, nodes: [7]}\n"
    )
    capsys.readouterr()
    assert tierd("replay", out, "--config", policy, "--against", other) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{other}:4: tiers[1].nodes[0]: ")


def test_record_refuses_a_file_that_is_there(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.trace"
    out.write_text("mine")
    assert recorded(policy, out) == 1
    assert f"{out}: exists already; remove it or name another file" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_a_recorder_that_was_killed_leaves_a_trace_that_can_be_replayed(
    tmp_path: Path, policy: Path
) -> None:
    out = tmp_path / "a.trace"
    command = [sys.executable, "-m", "tierd", "record", "--config", policy, "--out", out]
    child = subprocess.Popen([*command, "--clock", "virtual"], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (out.exists() and out.stat().st_size > 20_000):
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    shown = subprocess.run(
        [sys.executable, "-m", "tierd", "replay", out, "--config", policy],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "it was cut off: the cycles that are whole count" in " ".join(shown.split())


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root has no privileges to drop")
def test_replay_needs_no_privileges(tmp_path: Path, policy: Path) -> None:
    out = tmp_path / "a.trace"
    assert recorded(policy, out) == 0
    os.chown(out, 65534, 65534)
    script = (
        "import os, sys; from tierd import cli, commands;"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    # Open by descriptor: the directories of the test belong to somebody else.
    with out.open("rb") as trace, policy.open("rb") as rules:
        files = [f"/proc/self/fd/{each.fileno()}" for each in (trace, rules)]
        os.fchmod(rules.fileno(), 0o644)
        done = subprocess.run(
            [sys.executable, "-c", script, "replay", files[0], "--config", files[1]],
            pass_fds=(trace.fileno(), rules.fileno()),
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "hit ratio, at the end" in done.stdout


def test_record_takes_the_lock_of_the_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "check_privileges", lambda: None)
    with service.lock(tmp_path):
        out = tmp_path / "a.trace"
        code = tierd("record", "--out", out, "--runtime-directory", tmp_path, "--cycles", "1")
    first, second = capsys.readouterr().err.splitlines()
    assert code == 1
    assert f"tierd is running already (process {os.getpid()} holds {tmp_path}/lock)" in first
    assert "to record what it sees, set trace.directory in its policy and reload it" in second
    assert not out.exists()
