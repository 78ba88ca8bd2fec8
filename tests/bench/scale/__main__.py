# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs by size of the host: `python -m bench.scale --out DIRECTORY`.

For each size a simulated machine runs in a process of its own, and the daemon in another.
Prints tables, writes scale.json, and ends with 1 when a bar is missed, naming each.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.scale import report
from bench.scale.wire import Wire

ROOT = Path(__file__).resolve().parents[3]
SIZES = (16, 256, 1024, 4096, 16384)
"""GiB."""
SHARES = (0.01, 0.03, 0.1)
SHARE = 0.03
"""Of one core: the default of the policy, at which CPU and memory are measured."""
SCRAPES = 400
MINUTES = 5.0
FIND = 1500
"""Cycles to wait for the new hot set."""


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "daemon"), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "", **more}


@contextmanager
def simulated_machine(gib: int) -> Iterator[socket.socket]:
    """A machine that is ready, and the daemon's end of the connection to it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "bench.scale.machine", str(theirs.fileno()), str(gib)]
    process = subprocess.Popen(command, env=environment(), pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        assert Wire(ours).receive() == "ready"
        yield ours
    finally:
        ours.close()
        process.terminate()
        process.wait()


def run(gib: int, cycles: int, find: int, shares: Sequence[float]) -> dict[str, Any]:
    """One daemon on one machine."""
    with tempfile.TemporaryDirectory() as directory, simulated_machine(gib) as ours:
        flag = Path(directory) / "scraping"
        spec = {
            "directory": directory,
            "share": SHARE,
            "cycles": cycles,
            "find": find,
            "shares": list(shares),
            "flag": str(flag),
        }
        flag.touch()
        notify = Path(directory) / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(notify))
            began = time.perf_counter()
            daemon = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "bench.scale.daemon",
                    str(ours.fileno()),
                    json.dumps(spec),
                ],
                env=environment(NOTIFY_SOCKET=str(notify)),
                pass_fds=[ours.fileno()],
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                ready.settimeout(120)
                while b"READY=1" not in ready.recv(4096):
                    pass
                result = {"gib": gib, "share": SHARE, "start": time.perf_counter() - began}
                # Nobody reads what the daemon says of itself from now on, and it would wait.
                ready.shutdown(socket.SHUT_RD)
                result |= follow(daemon, flag)
                return result
            finally:
                daemon.terminate()
                daemon.wait()


def follow(daemon: subprocess.Popen[str], flag: Path) -> dict[str, Any]:
    """Everything that the daemon tells; scrapes it when it is ready for that."""
    result: dict[str, Any] = {}
    assert daemon.stdout is not None
    for line in daemon.stdout:
        if not line.startswith("{"):
            continue
        told = json.loads(line)
        event = told.pop("event")
        if event == "found":
            result.setdefault("found", []).append(told)
        else:
            result[event] = told
        if event == "scrape":
            port = result["first"]["port"]
            result["scrape"] = scrape(f"http://127.0.0.1:{port}/metrics")
            flag.unlink()
        print(f"  {event}: {told}", file=sys.stderr, flush=True)
    if "end" not in result:
        raise RuntimeError("the daemon ended before its work was done")
    return result


def scrape(url: str) -> dict[str, float]:
    """Seconds that /metrics took while cycles follow each other without a pause."""
    times = []
    for _ in range(SCRAPES):
        began = time.perf_counter()
        with urllib.request.urlopen(url, timeout=60) as answer:
            answer.read()
        times.append(time.perf_counter() - began)
        time.sleep(0.01)
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50": float(p50), "p99": float(p99)}


def interpreter() -> float:
    """Seconds that the interpreter takes to start and do nothing."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], env=environment(), check=True)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def room_for(gib: int) -> str | None:
    """Why a machine of this size cannot be simulated here; None when it can."""
    need = 2**20 * gib * (0.5 + 0.15) + 2**29  # heat and table of blocks, placement, the rest
    if gib >= 16384:
        need = max(need, 12 * 2**30)
    text = Path("/proc/meminfo").read_text()
    free = int(text.split("MemAvailable:")[1].split()[0]) * 1024
    if free >= need:
        return None
    return f"needs {need / 2**30:.1f} GiB free, {free / 2**30:.1f} are"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.scale", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench-scale")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="GIB")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, metavar="RATIO")
    parser.add_argument(
        "--find", type=int, default=FIND, help="most cycles to wait for a new hot set"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of operation to measure")
    options = parser.parse_args()
    bare = interpreter()
    rows: list[dict[str, Any]] = []
    absent: list[str] = []
    for gib in options.sizes:
        why = room_for(gib)
        if why is not None:
            absent.append(f"{report.size(gib)} was not measured: {why}")
            continue
        print(f"bench-scale: {report.size(gib)}", file=sys.stderr, flush=True)
        row = run(gib, int(options.minutes * 60), options.find, options.shares)
        row["start"] -= bare
        rows.append(row)
    missed = report.missed(rows) + absent
    options.out.mkdir(parents=True, exist_ok=True)
    text = report.tables(rows, options.find)
    (options.out / "scale.md").write_text(text)
    result = {"rows": rows, "missed": missed}
    (options.out / "scale.json").write_text(json.dumps(result, indent=2) + "\n")
    print(text)
    for each in missed:
        print(f"bench-scale: missed: {each}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
