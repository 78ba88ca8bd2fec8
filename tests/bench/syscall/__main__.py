# SPDX-License-Identifier: Apache-2.0
"""`make bench-syscall`: move pages by four ways in one guest, and compare.

Writes syscall.json (all samples and figures) and syscall.md (tables and bars). Ends with 1 when a
bar is missed, 125 when there is no guest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import rig

from . import figures, report

HERE = Path(__file__).resolve().parent
SOURCES = ("measure.c", "ways.c", "holders.c", "translate.c", "scratch.c")

PLANS = "1:16:13:7 64:2:13:7 512:1:13:7 4096:1:11:5 65536:1:5:3"
"""BATCH:CALLS:ROUNDS:SCANS: calls of a sample (so that one is long enough to time), rounds beside
the one that warms up, and in how many of these the slow ways take part."""


CLOCKS = {
    "tcg": "time, emulated",
    "kvm": "time",
    "icount": "guest instructions: for µs read thousands of them",
}
"""What is measured, by how the guest runs."""


def machine(gib: int) -> rig.Machine:
    """Machine A with nodes of that size: 1 GiB of pages has to fit on either."""
    before = rig.MACHINES["A"]
    options = [
        option.replace("size=1G", f"size={gib}G").replace("-m 2G", f"-m {2 * gib}G")
        for option in before.options
    ]
    assert sum(a != b for a, b in zip(options, before.options, strict=True)) == 3
    return replace(before, options=tuple(options))


def binary() -> bytes:
    """The program, linked statically."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "measure")
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(out)]
        subprocess.run([*command, *(str(HERE / name) for name in SOURCES)], check=True)
        return out.read_bytes()


def output(guest: rig.Guest, command: Sequence[str]) -> Iterator[str]:
    """Lines as they come, so that a run that is ended leaves what it had."""
    begin = time.monotonic()
    with guest.popen(command) as process:
        with contextlib.suppress(EOFError):
            while True:
                yield process.readline(timeout=600)
        result = process.wait()
    if result.returncode != 0:
        raise rig.CommandFailed(result)
    print(f"{' '.join(command)}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)


def measure(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Lines of the program's output, and what describes the machine."""
    made = rig.build(["release"])
    lines: list[str] = []
    console = options.out / "console.log"
    with rig.Guest(made, "release", machine(options.node_gib), console=console) as guest:
        guest.put("/run/measure", binary(), 0o755)
        about = {
            "kernel": guest.release,
            "cpus": guest.run("nproc").stdout.strip(),
            "model": guest.run("grep -m1 'model name' /proc/cpuinfo").stdout.split(":")[1].strip(),
            "nodes": f"2 of {options.node_gib} GiB",
            "mapped": f"{options.mib} MiB in all, on node 1",
            "plans": options.plans,
            "clock": CLOCKS[os.environ.get("TIERD_QEMU_ACCEL", "tcg")],
        }
        plans = options.plans.split()
        with (options.out / "samples.jsonl").open("w") as kept:
            for what in ("time", "memory"):
                words = plans if what == "time" else [plan.split(":")[0] for plan in plans]
                for n in options.processes.split(","):
                    command = ["/run/measure", what, n, str(options.mib), *words]
                    for line in output(guest, command):
                        lines.append(line)
                        print(line, file=kept, flush=True)
        complaints = guest.complaints()
    if complaints:
        raise SystemExit("bench-syscall: the kernel complained:\n" + "\n".join(complaints))
    return lines, about


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench-syscall", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench-syscall"))
    parser.add_argument("--processes", default="1,10,100", help="comma-separated")
    parser.add_argument("--mib", type=int, default=1024, help="what they map in all")
    parser.add_argument("--node-gib", type=int, default=2, help="size of either memory node")
    parser.add_argument("--plans", default=PLANS, help="BATCH:CALLS:ROUNDS:SCANS ...")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        lines, about = measure(options)
    except (rig.Unavailable, rig.GuestError, rig.CommandFailed) as error:
        print(f"bench-syscall: {error}", file=sys.stderr)
        return 125
    run = figures.parse(lines)
    bars = figures.bars(run)
    result = {
        "about": about,
        "bars": [asdict(bar) for bar in bars],
        "samples": [asdict(sample) for sample in run.samples],
        "memory": [asdict(scratch) for scratch in run.scratch],
    }
    (options.out / "syscall.json").write_text(json.dumps(result, indent=1) + "\n")
    head = "\n".join(f"- {key}: {value}" for key, value in about.items())
    text = f"# bench-syscall\n\n{head}\n\n{report.tables(run)}\n## Bars\n\n{report.judged(bars)}"
    (options.out / "syscall.md").write_text(text)
    print(text)
    missed = [bar.text for bar in bars if not bar.met]
    print("\n".join(f"missed: {text}" for text in missed) or "every bar is met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
