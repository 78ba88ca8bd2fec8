# SPDX-License-Identifier: Apache-2.0
"""The exporter: what is counted, when it is visible, and who can hold it up."""

from __future__ import annotations

import builtins
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conftest import require
from sample_report import report, tier
from tierd.engine import FlowReport
from tierd.host import Capability, CapabilitySet, Feature
from tierd.metrics import METRICS, Exporter, Kind, ListenError
from tierd.metrics.server import MAX_CLIENTS
from tierd.planner import Direction, Reason


class Reading:
    """One exposition, parsed."""

    def __init__(self, text: bytes) -> None:
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, frozenset(labels.items())))

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for key, labels in self.samples if key == name]


def read(exporter: Exporter) -> Reading:
    return Reading(exporter.text()[0])


@pytest.fixture
def served() -> Iterator[Exporter]:
    exporter = Exporter("127.0.0.1:0")
    exporter.start()
    yield exporter
    exporter.close()


def url(exporter: Exporter, path: str) -> str:
    assert exporter.address is not None
    return "http://{}:{}{}".format(*exporter.address, path)


def get(exporter: Exporter, path: str, **headers: str) -> tuple[int, str, Any]:
    request = urllib.request.Request(url(exporter, path), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def test_series_exist_before_their_first_event() -> None:
    """rate() cannot see a first increment that comes together with its series."""
    reading = read(Exporter(None))
    for metric in METRICS.values():
        if metric.kind is Kind.COUNTER and not metric.labels:
            assert reading.get(metric.name) == 0, metric.name
    for reason in Reason:
        assert reading.get("tierd_promote_skipped_pages_total", reason=reason) == 0
        assert reading.get("tierd_demote_refused_pages_total", reason=reason) == 0
    for feature in Feature:
        assert reading.get("tierd_capability_available", capability=feature) == 0
    assert reading.get("tierd_cycle_duration_seconds_count") == 0


def test_flows_between_all_tiers_exist_after_the_first_cycle() -> None:
    exporter = Exporter(None)
    tiers = (tier("dram", 0, 2**30, 0), tier("near", 1, 2**30, 0), tier("far", 2, 2**30, 0))
    exporter.publish(report(tiers=tiers, flows=()))
    pairs = {
        (labels["source_node"], labels["target_node"])
        for labels in read(exporter).labels("tierd_promoted_pages_total")
    }
    assert pairs == {("1", "0"), ("2", "0"), ("2", "1")}


def test_counters_add_up_and_gauges_follow() -> None:
    exporter = Exporter(None, page_size=4096, now=lambda: 1234.0)
    exporter.publish(report())
    exporter.publish(report(degraded=("no mover",), mode="observe", threshold=0.5))
    reading = read(exporter)
    way = {"source_node": "1", "target_node": "0"}
    assert reading.get("tierd_cycles_total") == 2
    assert reading.get("tierd_promote_attempted_pages_total", **way) == 1200
    assert reading.get("tierd_promoted_pages_total", **way) == 1024
    assert reading.get("tierd_promoted_bytes_total", **way) == 1024 * 4096
    assert reading.get("tierd_promote_skipped_pages_total", reason="cpuset") == 176
    assert reading.get("tierd_promote_refused_pages_total", reason="cpuset") == 176
    assert reading.get("tierd_promote_refused_pages_total", reason="budget") == 0
    assert reading.get("tierd_rate_limited_cycles_total") == 2
    assert reading.get("tierd_cpu_seconds_total", phase="move", mode="system") == 0.08
    assert reading.get("tierd_tier_accessed_pages_total", tier="dram") == 1800
    assert reading.get("tierd_threshold_accesses_per_second") == 0.5
    assert reading.get("tierd_last_cycle_timestamp_seconds") == 1234.0
    assert reading.get("tierd_degraded") == 1
    assert [reading.get("tierd_mode", mode=mode) for mode in ("tier", "observe")] == [0, 1]


def test_only_cycles_that_moved_count_as_moves() -> None:
    exporter = Exporter(None)
    exporter.publish(report(move_seconds={Direction.PROMOTE: 0.05, Direction.DEMOTE: 0.0}))
    reading = read(exporter)
    assert reading.get("tierd_promote_duration_seconds_count") == 1
    assert reading.get("tierd_promote_duration_seconds_sum") == 0.05
    assert reading.get("tierd_demote_duration_seconds_count") == 0


def test_histogram_bounds_are_inclusive() -> None:
    exporter = Exporter(None)
    for duration in (0.005, 0.0051, 31.0):
        exporter.publish(report(duration=duration))
    reading = read(exporter)
    assert reading.get("tierd_cycle_duration_seconds_bucket", le="0.005") == 1
    assert reading.get("tierd_cycle_duration_seconds_bucket", le="0.01") == 2
    assert reading.get("tierd_cycle_duration_seconds_bucket", le="30.0") == 2
    assert reading.get("tierd_cycle_duration_seconds_bucket", le="+Inf") == 3


def test_what_is_gone_is_no_longer_exported() -> None:
    """A class that the new policy does not name, a node that was unplugged."""
    exporter = Exporter(None)
    exporter.publish(report())
    exporter.publish(report(classes=(), tiers=(tier("dram", 0, 2**30, 0),), pressure={}))
    reading = read(exporter)
    assert reading.labels("tierd_class_resident_bytes") == []
    assert reading.labels("tierd_tier_node_info") == [{"tier": "dram", "node": "0"}]
    assert reading.get("tierd_memory_pressure_ratio") is None


def test_reload_and_probe() -> None:
    exporter = Exporter(None)
    assert read(exporter).get("tierd_config_last_reload_successful") is None
    exporter.config_reload(True, 1000.0)
    exporter.config_reload(False, 2000.0)
    exporter.capabilities(CapabilitySet((Capability(Feature.PAGE_IDLE, True, "found"),)))
    exporter.count_cycle_failure()
    exporter.count_overrun()
    exporter.count_request_failure()
    reading = read(exporter)
    assert reading.get("tierd_config_last_reload_successful") == 0
    assert reading.get("tierd_config_last_reload_success_timestamp_seconds") == 1000.0
    assert reading.get("tierd_config_reload_failures_total") == 1
    assert reading.get("tierd_capability_available", capability="page_idle") == 1
    assert reading.get("tierd_cycle_failures_total") == 1
    assert reading.get("tierd_cycle_overruns_total") == 1
    assert reading.get("tierd_control_request_failures_total") == 1


def test_label_names_are_bounded() -> None:
    """No label can hold a page frame, a process, or a cgroup that nobody configured."""
    allowed = {
        "bucket", "capability", "class", "mode", "mover", "node", "phase", "python", "reason",
        "resource",
        "sampler", "source_node", "target_node", "tier", "version",
    }  # fmt: skip
    assert {label for metric in METRICS.values() for label in metric.labels} <= allowed


def test_a_scrape_asks_the_kernel_for_nothing_but_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter = Exporter(None)
    exporter.publish(report())
    opened: list[str] = []
    really = builtins.open

    def note(path: object, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(path))
        return really(path, *args, **kwargs)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", note)
        text, _ = exporter.text()
        first = list(opened)
        exporter.text()
    assert b"process_resident_memory_bytes" in text
    assert first
    assert all(path.startswith("/proc/self/") for path in first)
    assert opened == first, "a second scrape between two cycles has the same text"


def test_a_scrape_never_sees_half_a_cycle() -> None:
    exporter = Exporter(None)
    flow = FlowReport(Direction.PROMOTE, source=1, target=0, attempted=1, moved=1)
    cycle = report(flows=(flow,))
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            exporter.publish(cycle)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        for _ in range(30):
            reading = read(exporter)
            cycles = reading.get("tierd_cycles_total")
            moved = reading.get("tierd_promoted_pages_total", source_node="1", target_node="0")
            assert moved == (cycles or None)
    finally:
        stop.set()
        thread.join()


def test_endpoints(served: Exporter) -> None:
    assert get(served, "/-/healthy")[0] == 200
    assert get(served, "/-/ready")[0] == 503
    served.publish(report())
    assert get(served, "/-/ready")[0] == 200
    assert "/metrics" in get(served, "/")[1]
    assert get(served, "/nothing")[0] == 404
    status, text, headers = get(served, "/metrics?ignored=1")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "tierd_cycles_total 1.0" in text


def test_openmetrics_is_served_to_who_asks(served: Exporter) -> None:
    served.publish(report())
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    _, text, headers = get(served, "/metrics", Accept=accept)
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


def test_no_created_series(served: Exporter) -> None:
    served.publish(report())
    assert "_created" not in get(served, "/metrics")[1]


def test_a_used_port_is_a_clear_error(served: Exporter) -> None:
    assert served.address is not None
    second = Exporter("{}:{}".format(*served.address))
    with pytest.raises(ListenError, match=rf"cannot listen on .*{served.address[1]}: Address"):
        second.start()
    second.close()


def test_a_bad_address_is_a_clear_error() -> None:
    with pytest.raises(ListenError, match=r"metrics\.listen: .*'nonsense'"):
        Exporter("nonsense").start()


def test_ipv6() -> None:
    exporter = Exporter("[::1]:0")
    try:
        exporter.start()
    except ListenError:
        pytest.skip("this host has no IPv6 loopback")
    assert exporter.address is not None
    with socket.create_connection(exporter.address, timeout=5) as client:
        client.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.0 200")
    exporter.close()


def test_no_endpoint_without_an_address() -> None:
    exporter = Exporter(None)
    exporter.start()
    assert exporter.address is None
    exporter.close()


def test_idle_clients_cannot_use_up_the_daemon(served: Exporter) -> None:
    """Beyond the limit a client is turned away at once; the others are served when it goes."""
    assert served.address is not None
    before = threading.active_count()
    idle = [socket.create_connection(served.address, timeout=5) for _ in range(MAX_CLIENTS + 8)]
    try:
        assert idle[-1].recv(1) == b""
        assert threading.active_count() <= before + MAX_CLIENTS
    finally:
        for client in idle:
            client.close()
    for _ in range(100):
        try:
            if get(served, "/-/healthy")[0] == 200:
                return
        except OSError:
            time.sleep(0.05)
    pytest.fail("the endpoint did not come back")


def test_close_does_not_wait_for_a_silent_client(served: Exporter) -> None:
    assert served.address is not None
    with socket.create_connection(served.address, timeout=5):
        started = time.monotonic()
        served.close()
        assert time.monotonic() - started < 2


def test_promtool_accepts_the_exposition() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        require("promtool", "promtool is not installed (Debian: prometheus)")
    exporter = Exporter(None)
    exporter.config_reload(True, 1000.0)
    exporter.publish(report())
    done = subprocess.run(
        [promtool, "check", "metrics"], input=exporter.text()[0], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_metric_has_a_value_in_the_sample() -> None:
    """So that the checks above and those of the dashboards see all of them."""
    exporter = Exporter(None)
    exporter.config_reload(True, 1000.0)
    exporter.publish(report())
    text = exporter.text()[0].decode()
    for name in METRICS:
        assert re.search(rf"^{name}(_bucket)?[ {{]", text, re.MULTILINE), name
