# SPDX-License-Identifier: Apache-2.0
"""`CycleReport` -> Prometheus: the only importer of prometheus_client.

Every value is kept here, in plain dictionaries, and each change replaces one immutable
snapshot of metric families. A scrape only turns the present snapshot into text: it asks the
kernel nothing, waits for no cycle, and never sees half of one.

Label sets are bounded: tiers, nodes, reasons, features and the classes that the policy names.
Never a page frame, a process, or a cgroup that nobody configured.
"""

from __future__ import annotations

import mmap
import platform
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tierd import __version__
from tierd.engine import ClassReport, CycleReport, TierReport
from tierd.host import PRESSURES, CapabilitySet, Feature
from tierd.metrics.catalog import METRICS, Kind, Metric
from tierd.metrics.server import ListenError, Server
from tierd.planner import Direction, Reason

__all__ = ["METRICS", "Exporter", "Kind", "ListenError", "Metric"]

_MODES: Final = ("tier", "observe", "paused")
_PHASES: Final = ("sample", "heat", "plan", "move")
_SAMPLERS: Final = tuple(
    str(name) for name in (Feature.PAGE_IDLE, Feature.DAMON, Feature.PERF, Feature.DEVICE)
)
_MOVERS: Final = tuple(str(name) for name in (Feature.MOVE_PHYS_PAGES, Feature.MOVE_PAGES))
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_Labels = tuple[str, ...]


class _Histogram:
    """Counts per bucket and the sum, for one metric without labels."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(_BUCKETS, value)] += 1
        self._sum += value

    def family(self, metric: Metric) -> Family:
        bounds = [*(str(bound) for bound in _BUCKETS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(metric.name, metric.help, buckets=buckets, sum_value=self._sum)


class _Values:
    """The present value of every metric. Not thread-safe; `Exporter` holds the lock."""

    def __init__(self) -> None:
        self._values: dict[str, dict[_Labels, float]] = {}
        self._histograms: dict[str, _Histogram] = {}
        for metric in METRICS.values():
            if metric.kind is Kind.HISTOGRAM:
                self._histograms[metric.name] = _Histogram()
            else:
                # A counter without labels is there from the start, or its first increment is
                # invisible to rate(). A gauge that nobody has set yet is absent.
                self._values[metric.name] = {}
                if metric.kind is Kind.COUNTER and not metric.labels:
                    self.add(metric.name, 0)

    def add(self, name: str, amount: float, *labels: str) -> None:
        """Count; with 0 to have the series there before its first event."""
        values = self._values[name]
        values[labels] = values.get(labels, 0.0) + amount

    def set(self, name: str, value: float, *labels: str) -> None:
        self._values[name][labels] = float(value)

    def replace(self, name: str, values: Iterable[tuple[_Labels, float]]) -> None:
        """Set a gauge's whole family: series that are not in `values` go away."""
        self._values[name] = dict(values)

    def observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)

    def families(self) -> Iterator[Family]:
        for metric in METRICS.values():
            if metric.kind is Kind.HISTOGRAM:
                yield self._histograms[metric.name].family(metric)
                continue
            make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for labels, value in self._values[metric.name].items():
                family.add_metric(labels, value)
            yield family


class _SnapshotCollector(Collector):
    """Hands the present snapshot to prometheus_client."""

    def __init__(self, snapshot: Callable[[], Iterable[Family]]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Family]:
        return self._snapshot()


