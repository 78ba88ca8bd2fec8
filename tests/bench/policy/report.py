# SPDX-License-Identifier: Apache-2.0
"""What came of it: measures, bars, tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .run import LIMIT, Outcome, t90

COLOURS = {
    "tierd": "#c1121f",
    "age": "#8d99ae",
    "lru": "#457b9d",
    "regions": "#b08968",
    "cooling": "#588157",
    "first touch": "#adb5bd",
}

Bar = tuple[str, bool]


def measures(outcome: Outcome) -> dict[str, Any]:
    """hit: mean over all windows; settled: over the last twenty; t90 in windows after the start
    and after each shift; moved: promotions over the ideal ones; wasted and the settled rate as
    shares of the fast tier."""
    hits, promoted = np.array(outcome.hits), np.array(outcome.promoted)
    begins = [0, *outcome.shifts]
    ends = [*outcome.shifts, len(hits)]
    last = promoted[-100:] if len(promoted) >= 200 else promoted[-20:]
    return {
        "hit": float(hits.mean()),
        "settled_hit": float(hits[-20:].mean()),
        "t90": [t90(outcome, *span) for span in zip(begins, ends, strict=True)],
        "moved_over_ideal": [
            round(float(promoted[begin:end].sum() / max(ideal, 1)), 2)
            for begin, end, ideal in zip(begins, ends, outcome.ideal, strict=True)
        ],
        "wasted_share": outcome.wasted / outcome.capacity,
        "settled_moves": float(last.mean() * 100 / outcome.capacity),
    }


def line(outcome: Outcome) -> str:
    """One line for people."""
    m = measures(outcome)
    return (
        f"1:{outcome.ratio:<3}{outcome.workload:22}{outcome.policy:12} hit {m['hit']:.3f}"
        f" settled {m['settled_hit']:.3f} t90 {m['t90']} moved {m['moved_over_ideal']}"
        f" wasted {m['wasted_share']:.2f} F"
    )


def bars(outcomes: Sequence[Outcome]) -> list[Bar]:
    """Each bar in words with what was reached, and whether it is met."""
    result: list[Bar] = []
    for each in outcomes:
        if each.policy != "tierd":
            continue
        where = f"1:{each.ratio} {each.workload}"
        m = measures(each)
        for name, window, least in (
            ("zipf 0.6", 199, 0.97),
            ("zipf 0.8", 199, 0.97),
            ("zipf 0.99", 60, 0.99),
            ("zipf 1.2", 60, 0.99),
            ("hot set 90/10", 30, 0.99),
        ):
            if each.workload == name:
                hit = each.hits[window]
                text = f"{where}: hit ratio {hit:.3f} after {window} windows, at least {least}"
                result.append((text, hit >= least))
        result += _special(each, where, m)
    return result + _against_references(outcomes)


def _special(each: Outcome, where: str, m: dict[str, Any]) -> list[Bar]:
    name, promoted = each.workload, np.array(each.promoted)
    if name == "hot set settled":
        share = promoted[-100:].sum() / each.capacity
        return [
            (
                f"{where}: moves {share:.1%} of the fast tier in 100 windows, at most 2 %",
                share <= 0.02,
            )
        ]
    if name == "uniform":
        rate = promoted[-100:].mean() / (LIMIT * each.capacity)
        return [
            (f"{where}: {rate:.2%} of the rate limit once settled, below 1 %", bool(rate < 0.01))
        ]
    if name == "sequential scan":
        half = len(each.hits) // 2
        loss = 1 - np.mean(each.hits[half:]) / np.mean(each.hits[half - 20 : half])
        return [(f"{where}: costs {loss:.2%} of the hits, below 1 %", bool(loss < 0.01))]
    if "shift" in name:
        t, moved = m["t90"][-1], m["moved_over_ideal"][-1]
        met = t is not None and t <= 4 and moved <= 3.2
        return [(f"{where}: t90 {t} windows (4) with {moved} x the ideal moves (3.2)", met)]
    return []


def _against_references(outcomes: Sequence[Outcome]) -> list[Bar]:
    hit = {(o.ratio, o.workload, o.policy): measures(o)["hit"] for o in outcomes}
    names = list(dict.fromkeys(o.policy for o in outcomes))
    places = list(dict.fromkeys((o.ratio, o.workload) for o in outcomes))
    mean = {
        name: float(np.exp(np.mean([np.log(hit[(*place, name)]) for place in places])))
        for name in names
    }
    text = ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
    best = max(value for name, value in mean.items() if name != "tierd")
    result = [(f"geometric mean of hit ratios, best of all: {text}", mean["tierd"] >= best)]
    for ratio, workload in places:
        top = max(names, key=lambda name: hit[ratio, workload, name])
        behind = 1 - hit[ratio, workload, "tierd"] / hit[ratio, workload, top]
        if behind > 0:
            where = f"1:{ratio} {workload}"
            result.append((f"{where}: {behind:.1%} behind {top}, at most 3 %", behind <= 0.03))
    return result


def tables(outcomes: Sequence[Outcome], judged: Sequence[Bar]) -> str:
    """Markdown."""
    names = list(dict.fromkeys(o.policy for o in outcomes))
    measured = {(o.ratio, o.workload, o.policy): measures(o) for o in outcomes}
    text = ["# bench-policy", ""]
    for title, key, form in (
        ("Hit ratio over the oracle's, mean of all windows", "hit", "{:.3f}"),
        ("The same, last twenty windows", "settled_hit", "{:.3f}"),
        ("Windows to 90 %, after the start and each shift", "t90", "{}"),
        ("Promotions over the ideal ones", "moved_over_ideal", "{}"),
        ("Wasted promotions, share of the fast tier", "wasted_share", "{:.2f}"),
    ):
        text += [f"## {title}", "", f"| load | ratio | {' | '.join(names)} |"]
        text.append("|---|---|" + "---|" * len(names))
        for ratio, workload in dict.fromkeys((o.ratio, o.workload) for o in outcomes):
            cells = [form.format(measured[ratio, workload, name][key]) for name in names]
            text.append(f"| {workload} | 1:{ratio} | {' | '.join(cells)} |")
        text.append("")
    text += ["## Bars", ""]
    text += [f"- {'met' if met else '**missed**'}: {what}" for what, met in judged]
    return "\n".join(text) + "\n"


def svg(title: str, outcomes: Sequence[Outcome]) -> str:
    """Hit ratio over time, one panel per ratio."""
    ratios = list(dict.fromkeys(o.ratio for o in outcomes))
    wide, high, gap = 300, 180, 40
    parts = []
    for column, ratio in enumerate(ratios):
        left = gap + column * (wide + gap)
        parts.append(f'<text x="{left}" y="30">{title}, 1:{ratio}</text>')
        parts.append(
            f'<rect x="{left}" y="40" width="{wide}" height="{high}" fill="none" stroke="#999"/>'
        )
        for each in outcomes:
            if each.ratio == ratio:
                scale = wide / max(len(each.hits) - 1, 1)
                points = " ".join(
                    f"{left + t * scale:.1f},{40 + high * (1 - min(hit, 1)):.1f}"
                    for t, hit in enumerate(each.hits)
                )
                colour = COLOURS[each.policy]
                parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    for row, (name, colour) in enumerate(COLOURS.items()):
        x = gap + row * 110
        parts.append(f'<text x="{x}" y="{high + 65}" fill="{colour}">{name}</text>')
    total = gap + len(ratios) * (wide + gap)
    return (
        "<!-- SPDX-License-Identifier: Apache-2.0 -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(total, 720)}" height="{high + 80}"'
        f' font-family="sans-serif" font-size="12">{"".join(parts)}</svg>\n'
    )
