# SPDX-License-Identifier: Apache-2.0
"""A forecast as a document, for JSON and for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tierd.planner import Direction
from tierd.replay.forecast import Forecast, Outcome
from tierd.trace.file import Reader


def document(forecast: Forecast, names: Sequence[str], trace: Reader) -> dict[str, Any]:
    """Everything that a replay has to tell. Bytes, seconds, ratios; docs/trace.md has the keys."""
    header = trace.header
    return {
        "trace": {
            "file": str(trace.path),
            "complete": trace.complete,
            "host": header.host,
            "tierd": header.tierd,
            "started": header.started,
            "cycles": forecast.cycles,
            "seconds": forecast.seconds,
            "seen": forecast.frames * header.page_size,
        },
        "policies": [
            _policy(name, outcome) for name, outcome in zip(names, forecast.outcomes, strict=True)
        ],
    }


def _policy(name: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "policy": name,
        "tiers": list(outcome.tiers),
        "hit_ratio": {"mean": outcome.mean(), "last": outcome.last()},
        "recorded_hit_ratio": {
            "mean": outcome.mean("recorded"),
            "last": outcome.last("recorded"),
        },
        "promoted": outcome.total("promoted"),
        "demoted": outcome.total("demoted"),
        "wasted": outcome.total("wasted"),
        "stopped_cycles": outcome.stopped,
        "skipped_pages": {direction.value: _reasons(outcome, direction) for direction in Direction},
        "resident": _bytes(outcome.points[-1].resident, outcome) if outcome.points else {},
        "series": [
            {
                "time": point.time,
                "hit_ratio": point.hit_ratio,
                "recorded_hit_ratio": point.recorded,
                "promoted": point.promoted,
                "demoted": point.demoted,
                "wasted": point.wasted,
                "resident": _bytes(point.resident, outcome),
            }
            for point in outcome.points
        ],
    }


def _reasons(outcome: Outcome, direction: Direction) -> dict[str, int]:
    """Base pages by reason, most first."""
    found: Counter[str] = Counter()
    for (way, reason), pages in outcome.skipped.items():
        if way is direction and pages:
            found[reason.value] += pages
    return dict(found.most_common())


def _bytes(
    resident: Mapping[str, Mapping[str, int]], outcome: Outcome
) -> dict[str, dict[str, int]]:
    return {
        tier: {name: pages * outcome.page_size for name, pages in classes.items()}
        for tier, classes in resident.items()
    }
