# SPDX-License-Identifier: Apache-2.0
"""`PYTHONPATH=daemon:tests python -m bench.policy --out DIR`: every policy on every workload.

Writes policy.json (all numbers), policy.md (tables, and every loss) and one SVG per workload.
Ends with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from . import report, workloads
from .core import Tierd
from .references import REFERENCES
from .run import HEADROOM, Outcome, play
from .workloads import Workload


def loads(pages: int, ratio: int) -> Iterator[Workload]:
    """The workloads for one ratio of slow over fast memory; sizes follow the fast tier's."""
    fast = int(pages // (1 + ratio) * (1 - HEADROOM))
    yield workloads.zipf(pages, 0.6, 1, 200)
    yield workloads.zipf(pages, 0.8, 1, 200)
    yield workloads.zipf(pages, 0.99, 1, 100)
    yield workloads.zipf(pages, 1.2, 1, 100)
    yield workloads.hot_set(pages, pages // 10, 2, 60)
    yield workloads.hot_set(pages, int(0.8 * fast), 2, 200, settled=True)
    yield workloads.hot_shift(pages, int(0.5 * fast), 0.25, 3)
    yield workloads.zipf_shift(pages, 0.99, 0.25, 3)
    yield workloads.scan(pages, int(0.8 * fast), 4)
    yield workloads.uniform(pages, min(2 * fast, pages), 5)
    yield workloads.phases(pages, 6)
    yield workloads.flips(pages, min(int(0.8 * fast), pages // 2), 7)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.policy", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench-policy"))
    parser.add_argument("--pages", type=int, default=1 << 16)
    parser.add_argument("--ratios", default="1,4,16", help="slow over fast, comma-separated")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    for ratio in map(int, options.ratios.split(",")):
        for load in loads(options.pages, ratio):
            if options.only not in load.name:
                continue
            for policy in (Tierd, *REFERENCES):
                outcome = play(policy(), load, ratio, options.seed)
                outcomes.append(outcome)
                print(report.line(outcome), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [asdict(outcome) | report.measures(outcome) for outcome in outcomes]
    (options.out / "policy.json").write_text(json.dumps(rows) + "\n")
    bars = report.bars(outcomes)
    (options.out / "policy.md").write_text(report.tables(outcomes, bars))
    for name in dict.fromkeys(outcome.workload for outcome in outcomes):
        slug = "".join(c if c.isalnum() else "-" for c in name)
        same = [outcome for outcome in outcomes if outcome.workload == name]
        (options.out / f"policy-{slug}.svg").write_text(report.svg(name, same))
    missed = [text for text, met in bars if not met]
    print("\n".join(f"missed: {text}" for text in missed) or "every bar is met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
