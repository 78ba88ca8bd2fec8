# SPDX-License-Identifier: Apache-2.0
"""A move must be worth its cost: costs and residency are measured, and the gate follows them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakehost import machine, topology_of
from tierd.benefit import (
    COST,
    COST_MOST,
    FOR_NOTHING,
    GAP,
    LASTS,
    PageCost,
    Residency,
    gap_between,
    worth,
)
from tierd.config import Config, Mode, Sampling, Workload
from tierd.engine import CycleReport, Engine
from tierd.host.simulated import Costs, SimulatedHost
from tierd.movers.move_phys_pages import MovePhysPages
from tierd.planner import Direction, Reason
from tierd.samplers.page_idle import PageIdleSampler

positive = st.floats(1e-7, 1e-5)


def test_the_cost_of_a_page_is_learned_and_bounded() -> None:
    cost = PageCost()
    assert cost.seconds == COST
    for _ in range(20):
        cost.learn(4096, 4096 * 4e-6)
    assert cost.seconds == pytest.approx(4e-6, rel=0.01)
    before = cost.seconds
    cost.learn(1, 1.0)  # one page and a hiccup of a second
    assert cost.seconds == pytest.approx(before, rel=0.01)
    cost.learn(0, 1.0)
    for _ in range(20):
        cost.learn(65_536, 65_536 * 1e-3)
    assert cost.seconds == pytest.approx(COST_MOST, rel=0.01)


@pytest.mark.parametrize("life", [3.0, 10.0, 40.0])
def test_residency_is_estimated_although_most_have_not_left_yet(life: float) -> None:
    """Pages leave at random with a mean life; those older than 30 s are out of sight."""
    rng = np.random.default_rng(1)
    ages = np.zeros(0)
    residency = Residency()
    for _ in range(60):
        ages = np.concatenate([ages[ages < 30] + 1.0, np.zeros(2000)])
        gone = rng.random(len(ages)) < 1 - np.exp(-1 / life)
        residency.learn(1.0, len(ages), int(gone.sum()))
        ages = ages[~gone]
    assert residency.expected(1.0, 0.0) == pytest.approx(life, rel=0.3)


def test_residency_stays_within_what_can_be_counted_on() -> None:
    residency = Residency()
    assert residency.expected(0.5, 10.0) == LASTS * 0.5
    residency.learn(1.0, 1000, 1_000_000)
    assert residency.expected(0.5, 10.0) == 10.0
    assert residency.expected(0.05, 10.0) == LASTS * 0.05
    residency.begin()
    assert residency.expected(0.5, 10.0) == LASTS * 0.5


@given(positive, positive, st.floats(1, 1000), st.floats(0.01, 10), st.floats(1e-8, 1e-6))
def test_dearer_shorter_and_smaller_gains_ask_for_more(
    promote: float, demote: float, lasts: float, window: float, gap: float
) -> None:
    base = worth(promote, demote, lasts, window, gap, 1.0)
    assert 0 < base.alone < base.pair
    assert worth(2 * promote, demote, lasts, window, gap, 1.0).alone > base.alone
    assert worth(promote, 2 * demote, lasts, window, gap, 1.0).pair > base.pair
    assert worth(promote, demote, lasts / 2, window, gap, 1.0).pair > base.pair
    assert worth(promote, demote, lasts, window, gap * 2, 1.0).pair < base.pair
    assert worth(promote, demote, lasts, window, gap, 3.0).pair == pytest.approx(3 * base.pair)
    assert worth(promote, demote, lasts, window, gap, 0.0) == FOR_NOTHING


def test_a_table_that_makes_no_sense_is_not_believed() -> None:
    assert gap_between(1e-7, 3e-7) == pytest.approx(2e-7)
    for fast, slow in ((None, 3e-7), (1e-7, None), (1e-7, 1e-7), (3e-7, 1e-7)):
        assert gap_between(fast, slow) == GAP


def run(move: float, benefit: float, cycles: int = 25) -> tuple[SimulatedHost, list[CycleReport]]:
    """A program whose pages are warm, some a little warmer; a page costs `move` seconds."""
    load = Workload(kind="zipf", size="200MiB", skew=0.4, accesses=6_000)
    host = machine(
        fast="64MiB", slow="256MiB", workloads=(load,), folios={}, costs=Costs(move=move)
    )
    topology = topology_of(host)
    config = Config.model_validate(
        {"version": 1, "mode": "tier", "migration": {"benefit": benefit, "demote": "20MiB/s"}}
    ).model_copy(update={"sampling": Sampling(cpu="100%"), "mode": Mode.TIER})
    sampler = PageIdleSampler(host, topology, config.sampling)
    engine = Engine(host, config, topology, [sampler], MovePhysPages(host))
    reports = []
    for _ in range(cycles):
        reports.append(engine.cycle())
        host.sleep(1.0)
    return host, reports


def moved(reports: list[CycleReport]) -> int:
    return sum(flow.moved for report in reports for flow in report.flows)


def test_dear_moves_are_made_for_hot_pages_only_and_the_rest_is_counted() -> None:
    _, cheap = run(0.2e-6, 6.0)
    _, dear = run(8e-6, 6.0)
    _, anyway = run(8e-6, 0.0)
    assert cheap[-1].cost[Direction.DEMOTE] < COST < dear[-1].cost[Direction.DEMOTE]
    assert dear[-1].worth > 2 * cheap[-1].worth
    assert anyway[-1].worth == 0
    assert moved(dear) < 0.5 * moved(cheap)
    assert moved(dear) < 0.5 * moved(anyway)
    skipped = sum(report.skipped.get((Direction.PROMOTE, Reason.BENEFIT), 0) for report in dear)
    assert skipped > 0
    assert not any(report.skipped.get((Direction.PROMOTE, Reason.BENEFIT)) for report in anyway)


def test_the_cost_is_that_of_the_kernel_as_measured() -> None:
    _, reports = run(3e-6, 1.0)
    for direction in Direction:
        assert reports[-1].cost[direction] == pytest.approx(3.3e-6, rel=0.35)
    assert reports[-1].residency <= LASTS * max(s.window for s in reports[-1].samplers)
