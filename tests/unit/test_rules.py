# SPDX-License-Identifier: Apache-2.0
"""The Prometheus rules: promtool accepts them, and they name what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import require
from promql import exported, metrics_of

TOP = Path(__file__).resolve().parents[2]
RULES = TOP / "config" / "prometheus"


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        require("promtool", "promtool is not installed (Debian: prometheus)")
    return found


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED = {rule["record"] for rule in rules("rules.yaml")}
ALERTS = {rule["alert"]: rule for rule in rules("alerts.yaml")}
EXPRESSIONS = [
    pytest.param(rule["expr"], id=rule.get("record", rule.get("alert")))
    for rule in (*rules("rules.yaml"), *rules("alerts.yaml"))
]


def test_promtool_accepts_the_rules() -> None:
    files = [str(RULES / "rules.yaml"), str(RULES / "alerts.yaml")]
    subprocess.run([promtool(), "check", "rules", *files], check=True)


@pytest.mark.parametrize("name", ["rules_test.yaml", "alerts_test.yaml"])
def test_rules_do_what_they_say(name: str) -> None:
    subprocess.run([promtool(), "test", "rules", name], cwd=RULES, check=True)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_rules_name_metrics_that_exist(expression: str) -> None:
    unknown = metrics_of(expression) - exported() - RECORDED - {"up"}
    assert not unknown


def test_every_alert_has_a_test() -> None:
    tests = yaml.safe_load((RULES / "alerts_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_say_what_to_do(name: str) -> None:
    """Each leads to a section of the operations page."""
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert rule["for"]
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    page = (TOP / "docs" / "operations.md").read_text()
    anchors = {title.lower() for title in re.findall(r"^#+ (.+)$", page, re.MULTILINE)}
    assert notes["runbook_url"].endswith(f"/operations.md#{name.lower()}")
    assert name.lower() in anchors