class Exporter:
    """Metrics of one daemon and, with an address, the endpoint that serves them.

    All methods are thread-safe and short; none waits for a scrape.
    """

    def __init__(
        self,
        listen: str | None,
        *,
        page_size: int = mmap.PAGESIZE,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`listen` is "ADDRESS:PORT" ("[::1]:9709" for IPv6), None for no endpoint. `now` gives
        Unix time. Nothing is bound before `start`."""
        self._listen = listen
        self._page_size = page_size
        self._now = now
        self._lock = threading.Lock()
        self._values = _Values()
        self._process = ProcessCollector(registry=None)
        self._snapshot: tuple[Family, ...] = ()
        self._changed = True
        """Since the snapshot was taken."""
        self._texts: tuple[tuple[Family, ...], dict[str, bytes]] = ((), {})
        """A snapshot and what it looks like, by content type."""
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self.ready = False
        """Whether a cycle has been published."""
        self.registry = CollectorRegistry()
        self.registry.register(_SnapshotCollector(self._current))
        self._initialise()

    @property
    def address(self) -> tuple[str, int] | None:
        """Where the endpoint listens, None while it does not."""
        if self._server is None:
            return None
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Bind the address and serve from a thread. Raises `ListenError` when it cannot."""
        if self._listen is None or self._server is not None:
            return
        self._server = Server(self._listen, self.text, lambda: self.ready)
        self._thread = threading.Thread(target=self._server.serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving. The values stay readable through `text`."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is not None and thread is not None:
            server.stop()
            thread.join()
            server.server_close()

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type; OpenMetrics when `accept` asks for it."""
        encode, content_type = choose_encoder(accept)
        # Several scrapers may ask between two cycles; the text is made once for all of them.
        of, texts = self._texts
        now = self._current()
        if of is not now:
            of, texts = self._texts = now, {}
        if content_type not in texts:
            body = encode(self.registry)
            if of is not self._current():  # a cycle ended meanwhile
                return body, content_type
            texts[content_type] = body
        return texts[content_type], content_type

    def publish(self, report: CycleReport) -> None:
        """Take over what one cycle reported."""
        with self._lock:
            self._publish_cycle(report)
            self._publish_samplers(report)
            self._publish_tiers(report.tiers)
            self._publish_moves(report)
            self._publish_classes(report.classes)
            self._changed = True
            self.ready = True

    def config_reload(self, ok: bool, when: float) -> None:
        """A policy was loaded (at start too) or refused; `when` is Unix time."""
        with self._lock:
            self._values.set("tierd_config_last_reload_successful", ok)
            if ok:
                self._values.set("tierd_config_last_reload_success_timestamp_seconds", when)
            else:
                self._values.add("tierd_config_reload_failures_total", 1)
            self._changed = True

    def capabilities(self, found: CapabilitySet) -> None:
        """What the last probe found."""
        with self._lock:
            for entry in found.entries:
                self._values.set("tierd_capability_available", entry.available, entry.name)
            self._changed = True

    def count_cycle_failure(self) -> None:
        """A cycle was given up."""
        self._count("tierd_cycle_failures_total")

    def count_request_failure(self) -> None:
        """A control request was answered with an error."""
        self._count("tierd_control_request_failures_total")

    def count_overrun(self) -> None:
        """A cycle took longer than the interval."""
        self._count("tierd_cycle_overruns_total")

    def _count(self, name: str) -> None:
        with self._lock:
            self._values.add(name, 1)
            self._changed = True

    def _current(self) -> tuple[Family, ...]:
        """What is to be told now. Made when it is asked for: there are more cycles than scrapes,
        and whoever scrapes waits for no cycle, but for the copying of the values."""
        with self._lock:
            if self._changed:
                self._snapshot = (*self._values.families(), *self._process.collect())
                self._changed = False
            return self._snapshot

    def _initialise(self) -> None:
        """Have every series there whose labels are known, so that rate() sees the first event."""
        values = self._values
        values.set("tierd_build_info", 1, __version__, platform.python_version())
        values.set("tierd_degraded", 0)
        for feature in Feature:
            values.set("tierd_capability_available", 0, feature)
        for mode in _MODES:
            values.set("tierd_mode", 0, mode)
        for sampler in _SAMPLERS:
            values.set("tierd_sampler_active", 0, sampler)
        for mover in _MOVERS:
            values.set("tierd_mover_active", 0, mover)
        for phase in _PHASES:
            values.add("tierd_cpu_seconds_total", 0, phase, "user")
            values.add("tierd_cpu_seconds_total", 0, phase, "system")
        for name in PRESSURES:
            values.add("tierd_back_off_cycles_total", 0, name)
        for direction in Direction:
            for reason in Reason:
                values.add(f"tierd_{direction}_skipped_pages_total", 0, reason)
                values.add(f"tierd_{direction}_refused_pages_total", 0, reason)

    def _publish_cycle(self, report: CycleReport) -> None:
        values = self._values
        values.add("tierd_cycles_total", 1)
        values.observe("tierd_cycle_duration_seconds", report.duration)
        values.set("tierd_last_cycle_timestamp_seconds", self._now())
        values.replace("tierd_mode", (((mode,), mode == report.mode) for mode in _MODES))
        values.set("tierd_degraded", len(report.degraded))
        values.set("tierd_threshold_accesses_per_second", report.threshold)
        for name in PRESSURES:
            found = [((), report.pressure[name])] if name in report.pressure else []
            values.replace(f"tierd_{name}_pressure_ratio", found)
            values.add("tierd_back_off_cycles_total", name in report.back_off_causes, name)
        values.set("tierd_back_off_ratio", report.back_off)
        for phase, spent in report.cpu.items():
            values.add("tierd_cpu_seconds_total", spent.user, phase, "user")
            values.add("tierd_cpu_seconds_total", spent.system, phase, "system")

    def _publish_samplers(self, report: CycleReport) -> None:
        values = self._values
        in_use = {*report.sampler.split("+")} - {"none", ""}
        names = dict.fromkeys((*_SAMPLERS, *sorted(in_use)))
        values.replace("tierd_sampler_active", (((name,), name in in_use) for name in names))
        movers = dict.fromkeys((*_MOVERS, report.mover))
        movers.pop("none", None)
        values.replace("tierd_mover_active", (((name,), name == report.mover) for name in movers))
        for sampler in report.samplers:
            values.add("tierd_samples_total", sampler.looked, sampler.name)
            values.add("tierd_samples_accessed_total", sampler.accessed, sampler.name)
            values.add("tierd_samples_lost_total", sampler.lost, sampler.name)
        gauges = {
            "window_seconds": "window",
            "coverage_ratio": "coverage",
            "round_seconds": "round_time",
        }
        for name, field in gauges.items():
            found = [((sampler.name,), getattr(sampler, field)) for sampler in report.samplers]
            values.replace(f"tierd_sampler_{name}", found)
        times = [
            ((sampler.name,), sampler.find_time)
            for sampler in report.samplers
            if sampler.find_time is not None
        ]
        values.replace("tierd_sampler_find_seconds", times)

    def _publish_tiers(self, tiers: tuple[TierReport, ...]) -> None:
        values = self._values
        values.replace("tierd_tier_rank", (((tier.name,), rank) for rank, tier in enumerate(tiers)))
        members = (((tier.name, str(node)), 1) for tier in tiers for node in tier.nodes)
        values.replace("tierd_tier_node_info", members)
        gauges = {
            "size": "total",
            "free": "free",
            "headroom_low": "headroom_low",
            "headroom_high": "headroom_high",
            "hot": "hot",
        }
        for name, field in gauges.items():
            found = [((tier.name,), getattr(tier, field)) for tier in tiers]
            values.replace(f"tierd_tier_{name}_bytes", found)
        heat = (
            ((tier.name, str(bucket)), frames)
            for tier in tiers
            for bucket, frames in enumerate(tier.heat)
        )
        values.replace("tierd_tier_heat_pages", heat)
        for tier in tiers:
            values.add("tierd_tier_looked_pages_total", tier.looked_frames, tier.name)
            values.add("tierd_tier_accessed_pages_total", tier.accessed_frames, tier.name)
        self._initialise_flows(tiers)

    def _initialise_flows(self, tiers: tuple[TierReport, ...]) -> None:
        """Every pair of nodes that a page can be moved between, before the first move."""
        for rank, fast in enumerate(tiers):
            for slow in tiers[rank + 1 :]:
                for high in fast.nodes:
                    for low in slow.nodes:
                        self._add_flow(Direction.PROMOTE, low, high, 0, 0)
                        self._add_flow(Direction.DEMOTE, high, low, 0, 0)

    def _add_flow(
        self, direction: Direction, source: int, target: int, attempted: int, moved: int
    ) -> None:
        labels = (str(source), str(target))
        done = "promoted" if direction is Direction.PROMOTE else "demoted"
        self._values.add(f"tierd_{direction}_attempted_pages_total", attempted, *labels)
        self._values.add(f"tierd_{done}_pages_total", moved, *labels)
        self._values.add(f"tierd_{done}_bytes_total", moved * self._page_size, *labels)

    def _publish_moves(self, report: CycleReport) -> None:
        values = self._values
        for flow in report.flows:
            self._add_flow(flow.direction, flow.source, flow.target, flow.attempted, flow.moved)
        for (direction, reason), pages in report.skipped.items():
            values.add(f"tierd_{direction}_skipped_pages_total", pages, reason)
        for (direction, reason), pages in report.kernel_refused.items():
            values.add(f"tierd_{direction}_refused_pages_total", pages, reason)
        for direction, seconds in report.move_seconds.items():
            if seconds > 0:
                values.observe(f"tierd_{direction}_duration_seconds", seconds)
        for direction, rate in report.rate.items():
            values.set(f"tierd_{direction}_rate_limit_bytes_per_second", rate)
        for direction, cost in report.cost.items():
            values.set(f"tierd_{direction}_page_cost_seconds", cost)
        values.set("tierd_expected_residency_seconds", report.residency)
        values.set("tierd_benefit_accesses_per_second", report.worth)
        for direction, tokens in report.tokens.items():
            values.set(f"tierd_{direction}_budget_bytes", tokens)
        held = any(report.skipped.get((direction, Reason.BUDGET), 0) for direction in Direction)
        values.add("tierd_rate_limited_cycles_total", held)
        values.add("tierd_deferred_plans_total", report.deferred)
        values.add("tierd_wasted_pages_total", report.wasted_pages)

    def _publish_classes(self, classes: tuple[ClassReport, ...]) -> None:
        values = self._values
        resident = (
            ((item.match, tier), size) for item in classes for tier, size in item.resident.items()
        )
        values.replace("tierd_class_resident_bytes", resident)
        values.replace("tierd_class_stopped", (((item.match,), item.stopped) for item in classes))
        for item in classes:
            values.add("tierd_class_promoted_bytes_total", item.promoted, item.match)
            values.add("tierd_class_demoted_bytes_total", item.demoted, item.match)
            values.add("tierd_class_wasted_bytes_total", item.wasted, item.match)
