# SPDX-License-Identifier: Apache-2.0
"""What the daemon knows of itself, as immutable snapshots that any thread may read, and the
documents that the control socket answers with."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, cast

from tierd import __version__
from tierd.assembly import Foundation, rungs
from tierd.engine import CycleReport, TierReport
from tierd.planner import Direction, Reason

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reload:
    """How the last attempt to load a policy ended. `when` is Unix time."""

    ok: bool
    when: float
    source: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """A trace in the making. `size` in bytes; `ended` is why no more is written, None while it
    is."""

    file: str
    size: int
    ended: str | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the start of the daemon, in base pages."""

    moved: Mapping[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    skipped: Mapping[tuple[Direction, Reason], int] = field(default_factory=dict)
    wasted: int = 0

    def plus(self, report: CycleReport) -> Totals:
        moved = dict(self.moved)
        for flow in report.flows:
            moved[flow.direction] += flow.moved
        skipped = dict(Counter(self.skipped) + Counter(report.skipped))
        return Totals(moved, skipped, self.wasted + report.wasted_pages)


@dataclass(frozen=True, slots=True)
class State:
    """One moment of the daemon."""

    host: str
    page_size: int
    foundation: Foundation
    started: float
    """Unix time."""
    reload: Reload
    report: CycleReport | None = None
    totals: Totals = Totals()
    cycles: int = 0
    failures: int = 0
    overruns: int = 0
    paused: bool = False
    """By an operator."""
    held: tuple[str, ...] = ()
    """Why the daemon itself moves nothing for the time being."""
    metrics: str | None = None
    """Where /metrics is served."""
    recording: Recording | None = None
    """What is written into a trace, if anything."""

    @property
    def mode(self) -> str:
        """ "tier", "observe", "paused", or "starting" before the first cycle."""
        return self.report.mode if self.report else "starting"

    @property
    def degraded(self) -> tuple[str, ...]:
        """Why less is done than the policy asks for."""
        reasons = self.report.degraded if self.report else self.foundation.ladder.degraded
        return (*reasons, *(why for why in self.held if why not in reasons))

    def summary(self) -> str:
        """One line for `systemctl status`."""
        ladder = self.foundation.ladder
        sampler, mover = "+".join(ladder.samplers) or "none", ladder.mover or "none"
        text = f"{self.mode}, sampler {sampler}, mover {mover}, cycle {self.cycles}"
        if self.report and self.report.hit_ratio is not None:
            text += f", hit ratio {self.report.hit_ratio:.1%}"
        moved = sum(self.totals.moved.values()) * self.page_size
        text += f", {moved / 2**20:.0f} MiB moved"
        if self.degraded:
            text += f", degraded: {self.degraded[0]}"
        if not self.reload.ok:
            text += f", reload refused: {self.reload.problems[0]}"
        return text


def status(state: State) -> dict[str, Any]:
    """The answer to `status`; docs/control.md describes it. Sizes in bytes, times in seconds."""
    config, ladder = state.foundation.config, state.foundation.ladder
    report = state.report
    return finite(
        {
            "version": __version__,
            "host": state.host,
            "page_size": state.page_size,
            "pid": os.getpid(),
            "uptime": time.time() - state.started,
            "mode": state.mode,
            "degraded": list(state.degraded),
            "config": {
                "mode": config.mode.value,
                "source": state.foundation.loaded.source,
                "files": list(state.foundation.loaded.files),
                "last_reload": {
                    "ok": state.reload.ok,
                    "when": state.reload.when,
                    "problems": list(state.reload.problems),
                },
            },
            "sampler": "+".join(ladder.samplers) or "none",
            "mover": ladder.mover or "none",
            "metrics": state.metrics,
            "trace": asdict(state.recording) if state.recording else None,
            "cycle": _cycle(state),
            "hit_ratio": report.hit_ratio if report else None,
            "tiers": _tiers(state),
            "moves": {direction.value: _moves(state, direction) for direction in Direction},
            "wasted_bytes": state.totals.wasted * state.page_size,
            "samplers": [
                {
                    "name": each.name,
                    "looked": each.looked,
                    "accessed": each.accessed,
                    "lost": each.lost,
                    "window": each.window,
                    "coverage": each.coverage,
                    "round_time": each.round_time,
                    "find_time": each.find_time,
                }
                for each in (report.samplers if report else ())
            ],
            "ladder": rungs(ladder),
            "foreign_tierers": [
                {"name": each.name, "detail": each.detail} for each in state.foundation.foreign
            ],
        }
    )


def _cycle(state: State) -> dict[str, Any]:
    report = state.report
    cpu = sum(times.total for times in report.cpu.values()) if report else None
    return {
        "number": state.cycles,
        "failures": state.failures,
        "overruns": state.overruns,
        "interval": state.foundation.config.interval,
        "duration": report.duration if report else None,
        "cpu_seconds": cpu,
        "threshold": report.threshold if report else None,
        "pressure": dict(report.pressure) if report else None,
        "back_off": report.back_off if report else None,
        "back_off_causes": list(report.back_off_causes) if report else [],
    }


def _tiers(state: State) -> list[dict[str, Any]]:
    now: dict[str, TierReport] = {}
    if state.report:
        now = {tier.name: tier for tier in state.report.tiers}
    result: list[dict[str, Any]] = []
    for info in state.foundation.topology.tiers:
        entry: dict[str, Any] = {
            "name": info.name,
            "nodes": list(info.nodes),
            "target": info.target,
            "why": info.why,
        }
        tier = now.get(info.name)
        if tier is not None:
            entry |= {
                "total": tier.total,
                "free": tier.free,
                "headroom_low": tier.headroom_low,
                "headroom_high": tier.headroom_high,
                "hot": tier.hot,
                "looked_frames": tier.looked_frames,
                "accessed_frames": tier.accessed_frames,
            }
        result.append(entry)
    return result


def _moves(state: State, direction: Direction) -> dict[str, Any]:
    report, page = state.report, state.page_size
    flows = [flow for flow in report.flows if flow.direction is direction] if report else []
    return {
        "bytes": state.totals.moved[direction] * page,
        "last_cycle_bytes": sum(flow.moved for flow in flows) * page,
        "rate_limit": report.rate.get(direction) if report else None,
        "skipped_pages": _reasons(state.totals.skipped, direction),
        "last_cycle_skipped_pages": _reasons(report.skipped if report else {}, direction),
    }


def _reasons(
    skipped: Mapping[tuple[Direction, Reason], int], direction: Direction
) -> dict[str, int]:
    """Pages by reason, most first."""
    found = {str(reason): n for (way, reason), n in skipped.items() if way is direction and n}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def top(state: State) -> dict[str, Any]:
    """The answer to `top`: classes, those with most fast memory first."""
    report = state.report
    names = [tier.name for tier in state.foundation.topology.tiers]
    classes = [
        {
            "match": each.match,
            "resident": dict(each.resident),
            "promoted": each.promoted,
            "demoted": each.demoted,
            "wasted": each.wasted,
            "stopped": each.stopped,
        }
        for each in (report.classes if report else ())
    ]
    fast = names[0]
    classes.sort(key=lambda each: -_resident(each, fast))
    heat = {tier.name: list(tier.heat) for tier in (report.tiers if report else ())}
    return finite({"cycle": state.cycles, "tiers": names, "classes": classes, "heat": heat})


def _resident(entry: Mapping[str, Any], tier: str) -> int:
    return int(entry["resident"].get(tier, 0))


def finite(node: T) -> T:
    """The same document; JSON has no infinity, what is not known yet is null there."""
    return cast("T", _plain(node))


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    if isinstance(node, float) and not math.isfinite(node):
        return None
    if isinstance(node, float):
        return float(node)
    return node
