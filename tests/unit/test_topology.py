# SPDX-License-Identifier: Apache-2.0
"""Nodes into tiers: the order, its reason, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierd.config import Tier
from tierd.host import Node, Span
from tierd.topology import Topology, TopologyError, build


def node(
    number: int,
    *,
    cpus: int = 0,
    tier: int | None = None,
    latency: float | None = None,
    bandwidth: float | None = None,
    spans: tuple[tuple[int, int], ...] | None = None,
    distances: dict[int, int] | None = None,
) -> Node:
    runs = ((number * 1000, number * 1000 + 500),) if spans is None else spans
    return Node(
        id=number,
        cpus=frozenset(range(cpus)),
        spans=tuple(Span(number, *run) for run in runs),
        distances=distances or {},
        memory_tier=tier,
        read_latency=latency,
        read_bandwidth=bandwidth,
    )


def orders(topology: Topology) -> list[tuple[int, ...]]:
    return [tier.nodes for tier in topology.tiers]


def test_latency_orders_before_anything_else() -> None:
    """The kernel's tier numbers and the node numbers say otherwise; latency wins."""
    nodes = (node(0, cpus=2, tier=9, latency=3e-7), node(1, cpus=2, tier=4, latency=1e-7))
    topology = build(nodes, None, 7)
    assert orders(topology) == [(1,), (0,)]
    assert "100 ns" in topology.tiers[0].why
    assert topology.generation == 7


def test_like_latencies_share_a_tier_unless_one_has_no_cpus() -> None:
    nodes = (
        node(0, cpus=2, latency=1.0e-7),
        node(1, cpus=2, latency=1.2e-7),
        node(2, latency=1.1e-7),
        node(3, latency=4e-7),
    )
    assert orders(build(nodes, None, 1)) == [(0, 1), (2,), (3,)]


def test_much_more_bandwidth_is_a_tier_of_its_own() -> None:
    """High-bandwidth memory has no CPUs and DRAM's latency, and is faster all the same."""
    nodes = (
        node(0, cpus=2, latency=1e-7, bandwidth=200e9),
        node(1, latency=1.1e-7, bandwidth=900e9),
    )
    assert orders(build(nodes, None, 1)) == [(1,), (0,)]


def test_nodes_without_a_latency_come_last_and_by_memory_tier() -> None:
    nodes = (node(0, cpus=2, tier=4, latency=1e-7), node(1, tier=22), node(2, tier=10))
    topology = build(nodes, None, 1)
    assert orders(topology) == [(0,), (2,), (1,)]
    assert "memory tier 22" in topology.tiers[2].why


def test_a_device_that_praises_itself_does_not_pass_measured_memory() -> None:
    """By its own table the CXL memory is in memory tier 22, the DRAM that takes 300 ns in 67."""
    nodes = (
        node(0, cpus=2, tier=4, latency=1e-7),
        node(1, tier=67, latency=3e-7),
        node(2, tier=22),
    )
    topology = build(nodes, None, 1)
    assert orders(topology) == [(0,), (1,), (2,)]
    assert "300 ns" in topology.tiers[1].why
    assert "no latency" in topology.tiers[2].why
    assert "memory tier 22" in topology.tiers[2].why


def test_without_the_latency_of_a_node_with_cpus_the_memory_tiers_order() -> None:
    nodes = (node(0, cpus=2, tier=4), node(1, tier=22, latency=1e-7), node(2, tier=10))
    topology = build(nodes, None, 1)
    assert orders(topology) == [(0,), (2,), (1,)]
    assert topology.tiers[1].why == "the kernel's memory tier 10, no CPUs"


def test_without_anything_else_nodes_without_cpus_are_slower() -> None:
    topology = build((node(0), node(1, cpus=2), node(2)), None, 1)
    assert orders(topology) == [(1,), (0, 2)]
    assert [tier.name for tier in topology.tiers] == ["tier0", "tier1"]
    assert all(tier.why for tier in topology.tiers)


