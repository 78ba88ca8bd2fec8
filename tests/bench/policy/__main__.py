# SPDX-License-Identifier: Apache-2.0
"""`PYTHONPATH=daemon:tests python -m bench.policy --out DIR`: every policy on every workload.

Writes policy.json (all numbers), policy.md (tables, and every loss) and one SVG per workload.
Ends with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from itertools import count, product
from pathlib import Path

from . import report, workloads
from .core import Tierd
from .references import REFERENCES, Limited, Observer, Policy
from .run import HEADROOM, Outcome, play
from .workloads import Workload


def loads(pages: int, ratio: int, seed: int = 0) -> Iterator[Workload]:
    """The workloads for one ratio of slow over fast memory; sizes follow the fast tier's."""
    fast = int(pages // (1 + ratio) * (1 - HEADROOM))
    seeds = count(100 * seed)
    yield workloads.zipf(pages, 0.6, next(seeds), 200)
    yield workloads.zipf(pages, 0.8, next(seeds), 200)
    yield workloads.zipf(pages, 0.99, next(seeds), 100)
    yield workloads.zipf(pages, 1.2, next(seeds), 100)
    yield workloads.hot_set(pages, pages // 10, next(seeds), 60)
    yield workloads.hot_set(pages, pages // 10, next(seeds), 60, together=True)
    yield workloads.hot_set(pages, int(0.8 * fast), next(seeds), 200, settled=True)
    yield workloads.hot_shift(pages, int(0.5 * fast), 0.25, next(seeds))
    yield workloads.zipf_shift(pages, 0.99, 0.25, next(seeds))
    yield workloads.scan(pages, int(0.8 * fast), next(seeds))
    yield workloads.uniform(pages, min(2 * fast, pages), next(seeds))
    yield workloads.phases(pages, next(seeds))
    yield workloads.flips(pages, min(int(0.8 * fast), pages // 2), next(seeds))
    yield workloads.tenants(pages, next(seeds))


def policies(load: Workload, names: Collection[str]) -> Iterator[Policy]:
    """tierd, the references, and where the pages' rates shift the bounds on them."""
    every: list[Policy] = [Tierd(), *(reference() for reference in REFERENCES)]
    if load.shifts and not load.period:
        every.append(Limited())
    if load.mixed:
        every.append(Observer(load.mixed))
    yield from (policy for policy in every if not names or policy.name in names)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.policy", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench-policy"))
    parser.add_argument("--pages", type=int, default=1 << 15)
    parser.add_argument("--ratios", default="1,4,16", help="slow over fast, comma-separated")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--policies", default="", help="these only, comma-separated")
    parser.add_argument("--seeds", default="11,12,13", help="comma-separated")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    names = [name for name in options.policies.split(",") if name]
    for seed, ratio in product(*(_numbers(text) for text in (options.seeds, options.ratios))):
        for load in loads(options.pages, ratio, seed):
            if options.only in load.name:
                for policy in policies(load, names):
                    outcomes.append(play(policy, load, ratio, seed))
                    print(report.line(outcomes[-1]), flush=True)
    write(options.out, outcomes)
    missed = [text for text, met in report.bars(outcomes) if not met]
    print("\n".join(f"missed: {text}" for text in missed) or "every bar is met")
    return 1 if missed else 0


def write(out: Path, outcomes: Sequence[Outcome]) -> None:
    """All numbers, tables with every bar, and plots."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [asdict(outcome) | report.measures(outcome) for outcome in outcomes]
    (out / "policy.json").write_text(json.dumps(rows) + "\n")
    (out / "policy.md").write_text(report.tables(outcomes, report.bars(outcomes)))
    for name in dict.fromkeys(outcome.workload for outcome in outcomes):
        slug = "".join(c if c.isalnum() else "-" for c in name)
        same = [outcome for outcome in outcomes if outcome.workload == name]
        (out / f"policy-{slug}.svg").write_text(report.svg(name, same))


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
