# SPDX-License-Identifier: Apache-2.0
"""Documents of the control socket as text for people, at most 80 columns wide.

Standard library only: `tierctl` must start at once.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TextIO

WIDTH: Final = 80
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_LABEL: Final = 10
"""Columns of the labels on the left."""


class Style:
    """Emphasis on a terminal, nothing elsewhere or with NO_COLOR (https://no-color.org)."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self.on = stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self.on else text

    def warn(self, text: str) -> str:
        return f"\x1b[1;31m{text}\x1b[0m" if self.on else text


def size(value: float | None) -> str:
    """ "15.6 GiB" of bytes."""
    if value is None:
        return "-"
    number = float(value)
    for unit in _UNITS:
        if abs(number) < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("unreachable")


def seconds(value: float | None) -> str:
    """ "0.21 s", "3 min" or "2.5 h" of seconds."""
    if value is None:
        return "-"
    if value < 90:
        return f"{value:.2f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def percent(value: float | None) -> str:
    """ "93.1 %" of a ratio."""
    return "-" if value is None else f"{value:.1%}".replace("%", " %")


def _labelled(label: str, text: str) -> Iterator[str]:
    """`text` wrapped beside its label."""
    lines = textwrap.wrap(text, WIDTH - _LABEL, break_on_hyphens=False) or [""]
    for index, line in enumerate(lines):
        yield f"{label if index == 0 else '':<{_LABEL}}{line}"


def status(doc: Mapping[str, Any], style: Style) -> str:
    """The answer to `status`."""
    return "\n".join(_status(doc, style)) + "\n"


def _status(doc: Mapping[str, Any], style: Style) -> Iterator[str]:
    cycle, config = doc["cycle"], doc["config"]
    yield style.bold(f"tierd {doc['version']} on {doc['host']}, up {seconds(doc['uptime'])}")
    mode = doc["mode"]
    if mode != config["mode"]:
        mode += f" (the policy says {config['mode']})"
    yield from _labelled("mode", f"{mode}, sampler {doc['sampler']}, mover {doc['mover']}")
    yield from _labelled("policy", config["source"])
    took = f"{seconds(cycle['duration'])} of {seconds(cycle['interval'])}"
    text = f"{cycle['number']}, {took}, {cycle['overruns']} too long, {cycle['failures']} failed"
    yield from _labelled("cycle", text)
    yield from _labelled("hit ratio", percent(doc["hit_ratio"]))
    if cycle["back_off"]:
        causes = " and ".join(cycle["back_off_causes"]) or "recovering from"
        text = f"{percent(cycle['back_off'])} of the rates are held back: {causes} pressure"
        yield from map(style.warn, _labelled("back-off", text))
    if doc.get("metrics"):
        yield from _labelled("metrics", doc["metrics"])
    if trace := doc.get("trace"):
        ended = f", ended: {trace['ended']}" if trace["ended"] else ""
        yield from _labelled("trace", f"{trace['file']}, {size(trace['size'])}{ended}")
    for reason in doc["degraded"]:
        yield from map(style.warn, _labelled("degraded", reason))
    if not config["last_reload"]["ok"]:
        for index, line in enumerate(config["last_reload"]["problems"]):
            yield from map(style.warn, _labelled("" if index else "refused", line))
    for each in doc["foreign_tierers"]:
        yield from _labelled("beside", each["detail"])
    yield ""
    yield from _tier_table(doc["tiers"], style)
    yield ""
    yield from _moves_table(doc["moves"], style)


def _tier_table(tiers: Sequence[Mapping[str, Any]], style: Style) -> Iterator[str]:
    columns = f"{'total':>10} {'free':>10} {'headroom':>21} {'hot':>10}"
    yield style.bold(f"{'tier':<14}  {'nodes':<6} {columns}")
    for tier in tiers:
        nodes = ",".join(map(str, tier["nodes"]))
        room = f"{size(tier.get('headroom_low'))}-{size(tier.get('headroom_high'))}"
        yield (
            f"{tier['name'][:14]:<14}  {nodes:<6} {size(tier.get('total')):>10}"
            f" {size(tier.get('free')):>10} {room:>21} {size(tier.get('hot')):>10}"
        )


def _moves_table(moves: Mapping[str, Mapping[str, Any]], style: Style) -> Iterator[str]:
    yield style.bold(f"{'moves':<10}{'in all':>12}{'last cycle':>13}{'limit':>14}")
    for name, entry in moves.items():
        limit = entry["rate_limit"]
        shown = "-" if limit is None else f"{size(limit)}/s"
        yield (
            f"{name:<10}{size(entry['bytes']):>12}{size(entry['last_cycle_bytes']):>13}{shown:>14}"
        )
    for name, entry in moves.items():
        stayed = entry["last_cycle_skipped_pages"]
        if stayed:
            text = ", ".join(f"{reason} {pages}" for reason, pages in stayed.items())
            yield from _labelled("stayed", f"{name}: {text} (pages, last cycle)")


def top(doc: Mapping[str, Any], style: Style) -> str:
    """The answer to `top`."""
    return "\n".join(_top(doc, style)) + "\n"


def _top(doc: Mapping[str, Any], style: Style) -> Iterator[str]:
    tiers = doc["tiers"][:3]
    columns = "".join(f"{name[:10]:>11}" for name in tiers)
    width = WIDTH - 11 * (len(tiers) + 2) - 3
    yield style.bold(f"{'class':<{width}}{columns}{'up':>11}{'down':>11}")
    for each in doc["classes"]:
        name = each["match"]
        name = name if len(name) < width else f"{name[: width - 2]}~"
        sizes = "".join(f"{size(each['resident'].get(tier, 0)):>11}" for tier in tiers)
        mark = " !" if each["stopped"] else ""
        up, down = size(each["promoted"]), size(each["demoted"])
        yield f"{name:<{width}}{sizes}{up:>11}{down:>11}{mark}"
    if not doc["classes"]:
        yield "the policy names no classes"
    if any(each["stopped"] for each in doc["classes"]):
        yield "! promotion is stopped: too much of it was undone soon after"
    for tier, heat in doc["heat"].items():
        yield ""
        yield style.bold(f"{tier}: pages by heat, coldest first")
        yield from _bars(heat)


def _bars(heat: Sequence[int]) -> Iterator[str]:
    most = max(heat, default=0)
    for bucket, pages in enumerate(heat):
        bar = "#" * (round(pages / most * 50) if most else 0)
        yield f"{bucket:>3} {pages:>14} {bar}".rstrip()


def explain(doc: Mapping[str, Any], style: Style) -> str:
    """The answer to `explain`."""
    lines = [style.bold(f"page frame {doc['pfn']}")]
    for key, value in doc.items():
        if key != "pfn":
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines += _labelled(key, shown)
    return "\n".join(lines) + "\n"


def probe(doc: Mapping[str, Any], style: Style) -> str:
    """What `tierd probe` found."""
    return "\n".join(_probe(doc, style)) + "\n"


def _probe(doc: Mapping[str, Any], style: Style) -> Iterator[str]:
    yield style.bold(doc["host"])
    yield from _labelled("policy", doc["policy"])
    yield ""
    yield style.bold("capabilities")
    for each in doc["capabilities"]:
        yield from _row(f"{each['name']:<16}{'yes' if each['available'] else 'no':<5}", each)
    yield ""
    yield style.bold("ladder")
    for each in doc["ladder"]:
        taken = "taken" if each["chosen"] else "-"
        yield from _row(f"{each['kind']:<7}{each['name']:<16}{taken:<7}", each)
    yield ""
    yield style.bold("tiers, fastest first")
    for each in doc["tiers"]:
        nodes = ",".join(map(str, each["nodes"]))
        yield from _row(f"{each['name']:<16}node {nodes:<5}", {"reason": each["why"]})
    for label in ("problem", "degraded", "foreign"):
        for text in doc[label]:
            yield ""
            yield from map(style.warn, _labelled(label, text))


def _row(start: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """Columns, then a reason that is wrapped beside them."""
    start = f"  {start}"
    lines = textwrap.wrap(entry["reason"], WIDTH - len(start), break_on_hyphens=False) or [""]
    for index, line in enumerate(lines):
        yield f"{start if index == 0 else ' ' * len(start)}{line}"


STRETCHES: Final = 10
"""Rows of a forecast's course."""


def forecast(doc: Mapping[str, Any], style: Style) -> str:
    """What `tierd replay` found."""
    return "\n".join(_forecast(doc, style)) + "\n"


def _forecast(doc: Mapping[str, Any], style: Style) -> Iterator[str]:
    trace, policies = doc["trace"], doc["policies"]
    text = f"{trace['file']}: {trace['cycles']} cycles in {seconds(trace['seconds'])}, "
    yield from map(style.bold, _labelled("trace", text + f"{size(trace['seen'])} seen"))
    yield from _labelled("host", f"{trace['host']}, tierd {trace['tierd']}")
    if not trace["complete"]:
        yield from map(style.warn, _labelled("", "it was cut off: the cycles that are whole count"))
    for label, each in zip("AB", policies, strict=False):
        name = f"policy {label}" if len(policies) > 1 else "policy"
        yield from _labelled(name, each["policy"])
    yield ""
    yield from _totals(policies, style)
    for label, each in zip("AB", policies, strict=False):
        yield from _placement(each, f"policy {label}" if len(policies) > 1 else "", style)
        for way, reasons in each["skipped_pages"].items():
            if reasons:
                found = ", ".join(f"{name} {pages}" for name, pages in reasons.items())
                yield from _labelled("stayed", f"{way}: {found} (pages, all cycles)")
    yield ""
    yield from _course(policies, style)


def _totals(policies: Sequence[Mapping[str, Any]], style: Style) -> Iterator[str]:
    names = ["A", "B"] if len(policies) > 1 else ["forecast"]
    heads = "".join(f"{name:>14}" for name in ("recorded", *names[: len(policies)]))
    yield style.bold(f"{'':<24}{heads}")
    first = policies[0]["recorded_hit_ratio"]
    for key, text in (("mean", "hit ratio, mean"), ("last", "hit ratio, at the end")):
        values = [first[key], *(each["hit_ratio"][key] for each in policies)]
        yield f"{text:<24}" + "".join(f"{percent(value):>14}" for value in values)
    for key, text in (
        ("promoted", "promoted"),
        ("demoted", "demoted"),
        ("wasted", "of that in vain"),
    ):
        sizes = "".join(f"{size(each[key]):>14}" for each in policies)
        yield f"{text:<24}{'':>14}{sizes}"


def _placement(policy: Mapping[str, Any], title: str, style: Style) -> Iterator[str]:
    """Where the classes are at the end."""
    tiers = policy["tiers"]
    if not policy["resident"]:
        return
    yield ""
    heads = "".join(f"{name[:11]:>13}" for name in tiers[:4])
    width = WIDTH - len(heads)
    yield style.bold(f"{title + ' at the end' if title else 'at the end':<{width}}{heads}")
    for name in policy["resident"][tiers[0]]:
        sizes = [policy["resident"][tier][name] for tier in tiers]
        if name or any(sizes):
            shown = name or ("others" if len(policy["resident"][tiers[0]]) > 1 else "all")
            shown = shown if len(shown) < width else f"{shown[: width - 2]}~"
            yield f"{shown:<{width}}" + "".join(f"{size(each):>13}" for each in sizes[:4])


def _course(policies: Sequence[Mapping[str, Any]], style: Style) -> Iterator[str]:
    """Hit ratio and moves over time, in a few stretches."""
    points = len(policies[0]["series"])
    if not points:
        return
    labels = ["A", "B"] if len(policies) > 1 else [""]
    heads = "".join(f"{f'hit {x}'.strip():>9}{'up':>11}{'down':>11}" for x in labels)
    yield style.bold(f"{'until':>8}{'recorded':>10}{heads}")
    begin = policies[0]["series"][0]["time"]
    edges = sorted({points * (i + 1) // STRETCHES for i in range(STRETCHES)} - {0})
    for first, end in zip([0, *edges], edges, strict=False):
        until = policies[0]["series"][end - 1]
        line = f"{seconds(until['time'] - begin):>8}{percent(until['recorded_hit_ratio']):>10}"
        for each in policies:
            part = each["series"][first:end]
            up, down = (size(sum(p[key] for p in part)) for key in ("promoted", "demoted"))
            line += f"{percent(part[-1]['hit_ratio']):>9}{up:>11}{down:>11}"
        yield line


class CycleTable:
    """One line per cycle, under a heading that comes again now and then."""

    EVERY: Final = 20

    def __init__(self, style: Style, width: int = WIDTH) -> None:
        """`width`: columns that a line may take; reasons that do not fit are left out."""
        self._style = style
        self._width = width
        self._lines = 0

    def lines(self, doc: Mapping[str, Any]) -> Iterator[str]:
        """The heading when it is due, and the line of the status document `doc`."""
        tiers = [tier for tier in doc["tiers"] if "total" in tier]
        if self._lines % self.EVERY == 0:
            columns = "".join(f"{tier['name'][:8] + ' GiB':>14}{'free':>7}" for tier in tiers)
            head = f"{'cycle':>5}{columns}{'hit %':>7}{'up MiB':>8}{'down':>6}  stayed, MiB"
            yield self._style.bold(head)
        self._lines += 1
        columns = "".join(
            f"{(tier['total'] - tier['free']) / 2**30:>14.2f}{tier['free'] / 2**30:>7.2f}"
            for tier in tiers
        )
        hit = "-" if doc["hit_ratio"] is None else f"{doc['hit_ratio'] * 100:.1f}"
        up, down = (doc["moves"][way]["last_cycle_bytes"] / 2**20 for way in ("promote", "demote"))
        line = f"{doc['cycle']['number']:>5}{columns}{hit:>7}{up:>8.0f}{down:>6.0f}  "
        yield (line + _stayed(doc["moves"], doc["page_size"], self._width - len(line))).rstrip()


def _stayed(moves: Mapping[str, Mapping[str, Any]], page: int, room: int) -> str:
    """Why candidates stayed in the last cycle, the most first, as many as fit in `room`."""
    counts: dict[str, int] = {}
    for entry in moves.values():
        for reason, pages in entry["last_cycle_skipped_pages"].items():
            counts[reason] = counts.get(reason, 0) + pages
    found = sorted(counts.items(), key=lambda item: -item[1])
    parts = [f"{reason} {pages * page / 2**20:.1f}" for reason, pages in found]
    text = ", ".join(parts)
    while len(text) > room and len(parts) > 1:
        parts.pop()
        text = ", ".join([*parts, "..."])
    return text or "-"
