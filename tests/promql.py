# SPDX-License-Identifier: Apache-2.0
"""Which metrics a PromQL expression names, and which the exporter has."""

from __future__ import annotations

import re
from functools import cache

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

from sample_report import report
from tierd.metrics import Exporter


@cache
def exported() -> frozenset[str]:
    """Names of all series that a daemon at work exports."""
    exporter = Exporter(None)
    exporter.config_reload(True, 0.0)
    exporter.publish(report())
    text = exporter.text()[0].decode()
    return frozenset(
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    )


def parse(expression: str) -> promql_parser.Expr:
    """Parse, with Grafana's variables filled in. Raises ValueError for what is no PromQL."""
    filled = expression.replace("$__rate_interval", "5m").replace("$__range", "1h")
    return promql_parser.parse(re.sub(r"\$\{?\w+\}?", "any", filled))


def metrics_of(expression: str) -> set[str]:
    """Names of the metrics that `expression` selects."""
    return {selector.name for selector in selectors(expression) if selector.name}


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """All series selectors in `expression`."""
    found: list[promql_parser.VectorSelector] = []
    todo: list[object] = [parse(expression)]
    while todo:
        node = todo.pop()
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.BinaryExpr):
            todo += [node.lhs, node.rhs]
        elif isinstance(node, promql_parser.Call):
            todo += node.args
        elif isinstance(node, (promql_parser.NumberLiteral, promql_parser.StringLiteral)):
            continue
        else:  # aggregation, parentheses, unary minus, subquery
            todo.append(node.expr)
    return found
