# SPDX-License-Identifier: Apache-2.0
"""What tierd costs: its own CPU beside the kernel's, its memory, its scrapes.

`make bench` prints the tables and writes out/bench/cost.json. The bars are those of the budget
table in docs/design.md; what misses its bar fails here.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from guest import loads
from rig import Guest

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out" / "bench" / "cost.json"
SIZES = (16, 256, 4096)
"""GiB of simulated memory."""


def keep(name: str, value: object) -> None:
    """Put one result into the file of results."""
    OUT.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    results[name] = value
    OUT.write_text(json.dumps(results, indent=2) + "\n")


def measure(what: str, gib: int) -> Mapping[str, float]:
    """Run one measurement in a process of its own."""
    path = os.pathsep.join([str(ROOT / "daemon"), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("cost_child.py")), what, str(gib)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    result: Mapping[str, float] = json.loads(done.stdout)
    return result


def test_memory() -> None:
    """At most 64 MiB and two bytes per frame, with the heat of every frame touched."""
    rows = [measure("memory", gib) for gib in SIZES]
    keep("memory", rows)
    bounded(rows, bytes_per_folio=2)


def test_memory_where_all_is_huge_pages() -> None:
    """At most 64 MiB, sixteen bytes for each, and a page for 256 of them."""
    rows = [measure("huge", gib) for gib in SIZES[1:]]  # small machines are not packed
    keep("huge", rows)
    bounded(rows, bytes_per_folio=16 + os.sysconf("SC_PAGE_SIZE") // 256)


def bounded(rows: Sequence[Mapping[str, float]], bytes_per_folio: int) -> None:
    """Print what was resident, and fail where it was more than 64 MiB and that."""
    print("\n  memory     resident   allowed   own ns/folio")
    over = []
    for row in rows:
        allowed = 64 * 2**20 + bytes_per_folio * row["folios"]
        print(
            f"{row['gib']:5.0f} GiB {row['resident_bytes'] / 2**20:8.1f} MiB"
            f" {allowed / 2**20:6.1f} MiB {row['own_ns_per_folio']:13.1f}"
        )
        over += [row["gib"]] * (row["resident_bytes"] > allowed)
    assert not over, f"more than allowed at {over} GiB"


def test_scrape() -> None:
    """p99 under 20 ms while cycles run one after another."""
    rows = [measure("scrape", gib) for gib in SIZES[:2]]
    for row in rows:
        print(
            f"\n{row['gib']:5.0f} GiB: p50 {row['p50_seconds'] * 1e3:.1f} ms,"
            f" p99 {row['p99_seconds'] * 1e3:.1f} ms"
        )
    keep("scrape", rows)
    assert max(row["p99_seconds"] for row in rows) < 0.020


def test_start(tmp_path: Path) -> None:
    """READY=1 at most a second after what the interpreter takes to start."""
    policy = tmp_path / "policy.yaml"
    policy.write_text((ROOT / "config" / "simulated.yaml").read_text().replace(":9709", ":0"))
    env = {**os.environ, "PYTHONPATH": str(ROOT / "daemon")}
    times = []
    for turn in range(5):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], env=env, check=True)
        bare = time.perf_counter() - begin
        times.append(_until_ready(tmp_path / f"notify{turn}", policy, env) - bare)
    median = statistics.median(times)
    print(f"\nstart to READY=1: median {median:.2f} s of {len(times)} beyond the interpreter's own")
    keep("start", {"seconds": times})
    assert median < 1.0


def _until_ready(path: Path, policy: Path, env: Mapping[str, str]) -> float:
    """Seconds from the start of a daemon on the simulated host to its READY=1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(60)
        begin = time.perf_counter()
        daemon = subprocess.Popen(
            [sys.executable, "-m", "tierd", "simulate", "--config", str(policy)],
            env={**env, "NOTIFY_SOCKET": str(path)},
            stdout=subprocess.DEVNULL,
        )
        try:
            while b"READY=1" not in notify.recv(4096):
                pass
            return time.perf_counter() - begin
        finally:
            daemon.terminate()
            daemon.wait()


SCRIPT = r"""
import json, sys, time
sys.path.insert(0, "/usr/lib/tierd")
from tierd import topology
from tierd.config import Config
from tierd.host.linux import LinuxHost
from tierd.hotness import HeatMap
from tierd.samplers.page_idle import PageIdleSampler
host = LinuxHost()
config = Config.model_validate({"version": 1, "sampling": {"cpu": "100%"}})
tiers = topology.build(host.nodes(), None, 1)
sampler = PageIdleSampler(host, tiers, config.sampling)
heat = HeatMap(tiers.spans)
user = system = looked = 0.0
for turn in range(12):
    before, seen = host.cpu_times(), 0
    heat.tick()
    for batch in sampler.sample(30.0):
        heat.observe(batch.pfn, batch.weight, batch.granularity)
        seen += len(batch.pfn)
    used = host.cpu_times() - before
    if turn >= 4:  # the first turns learn layouts and costs
        user, system, looked = user + used.user, system + used.system, looked + seen
    host.sleep(0.3)
print(json.dumps({"user": user, "system": system, "looked": looked}))
"""


@pytest.mark.guest
def test_own_share_of_a_look(guest: Guest) -> None:
    """User CPU per frame looked at against the kernel's for the same frames: the marginal cost
    between a small and a large program, so that what a round costs anyway drops out."""
    loads.install(guest)
    guest.put("/run/look.py", SCRIPT.encode())
    rounds: list[dict[str, Any]] = []
    for size in (64, 768):
        load = loads.start(guest, f"load-{size}", size, 16)
        out = guest.run("/usr/bin/python3 /run/look.py", timeout=900, check=True).stdout
        rounds.append(json.loads(out))
        load.stop()
    small, large = rounds
    frames = large["looked"] - small["looked"]
    user = (large["user"] - small["user"]) / frames
    system = (large["system"] - small["system"]) / frames
    share = user / system
    print(
        f"\nper frame, emulated: tierd {user * 1e9:.0f} ns, kernel {system * 1e9:.0f} ns:"
        f" {share:.1%}"
    )
    keep("look", {"user_seconds": user, "system_seconds": system, "share": share, "runs": rounds})
    assert share <= 0.05
