# SPDX-License-Identifier: Apache-2.0
"""Print docs/metrics.md, made from what the exporter exports."""

from __future__ import annotations

from tierd.metrics import METRICS, Exporter, Metric

INTRODUCTION = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Made by `make docs`; do not edit. -->
# Metrics

tierd serves these at `/metrics`, on the address that `metrics.listen` of the policy names
(`127.0.0.1:9709` unless it says otherwise). A scrape hands out the values of the last complete
cycle; it asks the kernel for the process's own figures alone and never waits for a cycle.

Bytes, seconds and ratios from 0 to 1 everywhere. Pages are base pages (4 KiB on x86-64). Labels
are bounded by the machine and the policy: tiers, nodes, reasons, features, and the classes that
the policy names; never a page frame, a process, or a cgroup that no class matches.

Two that are worth knowing by heart, both in `rules.yaml`:

- The hit ratio is the fastest tier's share of `tierd_tier_accessed_pages_total`;
  `tierd_tier_rank` says which tier that is.
- Every candidate that was not moved is in `tierd_promote_skipped_pages_total` or
  `tierd_demote_skipped_pages_total` under its reason. Those that the kernel refused, rather than
  tierd's own planner, are in the `..._refused_pages_total` of the same direction too.
"""

PROCESS = """
## The process

The usual `process_*` metrics of Prometheus clients, read at most once per cycle: {names}.
"""


def rows(metrics: list[Metric]) -> list[str]:
    """A table of metrics."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return lines


def page() -> str:
    """The whole page."""
    process = sorted(
        line.split()[2]
        for line in Exporter(None).text()[0].decode().splitlines()
        if line.startswith("# TYPE process_")
    )
    names = ", ".join(f"`{name}`" for name in process)
    table = "\n".join(rows(list(METRICS.values())))
    return f"{INTRODUCTION}\n## tierd\n\n{table}\n{PROCESS.format(names=names)}"


if __name__ == "__main__":
    print(page(), end="")
