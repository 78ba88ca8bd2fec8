# SPDX-License-Identifier: Apache-2.0
"""What came of it: measures, bars, tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .references import Limited, Observer
from .run import LIMIT, Outcome, t90

COLOURS = {
    "tierd": "#c1121f",
    "age": "#8d99ae",
    "lru": "#457b9d",
    "regions": "#b08968",
    "cooling": "#588157",
    "first touch": "#adb5bd",
    "limited oracle": "#222222",
    "best observer": "#9d4edd",
}

BOUNDS = (Limited.name, Observer.name)
"""What no policy can beat: not among the references."""

PAGE = 4096

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
        "moved_bytes": int(promoted.sum()) * PAGE,
        "wasted_bytes": outcome.wasted * PAGE,
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
    """Each bar in words with what was reached, and whether it is met. A bar about one run is
    judged by the worst seed, a comparison by the mean of all."""
    result: list[Bar] = []
    for ratio, workload in _places(outcomes):
        mine = [
            o for o in outcomes if (o.ratio, o.workload, o.policy) == (ratio, workload, "tierd")
        ]
        if mine:
            result += _own_bars(mine, f"1:{ratio} {workload}")
    return result + _against_references(outcomes)


AFTER = {
    "zipf 0.6": (199, 0.97),
    "zipf 0.8": (199, 0.97),
    "zipf 0.99": (60, 0.99),
    "zipf 1.2": (60, 0.99),
    "hot set 90/10": (30, 0.99),
    "hot set 90/10 together": (30, 0.99),
}
"""Hit ratio over the oracle's that is reached after so many windows."""


def _own_bars(mine: Sequence[Outcome], where: str) -> list[Bar]:
    name = mine[0].workload
    if name in AFTER:
        window, least = AFTER[name]
        hit = min(each.hits[window] for each in mine)
        text = f"{where}: hit ratio {hit:.3f} after {window} windows, at least {least}"
        return [(text, hit >= least)]
    if name == "hot set settled":
        share = max(sum(each.promoted[-100:]) / each.capacity for each in mine)
        text = f"{where}: moves {share:.1%} of the fast tier in 100 windows, at most 2 %"
        return [(text, share <= 0.02)]
    if name == "uniform":
        rate = max(np.mean(o.promoted[-100:]) / (LIMIT * o.capacity) for o in mine)
        return [(f"{where}: {rate:.2%} of the rate limit once settled, below 1 %", rate < 0.01)]
    if name == "sequential scan":
        half = len(mine[0].hits) // 2
        loss = max(1 - np.mean(o.hits[half:]) / np.mean(o.hits[half - 20 : half]) for o in mine)
        return [(f"{where}: costs {loss:.2%} of the hits, below 1 %", loss < 0.01)]
    if "shift" in name:
        return _shift_bars(mine, where)
    if name == "hot set flips":
        return _flip_bars(mine, where)
    return []


def _shift_bars(mine: Sequence[Outcome], where: str) -> list[Bar]:
    each = [measures(o) for o in mine]
    slowest = max((m["t90"][-1] is None, m["t90"][-1] or 0) for m in each)
    moved = max(m["moved_over_ideal"][-1] for m in each)
    took = "never" if slowest[0] else f"{slowest[1]} windows"
    result = [
        (f"{where}: t90 {took}, at most 4", not slowest[0] and slowest[1] <= 4),
        (f"{where}: moves {moved} x the ideal after the shift, at most 3.2", moved <= 3.2),
    ]
    found = [o.found for o in mine if o.found is not None]
    if found:
        text = f"{where}: {min(found):.1%} of the new part are candidates after two looks, 90 %"
        result.append((text, min(found) >= 0.9))
    return result


def _flip_bars(mine: Sequence[Outcome], where: str) -> list[Bar]:
    """Nobody can know that the flipping has stopped before the next flip fails to come."""
    tripped, late = True, 0
    for each in mine:
        last = each.shifts[0]
        tripped &= any(each.stopped[:last])
        held = np.flatnonzero(each.stopped[last + each.period :])
        late = max(late, int(held[-1]) + 1 if len(held) else 0)
    return [
        (f"{where}: the governor stops the class while it flips", tripped),
        (f"{where}: at work {late} looks after a flip failed to come, at most 2", late <= 2),
    ]


