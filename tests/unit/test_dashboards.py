# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboard: its queries parse, name what exists, and fit the ones who look."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from promql import exported, metrics_of, selectors

TOP = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((TOP / "config" / "grafana" / "tierd.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EACH_PANEL = [pytest.param(panel, id=f"{panel['id']}-{panel['title']}") for panel in PANELS]
EXPRESSIONS = [
    pytest.param(target["expr"], id=f"{panel['id']}{target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_queries_name_metrics_that_exist(expression: str) -> None:
    assert metrics_of(expression)
    assert metrics_of(expression) <= exported()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_queries_follow_the_variables(expression: str) -> None:
    """Every selector is limited to the chosen job and instance."""
    for selector in selectors(expression):
        matched = {str(matcher.name) for matcher in selector.matchers.matchers}
        assert {"job", "instance"} <= matched, selector.name


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_counters_are_rates(expression: str) -> None:
    """A counter's bare value says how long the daemon runs, nothing else."""
    ranged = re.sub(r"rate\([^()]*\[\$__rate_interval\]\)", "", expression)
    assert not re.search(r"_(total|bucket|count|sum)\b", ranged)
    assert not re.search(r"\[\d+[smhd]\]", expression), "use $__rate_interval"


@pytest.mark.parametrize("panel", EACH_PANEL)
def test_panels_explain_themselves(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        assert target["legendFormat"]


def test_the_dashboard_is_importable() -> None:
    variables = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "job", "instance"]
    assert DASHBOARD["editable"] is False
    assert DASHBOARD["uid"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} over {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_what_an_operator_came_for_is_shown() -> None:
    """Tiers, hit ratio, moves by direction and reason, budgets, health."""
    shown = set().union(*(metrics_of(parameter.values[0]) for parameter in EXPRESSIONS))
    assert shown >= {
        "tierd_tier_accessed_pages_total",
        "tierd_tier_free_bytes",
        "tierd_tier_hot_bytes",
        "tierd_promoted_bytes_total",
        "tierd_demoted_bytes_total",
        "tierd_promote_skipped_pages_total",
        "tierd_demote_skipped_pages_total",
        "tierd_promote_rate_limit_bytes_per_second",
        "tierd_demote_rate_limit_bytes_per_second",
        "tierd_cpu_seconds_total",
        "tierd_degraded",
        "tierd_cycle_failures_total",
        "tierd_cycle_duration_seconds_bucket",
        "tierd_config_last_reload_successful",
    }
