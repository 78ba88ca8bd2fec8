# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of `make bench-compare`; what runs in guests is tested by running it."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from bench.compare import report
from bench.compare.measures import PAGES, measure
from bench.compare.trial import COUNTERS, Progress, Sample, Trial


def sample(ms: int, windows: tuple[int, int], moved: int, system: int) -> Sample:
    counters = dict.fromkeys(COUNTERS, 0) | {"pgmigrate_success": moved}
    return Sample(ms, windows, counters, (ms, 10), (system, system), (3 * ms, 40), (0, 20))


@pytest.fixture
def trial() -> Trial:
    """The first window has come after 2 s, the second 1 s after the jump at 10 s; 30 pages were
    moved for nothing; 2 ticks of CPU (user and system) each second."""
    made = Trial("tierd", "busy", ready=1000, jump=11_000, end=21_000)
    for second in range(22):
        first = PAGES if second >= 3 else 0
        moved = (PAGES if second >= 3 else 0) + (PAGES + 30 if second >= 12 else 0)
        windows = (first, PAGES if second >= 12 else 0)
        made.samples.append(sample(second * 1000, windows, moved, second))
        made.progress.append(Progress(second * 1000, second * 900, 0.5 if second == 5 else 0.1))
    made.held = [1000.0, 1000.0, 1000.0]
    made.going = [990.0, 980.0, 900.0]
    return made


def test_measures(trial: Trial) -> None:
    found = measure(trial)
    assert (found.t90_start, found.t90_jump) == (2.0, 1.0)
    assert found.resident == pytest.approx((0.8, 10 / 11))
    assert found.settled == (1.0, 1.0)
    assert found.moved_mib == (2 * PAGES + 30) / 256
    assert found.over_ideal == 1 + 15 / PAGES
    assert found.wasted_mib == 30 / 256
    assert (found.cpu_user, found.cpu_system) == (pytest.approx(0.01), pytest.approx(0.01))
    assert found.cost == pytest.approx(0.02)
    assert found.moving == pytest.approx(0.1)
    assert found.stall == 0.5


def test_what_came_at_once_was_not_moved_for_nothing(trial: Trial) -> None:
    at_once = sample(11_000, (PAGES, PAGES // 2), PAGES + PAGES // 2, 11)
    trial.samples = [at_once if each.ms == 11_000 else each for each in trial.samples]
    assert measure(trial).wasted_mib == 30 / 256


def test_never_is_no_time(trial: Trial) -> None:
    trial.samples = [
        sample(each.ms, (PAGES * 8 // 10, 0), 0, each.way[0]) for each in trial.samples
    ]
    found = measure(trial)
    assert (found.t90_start, found.t90_jump) == (None, None)
    assert "never" in report.table({"tierd": found})


def test_bars(trial: Trial) -> None:
    met = dict(report.bars({"busy": {"tierd": measure(trial)}}))
    assert [answer for text, answer in met.items() if "x the ideal" in text] == [True]
    assert [answer for text, answer in met.items() if "CPU" in text] == [True]
    assert [answer for text, answer in met.items() if "slower" in text] == [False, False]


def test_the_plot_is_xml(trial: Trial) -> None:
    plot = ElementTree.fromstring(report.svg([trial], {"tierd": "#c00"}))
    lines = [node for node in plot.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 1
    assert len(lines[0].attrib["points"].split()) == 21
