# SPDX-License-Identifier: Apache-2.0
"""Tables, bars and the plot of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .measures import PAGES, Measures
from .trial import Trial

KNOWN_T90: Final = (8.0, 5.0)
"""Seconds that numa_balancing=2 took elsewhere, after the start and after the jump."""

_ROWS: Final = (
    ("t90 after the start", lambda m: _seconds(m.t90_start)),
    ("t90 after the jump", lambda m: _seconds(m.t90_jump)),
    ("window in DRAM, mean of each phase", lambda m: _shares(m.resident)),
    ("window in DRAM, end of each phase", lambda m: _shares(m.settled)),
    ("moved", lambda m: f"{m.moved_mib:.1f} MiB"),
    ("moved over ideal", lambda m: f"{m.over_ideal:.2f}"),
    ("moved for nothing", lambda m: f"{m.wasted_mib:.1f} MiB"),
    ("CPU of what tiers, user", lambda m: f"{m.cpu_user:.1%}"),
    ("CPU of what tiers, system", lambda m: f"{m.cpu_system:.1%}"),
    ("system time of the program", lambda m: f"{m.own_system:.1%}"),
    ("all CPU but the program's user time", lambda m: f"{m.everything:.1%}"),
    ("the settled program is slower by", lambda m: _slower(m.cost, m.cost_spread)),
    ("slower over both phases by", lambda m: _slower(m.moving)),
    ("worst stall", lambda m: f"{m.stall * 1000:.0f} ms"),
)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _slower(loss: float | None, spread: float | None = None) -> str:
    if loss is None:
        return "-"
    return f"{loss:.1%}" + (f" ± {spread:.1%}" if spread is not None else "")


def _shares(values: tuple[float, float]) -> str:
    return f"{values[0]:.0%}, {values[1]:.0%}"


def table(measured: Mapping[str, Measures]) -> str:
    """Markdown: a row for each measure, a column for each way."""
    lines = [f"| | {' | '.join(measured)} |", "|---|" + "---|" * len(measured)]
    for title, show in _ROWS:
        cells = [show(each) for each in measured.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bars(by_manner: Mapping[str, Mapping[str, Measures]]) -> list[tuple[str, bool]]:
    """What tierd must reach, in words with what it reached, and whether it did."""
    result = []
    for manner, measured in by_manner.items():
        own, rival = measured["tierd"], measured.get("numa_balancing")
        times = [("start", own.t90_start), ("jump", own.t90_jump)]
        if manner == "pausing":
            for (when, t90), known in zip(times, KNOWN_T90, strict=True):
                text = f"t90 after the {when} {_seconds(t90)}, sooner than {known:.0f} s"
                result.append((f"{manner}: {text}", t90 is not None and t90 < known))
        if rival:
            for (when, t90), other in zip(times, (rival.t90_start, rival.t90_jump), strict=True):
                text = f"t90 after the {when} {_seconds(t90)}, sooner than numa_balancing's "
                sooner = t90 is not None and (other is None or t90 < other)
                result.append((f"{manner}: {text}{_seconds(other)} here", sooner))
        cpu = own.cpu_user + own.cpu_system
        text = f"{manner}: moves {own.over_ideal:.3f} x the ideal, at most 1.05"
        result.append((text, own.over_ideal <= 1.05))
        result.append((f"{manner}: CPU {cpu:.1%} of a core, below 10 %", cpu < 0.10))
        for what, loss in (("settled", own.cost), ("over both phases", own.moving)):
            if loss is not None:
                text = f"{manner}: the program {what} {loss:.2%} slower, below 2 %"
                result.append((text, loss < 0.02))
    return result


def svg(trials: Sequence[Trial], colours: Mapping[str, str]) -> str:
    """The share of the program's present window in DRAM over time."""
    wide, high, left, top = 640, 200, 50, 20
    length = max(trial.end - trial.ready for trial in trials) / 1000
    jump = sum(trial.jump - trial.ready for trial in trials) / len(trials) / 1000
    scale = wide / length
    parts = [
        f'<rect x="{left}" y="{top}" width="{wide}" height="{high}" fill="none" stroke="#999"/>'
    ]
    for share in (0.0, 0.5, 0.9, 1.0):
        y = top + high * (1 - share)
        parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{share:.0%}</text>')
        parts.append(f'<path d="M{left} {y:.0f}h{wide}" stroke="#ddd"/>')
    for second in range(0, int(length) + 1, 5):
        x = left + second * scale
        parts.append(
            f'<text x="{x:.0f}" y="{top + high + 16}" text-anchor="middle">{second} s</text>'
        )
    x = left + jump * scale
    parts.append(f'<path d="M{x:.0f} {top}v{high}" stroke="#999" stroke-dasharray="4"/>')
    parts.append(f'<text x="{x + 4:.0f}" y="{top + high - 6}">the window jumps</text>')
    for row, trial in enumerate(trials):
        points = " ".join(
            f"{left + (s.ms - trial.ready) / 1000 * scale:.1f},"
            f"{top + high * (1 - s.windows[s.ms >= trial.jump] / PAGES):.1f}"
            for s in trial.samples
            if trial.ready <= s.ms <= trial.end
        )
        colour = colours[trial.way]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(
            f'<text x="{left + row * 130}" y="{top + high + 40}" fill="{colour}">{trial.way}</text>'
        )
    body = "\n".join(parts)
    return (
        "<!-- SPDX-License-Identifier: Apache-2.0 -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 20}"'
        f' height="{top + high + 55}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