def _places(outcomes: Sequence[Outcome]) -> list[tuple[int, str]]:
    return list(dict.fromkeys((o.ratio, o.workload) for o in outcomes))


def _hits(outcomes: Sequence[Outcome]) -> dict[tuple[int, str, str], float]:
    """Mean over seeds and windows."""
    lists: dict[tuple[int, str, str], list[float]] = {}
    for o in outcomes:
        lists.setdefault((o.ratio, o.workload, o.policy), []).append(measures(o)["hit"])
    return {key: float(np.mean(values)) for key, values in lists.items()}


def _against_references(outcomes: Sequence[Outcome]) -> list[Bar]:
    names = [n for n in dict.fromkeys(o.policy for o in outcomes) if n not in BOUNDS]
    if len(names) < 2:
        return []
    hit, places = _hits(outcomes), _places(outcomes)
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


def _cell(runs: Sequence[Outcome], key: str, form: str) -> str:
    """Median over the seeds, of lists entry by entry; never (None) is later than all."""
    if not runs:
        return ""
    values = [measures(o)[key] for o in runs]
    if not isinstance(values[0], list):
        return form.format(float(np.median(values)))
    cells = []
    for column in zip(*values, strict=True):
        middle = float(np.median([np.inf if v is None else v for v in column]))
        cells.append("never" if np.isinf(middle) else f"{middle:g}")
    return ", ".join(cells)


def tables(outcomes: Sequence[Outcome], judged: Sequence[Bar]) -> str:
    """Markdown."""
    names = list(dict.fromkeys(o.policy for o in outcomes))
    runs: dict[tuple[int, str, str], list[Outcome]] = {}
    for o in outcomes:
        runs.setdefault((o.ratio, o.workload, o.policy), []).append(o)
    seeds = sorted({o.seed for o in outcomes})
    text = ["# bench-policy", "", f"Medians over the seeds {', '.join(map(str, seeds))}.", ""]
    for title, key, form in (
        ("Hit ratio over the oracle's, mean of all windows", "hit", "{:.3f}"),
        ("The same, last twenty windows", "settled_hit", "{:.3f}"),
        ("Windows to 90 %, after the start and each shift", "t90", "{}"),
        (
            "Promotions over the ideal ones, after the start and each shift",
            "moved_over_ideal",
            "{}",
        ),
        ("Wasted promotions, share of the fast tier", "wasted_share", "{:.2f}"),
        ("Moved bytes", "moved_bytes", "{:.3g}"),
        ("Wasted bytes", "wasted_bytes", "{:.3g}"),
    ):
        text += [f"## {title}", "", f"| load | ratio | {' | '.join(names)} |"]
        text.append("|---|---|" + "---|" * len(names))
        for ratio, workload in _places(outcomes):
            cells = [_cell(runs.get((ratio, workload, name), []), key, form) for name in names]
            text.append(f"| {workload} | 1:{ratio} | {' | '.join(cells)} |")
        text.append("")
    text += ["## Bars", "", "About one run: the worst seed. Compared with others: mean of all.", ""]
    text += [f"- {'met' if met else '**missed**'}: {what}" for what, met in judged]
    return "\n".join(text) + "\n"


def svg(title: str, outcomes: Sequence[Outcome]) -> str:
    """Hit ratio over time, one panel per ratio, of the first seed."""
    outcomes = [each for each in outcomes if each.seed == outcomes[0].seed]
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
        x = gap + row * 105
        parts.append(f'<text x="{x}" y="{high + 65}" fill="{colour}">{name}</text>')
    total = gap + len(ratios) * (wide + gap)
    return (
        "<!-- SPDX-License-Identifier: Apache-2.0 -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(total, 900)}" height="{high + 80}"'
        f' font-family="sans-serif" font-size="12">{"".join(parts)}</svg>\n'
    )
