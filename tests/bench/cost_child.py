# SPDX-License-Identifier: Apache-2.0
"""One measurement in a fresh process: `cost_child.py memory|huge|scrape GIB`; prints JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from bench.still_host import GIB_FRAMES, HugeHost, StillHost
from tierd import control, topology  # noqa: F401  (the daemon has it loaded, so it counts)
from tierd.config import Config
from tierd.engine import Engine
from tierd.host.linux import Footprint
from tierd.metrics import Exporter
from tierd.samplers.page_idle import PageIdleSampler

INTERVAL = 1.0
FOOTPRINT = Footprint()


def engine_of(host: StillHost, interval: float = INTERVAL) -> Engine:
    """An engine that observes, allowed one whole core."""
    config = Config.model_validate(
        {"version": 1, "interval": f"{interval:g}s", "sampling": {"cpu": "100%"}}
    )
    tiers = topology.build(host.nodes(), None, 1)
    sampler = PageIdleSampler(host, tiers, config.sampling)
    return Engine(host, config, tiers, [sampler], None)


def url_of(exporter: Exporter) -> str:
    assert exporter.address is not None
    return f"http://127.0.0.1:{exporter.address[1]}/metrics"


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def cycle(host: StillHost, engine: Engine) -> tuple[int, int]:
    report = engine.cycle()
    FOOTPRINT.give_back()  # as the worker does
    host.tick(INTERVAL)
    return report.samplers[0].looked, report.samplers[0].accessed


def memory(gib: int) -> dict[str, float]:
    """Resident bytes once every frame was looked at, and user CPU per frame looked at."""
    return known(StillHost(gib * GIB_FRAMES), gib * GIB_FRAMES)


def huge(gib: int) -> dict[str, float]:
    """The same where all frames are those of huge pages."""
    return known(HugeHost(gib * GIB_FRAMES), gib * GIB_FRAMES // 512)


def known(host: StillHost, folios: int) -> dict[str, float]:
    """A host of so many folios, after a look at each."""
    FOOTPRINT.share_one_arena()
    exporter = Exporter("127.0.0.1:0")
    exporter.start()
    engine = engine_of(host)
    base = resident()
    cycles = 0
    while engine_known(engine) < folios:
        cycle(host, engine)
        cycles += 1
        assert cycles < 1000, f"{engine_known(engine)} of {folios} folios known after 1000 cycles"
    before, looked = host.cpu_times(), 0
    while looked < min(folios, 64 * GIB_FRAMES):
        looked += cycle(host, engine)[0]
    used = host.cpu_times() - before
    with urllib.request.urlopen(url_of(exporter)) as answer:
        answer.read()
    return {
        "folios": folios,
        "base_bytes": base,
        "resident_bytes": resident(),
        "cycles_to_know_all": cycles,
        "own_ns_per_folio": used.total / looked * 1e9,
    }


def engine_known(engine: Engine) -> int:
    """Frames of which the heat map knows something."""
    heat = engine._heat
    nodes = (0, 1)
    return int(heat.histogram(nodes)[1:].sum())


def scrape(gib: int) -> dict[str, float]:
    """Latency of /metrics while cycles run one after another without a pause."""
    host = StillHost(gib * GIB_FRAMES)
    exporter = Exporter("127.0.0.1:0")
    exporter.start()
    engine = engine_of(host)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            exporter.publish(engine.cycle())
            host.tick(INTERVAL)

    worker = threading.Thread(target=work)
    worker.start()
    url = url_of(exporter)
    times = []
    try:
        for _ in range(300):
            begin = time.perf_counter()
            with urllib.request.urlopen(url, timeout=60) as answer:
                answer.read()
            times.append(time.perf_counter() - begin)
            time.sleep(0.01)
    finally:
        stop.set()
        worker.join()
        exporter.close()
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50_seconds": float(p50), "p99_seconds": float(p99)}


if __name__ == "__main__":
    what = {"memory": memory, "huge": huge, "scrape": scrape}[sys.argv[1]]
    print(json.dumps({"gib": int(sys.argv[2]), **what(int(sys.argv[2]))}))
