# SPDX-License-Identifier: Apache-2.0
"""What every metric is called and what it means: the source of docs/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """What one metric is called and what it means; docs/metrics.md is made from these."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels)


def _both(name: str, kind: Kind, text: str, *labels: str) -> tuple[Metric, Metric]:
    """The metric of each direction. Opposites are two metrics, not one with a label, so that
    a sum over labels always means something."""
    done = {"promote": "promoted", "demote": "demoted"}
    way = {"promote": "into a faster tier", "demote": "into a slower tier"}
    promote, demote = (
        Metric(
            name.format(verb=verb, done=done[verb]),
            kind,
            text.format(verb=verb, done=done[verb], way=way[verb]),
            labels,
        )
        for verb in ("promote", "demote")
    )
    return promote, demote


_ALL: Final = (
    _gauge("tierd_build_info", "Version of tierd and of Python, always 1.", "version", "python"),
    _gauge("tierd_mode", "1 for the mode at work: tier, observe or paused.", "mode"),
    _gauge("tierd_degraded", "Number of reasons why less is done than the policy asks for."),
    _gauge(
        "tierd_capability_available",
        "Whether this kernel and these privileges offer a feature; tierd probe says why not.",
        "capability",
    ),
    _gauge("tierd_sampler_active", "1 for each source of hotness in use.", "sampler"),
    _gauge("tierd_mover_active", "1 for the way of moving pages in use.", "mover"),
    # the policy file
    _gauge("tierd_config_last_reload_successful", "Whether the last reload was accepted."),
    _gauge(
        "tierd_config_last_reload_success_timestamp_seconds",
        "Unix time at which the policy in force was loaded.",
    ),
    _counter("tierd_config_reload_failures_total", "Reloads refused; the old policy stayed."),
    # the cycle
    _counter("tierd_cycles_total", "Cycles that came to their end."),
    _counter("tierd_cycle_failures_total", "Cycles given up because of an error."),
    _counter("tierd_cycle_overruns_total", "Cycles that took longer than the interval."),
    Metric("tierd_cycle_duration_seconds", Kind.HISTOGRAM, "Wall time of a cycle."),
    _gauge("tierd_last_cycle_timestamp_seconds", "Unix time at the end of the last cycle."),
    _counter(
        "tierd_control_request_failures_total",
        "Requests on the control socket that were answered with an error.",
    ),
    _counter(
        "tierd_cpu_seconds_total",
        "CPU time that tierd spent, by phase of the cycle; mode is user or system.",
        "phase",
        "mode",
    ),
    # hotness
    _counter("tierd_samples_total", "Page frames looked at.", "sampler"),
    _counter("tierd_samples_accessed_total", "Page frames seen accessed.", "sampler"),
    _counter("tierd_samples_lost_total", "Accesses that the source knows it missed.", "sampler"),
    _gauge("tierd_sampler_window_seconds", "Time between marking and reading.", "sampler"),
    _gauge("tierd_sampler_coverage_ratio", "Share of frames looked at in a round.", "sampler"),
    _gauge(
        "tierd_sampler_round_seconds",
        "Time that a round over all frames takes: each block has its turn once.",
        "sampler",
    ),
    _gauge(
        "tierd_sampler_find_seconds",
        "Time to find: within so long a 2 MiB block that becomes hot as a whole outside the fastest"
        " tier is looked at twice, which a promotion takes. An estimate: a round, the windows of"
        " both looks, and the present mean wait for the second. Absent where nobody can say.",
        "sampler",
    ),
    _gauge(
        "tierd_threshold_accesses_per_second",
        "Heat above which a page frame belongs in the fast tier.",
    ),
    _gauge("tierd_memory_pressure_ratio", "Memory PSI, some, over 10 seconds."),
    _gauge("tierd_cpu_pressure_ratio", "CPU PSI, some, over 10 seconds."),
    _gauge("tierd_io_pressure_ratio", "I/O PSI, some, over 10 seconds."),
    _gauge(
        "tierd_back_off_ratio", "Part of the rate limits that is held back because of pressure."
    ),
    _counter(
        "tierd_back_off_cycles_total", "Cycles in which the pressure was too high.", "resource"
    ),
    # tiers
    _gauge("tierd_tier_rank", "Place of a tier in the order; 0 is the fastest.", "tier"),
    _gauge("tierd_tier_node_info", "Which nodes make up a tier, always 1.", "tier", "node"),
    _gauge("tierd_tier_size_bytes", "Memory of a tier.", "tier"),
    _gauge("tierd_tier_free_bytes", "Free memory of a tier.", "tier"),
    _gauge("tierd_tier_headroom_low_bytes", "Free memory at which demotion starts.", "tier"),
    _gauge("tierd_tier_headroom_high_bytes", "Free memory at which demotion ends.", "tier"),
    _gauge("tierd_tier_hot_bytes", "Known frames above the present threshold.", "tier"),
    _gauge("tierd_tier_heat_pages", "Known frames by heat; 0 is the coldest.", "tier", "bucket"),
    _counter("tierd_tier_looked_pages_total", "Page frames looked at in a tier.", "tier"),
    _counter(
        "tierd_tier_accessed_pages_total",
        "Page frames seen accessed in a tier; the fastest tier's share is the hit ratio.",
        "tier",
    ),
    # moves
    *_both(
        "tierd_{verb}_attempted_pages_total",
        Kind.COUNTER,
        "Base pages that the mover was asked to {verb}.",
        "source_node",
        "target_node",
    ),
    *_both(
        "tierd_{done}_pages_total",
        Kind.COUNTER,
        "Base pages moved {way}, each verified.",
        "source_node",
        "target_node",
    ),
    *_both(
        "tierd_{done}_bytes_total",
        Kind.COUNTER,
        "Bytes moved {way}, each page verified.",
        "source_node",
        "target_node",
    ),
    *_both(
        "tierd_{verb}_skipped_pages_total",
        Kind.COUNTER,
        "Base pages of candidates to {verb} that stayed where they are, by the planner's"
        " decision or the mover's verdict.",
        "reason",
    ),
    *_both(
        "tierd_{verb}_refused_pages_total",
        Kind.COUNTER,
        "The part of tierd_{verb}_skipped_pages_total that was the mover's verdict.",
        "reason",
    ),
    *_both(
        "tierd_{verb}_duration_seconds",
        Kind.HISTOGRAM,
        "Wall time that a cycle spent on calls that {verb}; cycles without one are left out.",
    ),
    *_both(
        "tierd_{verb}_rate_limit_bytes_per_second",
        Kind.GAUGE,
        "Most bytes per second that may be {done}.",
    ),
    *_both(
        "tierd_{verb}_budget_bytes",
        Kind.GAUGE,
        "Bytes that may be {done} at once before the rate limit binds.",
    ),
    *_both(
        "tierd_{verb}_page_cost_seconds",
        Kind.GAUGE,
        "CPU time per base page {done}, as measured.",
    ),
    _gauge("tierd_expected_residency_seconds", "Time that a promotion is expected to last."),
    _gauge(
        "tierd_benefit_accesses_per_second",
        "Accesses by which a promoted page must beat the one it displaces to be worth the moves.",
    ),
    _counter(
        "tierd_deferred_plans_total",
        "Cycles in which nothing was decided, because deciding costs more than what is left for it"
        " of half of the CPU share (an eighth at least): what is too much for one cycle is paid in"
        " the next ones.",
    ),
    _counter("tierd_rate_limited_cycles_total", "Cycles in which a budget held pages back."),
    _counter("tierd_wasted_pages_total", "Base pages demoted soon after their promotion."),
    # classes of the policy
    _gauge("tierd_class_resident_bytes", "Memory of a class, estimated.", "class", "tier"),
    _counter("tierd_class_promoted_bytes_total", "Bytes promoted for a class.", "class"),
    _counter("tierd_class_demoted_bytes_total", "Bytes demoted for a class.", "class"),
    _counter(
        "tierd_class_wasted_bytes_total", "Bytes demoted soon after their promotion.", "class"
    ),
    _gauge("tierd_class_stopped", "Whether the thrash governor stopped promotion.", "class"),
)
METRICS: Final[Mapping[str, Metric]] = {metric.name: metric for metric in _ALL}
"""Every metric of tierd itself by name, in the order of the exposition."""
