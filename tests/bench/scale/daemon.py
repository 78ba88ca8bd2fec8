# SPDX-License-Identifier: Apache-2.0
"""The daemon on a simulated machine in another process: `python -m bench.scale.daemon FD SPEC`.

It is the daemon itself (`tierd.service.Daemon`: worker, endpoint, control socket), driven
through stages by its callback after each cycle. Prints one JSON object per line.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.scale.remote import RemoteHost
from bench.scale.wire import Wire
from tierd import commands, config, hotness
from tierd.engine import Engine
from tierd.pace import HostPace
from tierd.planner import Direction
from tierd.service import Daemon, Options
from tierd.state import State

FULL = 1.0
"""CPU share while the sampler gets to know the machine."""
MOST_WARM = 2000
FLIGHT = 6
"""Cycles after which all is read that was marked under another share."""
KNOW = 4
"""Cycles with a whole core after that round, to learn what is hot."""
PLACE = 300
"""Most cycles with a whole core to move what was found."""
RESTING = 0.1
"""Of the rate limit: a host that promotes less than this is tiered."""
HUGE_AT_ONCE = 64
"""Huge pages of which the tails are forgotten at once: 32,768 frames."""
SETTLE = 30
"""Cycles between two stages."""
MOST_OWING = 120
"""Cycles that it is waited for a decision at most, at the start and the end of what is measured."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What to measure. share: of one core; cycles: measured, each a second; find: most cycles
    to wait for a new hot set, at each of the CPU shares `shares`; flag: scrapes go on while it
    exists."""

    directory: str
    share: float
    cycles: int
    find: int
    shares: tuple[float, ...]
    flag: str


def tell(event: str, **values: object) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def memory() -> dict[str, int]:
    """Bytes in memory now and at most so far."""
    text = Path("/proc/self/status").read_text()
    found = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if "kB" in line}
    return {"resident": int(found["VmRSS"]) * 1024, "peak": int(found["VmHWM"]) * 1024}


def touch(engine: Engine, spans: Any, huge: NDArray[np.uint32]) -> None:
    """Look at every frame once, and find it idle; then only the first frame of each block of
    2 MiB that is a huge page, as nobody looks at tails."""
    heat = engine._heat
    heat.tick()
    step = hotness.heatmap.PIECE
    idle = np.zeros(step, np.uint8)
    for span in spans:
        for at in range(span.start, span.end, step):
            pfn = np.arange(at, min(at + step, span.end), dtype=np.uint64)
            heat.observe(pfn, idle[: len(pfn)])
    tails = np.arange(1, 512, dtype=np.uint64)
    for part in np.array_split(huge, len(huge) // HUGE_AT_ONCE + 1):
        heat.forget((part[:, None] * np.uint64(512) + tails).reshape(-1))


class Stages:
    """Called with the state after each cycle; a generator says what comes next."""

    def __init__(self, host: RemoteHost, spec: Spec) -> None:
        self._host = host
        self._spec = spec
        self._run: Generator[None, State, None] | None = None
        self.daemon: Daemon | None = None

    def __call__(self, state: State) -> None:
        if self._run is None:
            self._run = self._stages(state)
            next(self._run)
            return
        try:
            self._run.send(state)
        except StopIteration:
            os.kill(os.getpid(), signal.SIGTERM)
            # Cycles that begin before the signal is seen do no harm.
            self._run = self._idle()
            next(self._run)

    @staticmethod
    def _idle() -> Generator[None, State, None]:
        while True:
            yield

    @property
    def _engine(self) -> Engine:
        assert self.daemon is not None
        return self.daemon._worker._engine

    def _stages(self, state: State) -> Generator[None, State, None]:
        spec = self._spec
        assert self.daemon is not None
        address = self.daemon._exporter.address
        tell("first", port=address[1] if address else 0, **memory())
        began = time.process_time()
        touch(self._engine, state.foundation.topology.spans, self._host.ask("huge"))
        tell("touched", seconds=time.process_time() - began, **memory())
        yield from self._warm()
        yield from self._measure()
        tell("scrape")
        while Path(spec.flag).exists():
            yield
        for number, share in enumerate(spec.shares):
            yield from self._change_share(share)
            yield from self._find(number, share)
        tell("end", **memory())

    def _warm(self) -> Generator[None, State, None]:
        """With a whole core: a round over all blocks, and what it finds is moved."""
        sampler = self._engine._samplers[0]
        began, cycles = self._host.monotonic(), 0
        yield from self._change_share(FULL)
        while sampler._chooser.round._last is None and cycles < MOST_WARM:  # type: ignore[attr-defined]
            cycles += 1
            yield
        for _ in range(KNOW):
            yield
        placed = yield from self._place()
        seconds = self._host.monotonic() - began
        yield from self._change_share(self._spec.share)
        coverage = sampler.status().coverage
        tell("warm", cycles=cycles, placed=placed, seconds=seconds, coverage=coverage)

    def _place(self) -> Generator[None, State, int]:
        """Until little is promoted any more, so that a new hot set has no queue before it."""
        rules = self._engine._config
        resting = RESTING * rules.migration.promote * rules.interval / self._host.page_size
        last: deque[int] = deque(maxlen=10)
        for cycle in range(PLACE):
            state = yield
            assert state.report is not None
            if state.report.deferred:  # nothing was decided
                continue
            flows = state.report.flows
            last.append(sum(flow.moved for flow in flows if flow.direction is Direction.PROMOTE))
            if len(last) == last.maxlen and sum(last) < resting * len(last):
                return cycle
        return PLACE

    def _change_share(self, share: float) -> Generator[None, State, None]:
        now = self._engine._config
        sampling = now.sampling.model_copy(update={"cpu": share})
        self._engine.reconfigure(now.model_copy(update={"sampling": sampling}))
        # A reload would begin with new samplers, which know nothing of the machine.
        self._engine._samplers[0]._share = share  # type: ignore[attr-defined]
        for _ in range(FLIGHT):
            yield
        # What was overspent under another share is not to be paid back out of this one.
        budget = self._engine._budget
        budget._cpu._tokens = budget._upkeep = budget._decisions = 0.0
        for _ in range(SETTLE):
            yield

    def _measure(self) -> Generator[None, State, None]:
        host, spec = self._host, self._spec
        # From one decision to another: each leaves a debt that is paid in the cycles after it.
        for _ in range(MOST_OWING):
            state = yield
            if state.report is not None and not state.report.deferred:
                break
        # Nor does what was saved up before belong to these minutes: up to 4 cycles' worth.
        self._engine._budget._cpu._tokens = min(self._engine._budget._cpu._tokens, 0.0)
        phases: dict[str, float] = {}
        durations, latencies = [], []
        before, began = host.cpu_times(), host.monotonic()
        moved = 0
        for cycle in range(1, spec.cycles + MOST_OWING + 1):
            state = yield
            report = state.report
            assert report is not None
            for phase, times in report.cpu.items():
                phases[phase] = phases.get(phase, 0.0) + times.total
            latencies.append(sum(times.total for times in report.cpu.values()))
            durations.append(report.duration)
            moved += sum(flow.moved for flow in report.flows)
            if cycle >= spec.cycles and not report.deferred:
                break
        used, seconds = host.cpu_times() - before, host.monotonic() - began
        tell(
            "measured",
            seconds=seconds,
            cpu=used.total,
            own=used.user,
            kernel=used.system,
            phases=phases,
            latency=np.percentile(latencies, [50, 99, 100]).tolist(),
            duration=np.percentile(durations, [50, 99, 100]).tolist(),
            moved_pages=moved,
            **memory(),
        )

    def _find(self, number: int, share: float) -> Generator[None, State, None]:
        """Time until 90 % of a new hot set is known for hot, and until it is in fast memory."""
        host, sampler = self._host, self._engine._samplers[0]
        status = sampler.status()
        host.ask("arm", number)
        began = host.monotonic()
        seen = hot = moved = None
        fast = 0.0
        for _ in range(self._spec.find):
            state = yield
            now = host.monotonic() - began
            # A page may be found and moved within one cycle: what is in fast memory is known.
            fast, heads, pages = host.ask("newcomer")
            recent = hotness.recent(self._engine._heat.states(heads))
            if seen is None and (fast > 0 or np.any(recent > 0)):
                seen = now
            if hot is None and fast + float(pages[recent >= 2].sum()) >= 0.9:
                hot = now
            if fast >= 0.9:
                moved = now
            observing = state.report is not None and state.report.mode != "tier"
            if moved is not None or (observing and hot is not None):
                break
        tell(
            "found",
            share=share,
            seen=seen,
            hot=hot,
            moved=moved,
            fast=fast,
            bound=status.round_time,
            estimate=status.find_time,
        )


def policy(spec: Spec) -> Path:
    path = Path(spec.directory) / "policy.yaml"
    path.write_text(
        f"version: 1\nmode: tier\ninterval: 1s\n"
        f"tiers:\n  - {{name: dram, nodes: [0]}}\n  - {{name: cxl, nodes: [1]}}\n"
        f'sampling: {{cpu: {spec.share:.4%}}}\nmetrics: {{listen: "127.0.0.1:0"}}\n'
    )
    return path


def main(descriptor: int, spec: Spec) -> None:
    host = RemoteHost(Wire(socket.socket(fileno=descriptor)))
    stages = Stages(host, spec)
    path = policy(spec)
    load: Callable[[], config.Loaded] = lambda: config.load([path])  # noqa: E731
    options = Options(runtime=Path(spec.directory), watch=stages)
    stages.daemon = Daemon(host, load, HostPace(host), options)
    stages.daemon.run()


if __name__ == "__main__":
    assert commands  # what `tierd run` has loaded counts
    main(int(sys.argv[1]), Spec(**json.loads(sys.argv[2])))
