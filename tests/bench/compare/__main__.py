# SPDX-License-Identifier: Apache-2.0
"""`PYTHONPATH=daemon:tests python -m bench.compare`: ways of tiering side by side, in guests.

Each way has a guest of its own (machine A, the release kernel), one after another. Writes
compare.json (all samples), compare.md (table and bars) and compare.svg. Ends with 1 when tierd
misses a bar.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import rig
from rig import artefacts

from . import report, trial, ways
from .measures import measure
from .trial import BUSY, PAUSING

MANNERS = (PAUSING, BUSY)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.compare", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench-compare"))
    parser.add_argument("--only", default="", help="ways, comma-separated")
    parser.add_argument(
        "--cpu",
        default="7%,30%",
        help="tierd's shares of a core, comma-separated; the first is held to the bars",
    )
    parser.add_argument("--policy", default="", help="more lines for tierd's policy")
    options = parser.parse_args()
    policy = options.policy.replace("\\n", "\n")
    every = (
        ways.NONE,
        ways.NUMA_BALANCING,
        ways.DAMON,
        ways.DAMON_SLOW,
        *(ways.tierd(cpu, policy, also=at > 0) for at, cpu in enumerate(options.cpu.split(","))),
    )
    only = options.only.split(",") if options.only else [way.name for way in every]
    chosen = [way for way in every if way.name in only]
    options.out.mkdir(parents=True, exist_ok=True)
    made = artefacts.build(["release"])
    trials, failed = [], []
    for way in chosen:
        console = options.out / f"{way.name}.console.log"
        try:
            with rig.Guest(made, "release", rig.MACHINES["A"], console=console) as guest:
                for each in trial.run(guest, way, MANNERS):
                    trials.append(each)
                    print(report.table({f"{way.name} {each.manner}": measure(each)}), flush=True)
        except (rig.GuestError, rig.CommandFailed, AssertionError) as error:
            failed.append(f"{way.name}: {str(error).splitlines()[0]}")
            print(error, file=sys.stderr)
    judged = write(options.out, trials, {way.name: way for way in chosen}, failed)
    return 0 if not failed and all(met for _, met in judged) else 1


def write(
    out: Path, trials: list[trial.Trial], chosen: dict[str, ways.Way], failed: list[str]
) -> list[tuple[str, bool]]:
    """Files and a summary on stdout; returns the bars."""
    by_manner = {
        manner.name: {each.way: measure(each) for each in trials if each.manner == manner.name}
        for manner in MANNERS
    }
    text = ""
    for manner in MANNERS:
        measured = by_manner[manner.name]
        if measured:
            text += f"The program runs {manner.about}:\n\n{report.table(measured)}\n"
            same = [each for each in trials if each.manner == manner.name]
            colours = {name: way.colour for name, way in chosen.items()}
            plot = report.svg(same, colours)
            (out / f"compare-{manner.name}.svg").write_text(plot)
    own = {name: measured for name, measured in by_manner.items() if "tierd" in measured}
    judged = report.bars(own)
    text += "".join(f"- {'met' if met else '**missed**'}: {what}\n" for what, met in judged)
    text += "".join(f"- **failed**: {what}\n" for what in failed)
    (out / "compare.json").write_text(json.dumps([asdict(each) for each in trials]))
    (out / "compare.md").write_text(text)
    print(text, end="")
    return judged


if __name__ == "__main__":
    sys.exit(main())
