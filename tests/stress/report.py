# SPDX-License-Identifier: Apache-2.0
"""Results as files, and as a table for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stress.suite import STRESSORS, Result

_HEAD = (
    "| stressor | machine | guest s | calls | to fast | to slow | refused | pages checked "
    "| free, KiB | verdict |\n|---|---|---:|---:|---:|---:|---|---:|---:|---|"
)


def save(out: Path, result: Result, build: str) -> None:
    """One file per stressor and kernel, so that runs of some of them add up."""
    out.mkdir(parents=True, exist_ok=True)
    record = {"build": build, "passed": result.passed} | asdict(result)
    path = out / f"{result.name}.{result.kernel}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


def collect(out: Path, kernel: str, build: str) -> list[dict[str, Any]]:
    """All results of that very kernel, in the order of the stressors."""
    found = []
    for stressor in STRESSORS:
        path = out / f"{stressor.name}.{kernel}.json"
        if path.exists():
            record = json.loads(path.read_text())
            if record["build"] == build:
                found.append(record)
    return found


def table(records: list[dict[str, Any]]) -> str:
    return "\n".join([_HEAD, *map(_row, records)])


def _row(record: dict[str, Any]) -> str:
    report = record["report"]
    verdict = "passed" if record["passed"] else f"FAILED: {record['failures'][0][:80]}"
    if record.get("known"):
        verdict += f", {len(record['known'])} known warnings"
    if not report:
        return f"| {record['name']} | {record['machine']} | | | | | | | | {verdict} |"
    refused = sorted(report["refused"].items(), key=lambda item: -item[1])
    before, after = record["before"], record["after"]
    free = f"{after['free_kib'] - before['free_kib']:+,}" if after else ""
    cells = (
        record["name"],
        record["machine"],
        f"{report['seconds']:.0f}",
        f"{report['calls']:,}",
        f"{report['moved']['fast']:,}",
        f"{report['moved']['slow']:,}",
        ", ".join(f"{code} {count:,}" for code, count in refused),
        f"{report['checked']:,}",
        free,
        verdict,
    )
    return f"| {' | '.join(cells)} |"


def events(record: dict[str, Any]) -> str:
    """What the storm itself brought about, in a line."""
    counts = record["report"].get("events", {})
    return ", ".join(f"{name} {count:,}" for name, (count, _) in counts.items())