@pytest.mark.parametrize(
    ("nodes", "part"),
    [
        ((node(0, cpus=2),), "only 1 node with memory"),
        ((node(0, cpus=2), node(1, spans=())), "only 1 node with memory"),
        ((node(0, cpus=2), node(1, cpus=2)), "name the tiers in the policy"),
        ((node(0), node(1)), "name the tiers in the policy"),
    ],
)
def test_no_order_is_an_error_and_not_a_guess(nodes: tuple[Node, ...], part: str) -> None:
    with pytest.raises(TopologyError, match=part) as caught:
        build(nodes, None, 1)
    assert caught.value.tier is None


@pytest.mark.parametrize(
    ("tiers", "index", "part"),
    [
        ([("a", [0]), ("b", [7])], 1, "node 7 does not exist or has no memory"),
        ([("a", [0]), ("b", [2])], 1, "node 2 does not exist or has no memory"),
        ([("a", [0]), ("b", [1, 0])], 1, "node 0 is in tier a already"),
        ([("a", [0]), ("a", [1])], 1, "two tiers are named a"),
        ([("a", [0, 1])], 0, "at least two tiers"),
    ],
)
def test_wrong_tiers_name_the_one_at_fault(
    tiers: list[tuple[str, list[int]]], index: int, part: str
) -> None:
    nodes = (node(0, cpus=2), node(1), node(2, spans=()))
    with pytest.raises(TopologyError, match=part) as caught:
        build(nodes, [Tier(name=name, nodes=tuple(ids)) for name, ids in tiers], 1)
    assert caught.value.tier == index
    assert "\n" not in str(caught.value)


def test_the_policy_decides_and_other_nodes_are_left_alone() -> None:
    tiers = (Tier(name="cxl", nodes=(1,)), Tier(name="dram", nodes=(0,), target=False))
    topology = build((node(0, cpus=2), node(1), node(2)), tiers, 1)
    assert orders(topology) == [(1,), (0,)]
    assert topology.tier_of(2) == -1
    assert topology.frames == 1000
    assert topology.promotion_targets(0) == (1,)
    assert topology.demotion_targets(1) == ()  # the tier below is no target


def test_targets_are_near_first_within_a_tier() -> None:
    nodes = (
        node(0, cpus=1, latency=1e-7, distances={0: 10, 1: 21, 2: 30, 3: 17}),
        node(1, cpus=1, latency=1e-7, distances={0: 21, 1: 10, 2: 17, 3: 30}),
        node(2, latency=3e-7, distances={0: 30, 1: 17, 2: 10, 3: 40}),
        node(3, latency=3e-7, distances={0: 17, 1: 30, 2: 40, 3: 10}),
        node(4, latency=9e-7, distances={0: 50, 1: 50, 2: 50, 3: 50, 4: 10}),
    )
    topology = build(nodes, None, 1)
    assert topology.promotion_targets(2) == (1, 0)
    assert topology.promotion_targets(3) == (0, 1)
    assert topology.demotion_targets(0) == (3, 2, 4)
    assert topology.promotion_targets(4) == (0, 1, 2, 3)
    assert topology.demotion_targets(4) == ()
    assert topology.demotion_targets(99) == ()


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=50))
def test_node_of_agrees_with_the_spans(frames: list[int]) -> None:
    nodes = (
        node(0, cpus=2, spans=((100, 200), (900, 1000))),
        node(1, spans=((200, 300), (2000, 2500))),
    )
    topology = build(nodes, None, 1)
    found = topology.node_of(np.array(frames, np.uint64)).tolist()
    for frame, got in zip(frames, found, strict=True):
        inside = [s.node for n in nodes for s in n.spans if s.start <= frame < s.end]
        assert got == (inside[0] if inside else -1)


def test_tiers_of_maps_nodes_at_once() -> None:
    topology = build((node(0, cpus=2), node(3)), None, 1)
    nodes = np.array([3, 0, -1, 1, 900], np.int32)
    assert topology.tiers_of(nodes).tolist() == [1, 0, -1, -1, -1]
