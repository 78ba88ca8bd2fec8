# SPDX-License-Identifier: Apache-2.0
"""Tables and bars of `bench.scale`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FRAMES = 2**30 // 4096
MIB = 2**20
BASE = 64 * MIB
START = 1.0
SCRAPE = 0.020
TOLERANCE = 1.02
"""Of the CPU share, over the minutes measured: a budget is paid back in the next cycle."""


def size(gib: int) -> str:
    return f"{gib // 1024} TiB" if gib >= 1024 else f"{gib} GiB"


def allowed(gib: int) -> int:
    """Bytes that the daemon may have in memory."""
    return BASE + 2 * gib * FRAMES


def cpu_share(row: dict[str, Any]) -> float:
    """Of one core, all but the moves: those have budgets of their own, in bytes."""
    told = row["measured"]
    return float((told["cpu"] - told["phases"].get("move", 0.0)) / told["seconds"])


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each bar that was missed."""
    lines = []
    for row in rows:
        where = size(row["gib"])
        share = cpu_share(row)
        if share > row["share"] * TOLERANCE:
            lines.append(f"{where}: CPU {share:.2%} of a core, set are {row['share']:.0%}")
        resident, bar = row["measured"]["resident"], allowed(row["gib"])
        if resident > bar:
            lines.append(f"{where}: {resident / MIB:.1f} MiB resident, {bar / MIB:.1f} allowed")
        if row["start"] > START:
            lines.append(f"{where}: start {row['start']:.2f} s, allowed are {START:.0f}")
        if row["scrape"]["p99"] > SCRAPE:
            lines.append(f"{where}: scrape p99 {row['scrape']['p99'] * 1e3:.1f} ms, allowed are 20")
    return lines


def tables(rows: Sequence[dict[str, Any]], most: int) -> str:
    """Markdown; `most` cycles, of a second, were waited for a hot set."""
    return "\n".join([_cost(rows), _find(rows, most)])


def _cost(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| memory of the host | CPU per minute, moves apart | of a core | own part | moves"
        " | resident | allowed | at most so far | start | cycle p50 | p99 | scrape p50 | p99 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        told = row["measured"]
        minutes = told["seconds"] / 60
        moves = told["phases"].get("move", 0.0)
        cells = [
            size(row["gib"]),
            f"{(told['cpu'] - moves) / minutes:.2f} s",
            f"{cpu_share(row):.2%}",
            f"{told['own'] / minutes:.2f} s",
            f"{moves / minutes:.2f} s",
            f"{told['resident'] / MIB:.1f} MiB",
            f"{allowed(row['gib']) / MIB:.1f} MiB",
            f"{told['peak'] / MIB:.1f} MiB",
            f"{row['start']:.2f} s",
            f"{told['latency'][0] * 1e3:.0f} ms",
            f"{told['latency'][1] * 1e3:.0f} ms",
            f"{row['scrape']['p50'] * 1e3:.1f} ms",
            f"{row['scrape']['p99'] * 1e3:.1f} ms",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _find(rows: Sequence[dict[str, Any]], most: int) -> str:
    lines = [
        "| memory of the host | CPU share | first seen | 90 % known for hot"
        " | 90 % in fast memory | a round takes | time to find as exported |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for told in row.get("found", []):
            cells = [size(row["gib"]), f"{told['share']:.0%}"]
            cells += [_seconds(told[key], most) for key in ("seen", "hot", "moved")]
            if told["moved"] is None:
                cells[-1] += f" ({told['fast']:.0%})"
            cells += [f"{told['bound']:.0f} s", f"{told['estimate']:.0f} s"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _seconds(value: float | None, most: int) -> str:
    return f"not in {most} s" if value is None else f"{value:.1f} s"
