# SPDX-License-Identifier: Apache-2.0
"""The tables, as Markdown that can be read as it is."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from . import figures
from .figures import Bar, Run


def tables(run: Run) -> str:
    """All of them."""
    text = []
    for n in run.processes:
        text += [f"## {n} process{'es' if n > 1 else ''}", ""]
        for stale in (0, 50):
            text += [f"µs per moved page, {stale} % of the addresses stale: CPU / wall", ""]
            text += table(_TIMES, (_times(run, n, batch, stale) for batch in run.batches))
        text += ["Moves nothing, all pages are there: µs per page, CPU / wall", ""]
        text += table(_STILL, (_still(run, n, batch) for batch in run.batches))
        text += ["Most memory beside the pages themselves, KiB: caller + kernel", ""]
        text += table(_MEMORY, (_memory(run, n, batch) for batch in run.batches))
        text += [_amortised(run, n), ""]
    return "\n".join(text)


_TIMES = (
    "batch",
    "move_phys_pages",
    "move_pages, known",
    "translation + move_pages",
    "whole processes, CPU per wanted page",
    "phys : known",
    "translation : phys",
)
_STILL = ("batch", "move_phys_pages", "move_pages, known", "translation + move_pages")
_MEMORY = (
    "batch",
    "move_phys_pages",
    "move_pages, known",
    "translation + move_pages",
    "table of all pages + move_pages",
    "translation : phys",
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """With columns that line up, and an empty line after it."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    out = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)) + " |" for x in lines
    ]
    return [out[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *out[1:], ""]


def number(value: float | None) -> str:
    """Three figures."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _pair(run: Run, n: int, way: str, batch: int, **which: object) -> str:
    cpu = run.median(n, way, batch, "cpu", **which)  # type: ignore[arg-type]
    wall = run.median(n, way, batch, "wall", **which)  # type: ignore[arg-type]
    if cpu is None or wall is None:
        return "-"
    return f"{number(cpu / 1e3)} / {number(wall / 1e3)}"


def _ratios(values: Iterable[float | None]) -> str:
    return " / ".join(number(value) for value in values)


def _times(run: Run, n: int, batch: int, stale: int) -> list[str]:
    whole = run.median(n, "process", 0, "cpu")
    pages = sum(check.pages for check in run.checks if check.processes == n)
    hit = figures.pages_of_processes_hit(n, pages, batch)
    units: tuple[figures.Unit, ...] = ("cpu", "wall")
    phys, known = (run.of(n, way, batch, stale=stale) for way in ("phys", "known"))
    return [
        f"{batch:,}",
        _pair(run, n, "phys", batch, stale=stale),
        _pair(run, n, "known", batch, stale=stale),
        _pair(run, n, "scan", batch, stale=stale),
        number(whole / 1e3 * hit / batch if whole else None),
        _ratios(figures.ratio(phys, known, unit) for unit in units),
        _ratios(figures.multiple(run, n, batch, unit, stale=stale) for unit in units),
    ]


def _still(run: Run, n: int, batch: int) -> list[str]:
    ways = ("phys", "known", "scan")
    return [f"{batch:,}", *(_pair(run, n, way, batch, variant="still") for way in ways)]


def _memory(run: Run, n: int, batch: int) -> list[str]:
    ways = ("phys", "known", "scan", "table")
    parts = [run.memory(n, way, batch) for way in ways]
    cells = [f"{p.user_bytes // 1024} + {p.kernel_bytes // 1024}" if p else "-" for p in parts]
    phys, scan = parts[0], parts[2]
    return [f"{batch:,}", *cells, number(scan.bytes / phys.bytes if phys and scan else None)]


def _amortised(run: Run, n: int) -> str:
    shared = figures.shared_pass(run, n) or (None, None)
    whole = run.median(n, "process", 0, "cpu")
    still = run.median(n, "process", 0, "cpu", variant="still")
    entries = [s.cpu_ns / s.wanted for s in run.of(n, "table", 0).values()]
    return (
        f"One translation pass into a table, then a batch of each size from it:"
        f" {_us(shared[0])} µs CPU per page, {number(shared[1])} x that of move_phys_pages for the"
        f" same pages. The pass takes {_us(statistics.median(entries) if entries else None)} µs per"
        f" page table entry. migrate_pages on a whole process: {_us(whole)} µs CPU per page that it"
        f" moves, {_us(still)} per page of the process when it has none to move."
    )


def _us(ns: float | None) -> str:
    return number(None if ns is None else ns / 1e3)


def judged(bars: Sequence[Bar]) -> str:
    """Every bar, the missed ones first."""
    lines = [f"- {'met' if bar.met else '**missed**'}: {bar.text}" for bar in bars]
    return "\n".join(sorted(lines, key=lambda line: line.startswith("- met"))) + "\n"
