# SPDX-License-Identifier: Apache-2.0
"""Nodes -> tiers: which memory is faster, where each frame is, where its pages may go.

A `Topology` is immutable. Hot-plug or a new policy makes another one with the next generation
number; whoever keeps something derived from it compares the generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.config import Tier
from tierd.host import Node, Pfns, Span

SAME_LATENCY: Final = 1.25
"""Nodes whose latencies are within this factor share a tier: firmware tables are round numbers,
and remote DRAM on a two-socket host is no tier of its own to the kernel either."""

BETTER_BANDWIDTH: Final = 2.0
"""At the same latency this much more bandwidth makes a tier of its own (HBM beside DRAM)."""


class TopologyError(ValueError):
    """The nodes cannot be ordered into tiers as asked; the message is one line.

    `tier` is the index of the configured tier at fault, None where it is none of them.
    """

    def __init__(self, message: str, tier: int | None = None) -> None:
        super().__init__(message)
        self.tier = tier


@dataclass(frozen=True, slots=True)
class TierInfo:
    """One tier. `why` says in one phrase why it stands where it does in the order."""

    name: str
    nodes: tuple[int, ...]
    target: bool
    """Whether pages may be moved to it."""
    why: str
    avoid: tuple[int, ...] = ()
    """Those of its nodes that are never a target."""

    @property
    def targets(self) -> tuple[int, ...]:
        """Its nodes that pages may be moved to."""
        return tuple(n for n in self.nodes if n not in self.avoid) if self.target else ()


@dataclass(frozen=True, slots=True)
class Topology:
    """Tiers fastest first, and the frames of their nodes.

    `spans` holds only frames of nodes in a tier, sorted by start, disjoint.
    """

    generation: int
    tiers: tuple[TierInfo, ...]
    spans: tuple[Span, ...]
    distances: Mapping[int, Mapping[int, int]]
    """distances[a][b] as in the kernel's SLIT, for nodes in a tier."""
    frames: int = field(init=False)
    """Frames in all spans."""
    _starts: Pfns = field(init=False, repr=False, compare=False)
    _ends: Pfns = field(init=False, repr=False, compare=False)
    _nodes: NDArray[np.int32] = field(init=False, repr=False, compare=False)
    _tier_by_node: Mapping[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "frames", sum(span.frames for span in self.spans))
        put(self, "_starts", np.array([span.start for span in self.spans], np.uint64))
        put(self, "_ends", np.array([span.end for span in self.spans], np.uint64))
        put(self, "_nodes", np.array([span.node for span in self.spans], np.int32))
        by_node = {node: i for i, tier in enumerate(self.tiers) for node in tier.nodes}
        put(self, "_tier_by_node", by_node)

    def node_of(self, pfn: Pfns) -> NDArray[np.int32]:
        """int32[n]: node of each frame, -1 for a frame that is in no tier. Any order."""
        last = np.searchsorted(self._starts, pfn, side="right") - 1
        inside = (last >= 0) & (pfn < self._ends[last])
        return np.where(inside, self._nodes[last], np.int32(-1)).astype(np.int32, copy=False)

    def tier_of(self, node: int) -> int:
        """Index into `tiers`, 0 the fastest; -1 for a node that is in none."""
        return self._tier_by_node.get(node, -1)

    def tiers_of(self, nodes: NDArray[np.int32]) -> NDArray[np.int8]:
        """int8[n]: tier index of each node, -1 for a node (or -1) that is in none."""
        highest = max(self._tier_by_node)
        table = np.full(highest + 2, -1, np.int8)  # the last slot is what index -1 reads
        for node, tier in self._tier_by_node.items():
            table[node] = tier
        return table[np.where(nodes > highest, -1, nodes)]

    def frames_of(self, node: int) -> int:
        """Frames in the spans of one node."""
        return sum(span.frames for span in self.spans if span.node == node)

    def promotion_targets(self, node: int) -> tuple[int, ...]:
        """Nodes that pages of `node` may be promoted to, best first: the fastest tier first,
        within a tier the nearest first. Only nodes that may be a target."""
        return self._targets(node, range(self.tier_of(node)))

    def demotion_targets(self, node: int) -> tuple[int, ...]:
        """Nodes that pages of `node` may be demoted to, best first: the next slower tier first,
        within a tier the nearest first. Only nodes that may be a target."""
        tier = self.tier_of(node)
        return self._targets(node, range(tier + 1, len(self.tiers)) if tier >= 0 else ())

    def _targets(self, node: int, tiers: Iterable[int]) -> tuple[int, ...]:
        near = self.distances.get(node, {})
        return tuple(
            target
            for tier in tiers
            for target in sorted(self.tiers[tier].targets, key=lambda n: (near.get(n, 255), n))
        )


def build(nodes: Sequence[Node], config_tiers: Sequence[Tier] | None, generation: int) -> Topology:
    """Order `nodes` into tiers: as the policy says, else by what is known of their speed.

    Raises TopologyError for a tier with a node that does not exist or has no memory, a node in
    two tiers, two tiers of one name, fewer than two tiers, or no tier that may be a target.
    """
    tiers = _configured(nodes, config_tiers) if config_tiers is not None else _default(nodes)
    kept = {node for tier in tiers for node in tier.nodes}
    spans = [span for node in nodes if node.id in kept for span in node.spans]
    return Topology(
        generation=generation,
        tiers=tiers,
        spans=tuple(sorted(spans, key=lambda span: span.start)),
        distances={node.id: dict(node.distances) for node in nodes if node.id in kept},
    )


def _configured(nodes: Sequence[Node], tiers: Sequence[Tier]) -> tuple[TierInfo, ...]:
    known = {node.id for node in nodes if node.spans}
    listing = ", ".join(map(str, sorted(known))) or "none"
    names: set[str] = set()
    owner: dict[int, str] = {}
    for index, tier in enumerate(tiers):
        if tier.name in names:
            raise TopologyError(f"two tiers are named {tier.name}", index)
        names.add(tier.name)
        for node in tier.nodes:
            if node not in known:
                raise TopologyError(
                    f"tier {tier.name}: node {node} does not exist or has no memory"
                    f" (nodes with memory: {listing})",
                    index,
                )
            if node in owner:
                raise TopologyError(
                    f"tier {tier.name}: node {node} is in tier {owner[node]} already", index
                )
            owner[node] = tier.name
    if len(tiers) < 2:
        raise TopologyError("tiering needs at least two tiers", 0 if tiers else None)
    if not any(tier.target for tier in tiers):
        raise TopologyError("no tier may be a target: one at least needs target: true", 0)
    return tuple(
        TierInfo(
            tier.name, tuple(tier.nodes), tier.target, "the policy puts it here", tuple(tier.avoid)
        )
        for tier in tiers
    )


def _default(nodes: Sequence[Node]) -> tuple[TierInfo, ...]:
    usable = [node for node in nodes if node.spans]
    if len(usable) < 2:
        raise TopologyError(
            f"only {len(usable)} node with memory: there is nothing to tier between"
        )
    groups = _by_latency(usable) or _by_memory_tier(usable) or _by_cpus(usable)
    if groups is None or len(groups) < 2:
        raise TopologyError(
            "all nodes look equally fast (latency, memory tier, CPUs): name the tiers in the policy"
        )
    return tuple(
        TierInfo(f"tier{index}", tuple(sorted(node.id for node in group)), True, why)
        for index, (group, why) in enumerate(groups)
    )


_Groups = list[tuple[list[Node], str]]


def _by_latency(nodes: Sequence[Node]) -> _Groups | None:
    """From what the firmware reports for the best initiator; None unless it tells at least two
    nodes apart.

    Nodes that it says nothing of come after those that it knows: they were plugged in later and
    sit behind a link. Their memory tier comes from the device's own table, which may claim to
    beat memory that the firmware has measured, so it only orders them among themselves. A node
    with CPUs of which nothing is reported leaves all of it open.
    """
    reported = [node for node in nodes if node.read_latency is not None]
    silent = [node for node in nodes if node.read_latency is None]
    if not reported or any(node.cpus for node in silent):
        return None
    groups: _Groups = []
    # Ties go to the higher bandwidth, then to nodes with CPUs: those at least are local to someone.
    ordered = sorted(
        reported,
        key=lambda n: (n.read_latency or 0.0, -(n.read_bandwidth or 0.0), not n.cpus, n.id),
    )
    for node in _bandwidth_first(ordered):
        if groups and _same_speed(groups[-1][0][0], node):
            groups[-1][0].append(node)
        else:
            groups.append(([node], _speed(node)))
    if silent:
        after = "firmware reports no latency, so after the nodes that it knows; "
        among = _memory_tiers(silent) or [(silent, "no CPUs")]
        groups += [(group, after + why) for group, why in among]
    return groups if len(groups) > 1 else None


def _bandwidth_first(ordered: list[Node]) -> list[Node]:
    """Within a run of like latency, nodes of much higher bandwidth first."""
    result: list[Node] = []
    while ordered:
        first = ordered[0].read_latency or 0.0
        run = [n for n in ordered if (n.read_latency or 0.0) <= first * SAME_LATENCY]
        ordered = ordered[len(run) :]
        result += sorted(run, key=lambda n: (-(n.read_bandwidth or 0.0), not n.cpus, n.id))
    return result


def _same_speed(first: Node, node: Node) -> bool:
    fast, slow = first.read_latency or 0.0, node.read_latency or 0.0
    if slow > fast * SAME_LATENCY or bool(first.cpus) != bool(node.cpus):
        return False
    if first.read_bandwidth and node.read_bandwidth:
        return first.read_bandwidth < node.read_bandwidth * BETTER_BANDWIDTH
    return True


def _speed(node: Node) -> str:
    text = f"firmware reports {(node.read_latency or 0.0) * 1e9:.0f} ns read latency"
    if node.read_bandwidth:
        text += f", {node.read_bandwidth / 2**30:.1f} GiB/s"
    return text + ("" if node.cpus else ", no CPUs")


def _by_memory_tier(nodes: Sequence[Node]) -> _Groups | None:
    """From the kernel's memory tiers; None unless all nodes are in one and they differ."""
    if len({node.memory_tier for node in nodes}) < 2:
        return None
    return _memory_tiers(nodes)


def _memory_tiers(nodes: Sequence[Node]) -> _Groups | None:
    """Nodes by memory tier; None unless all are in one.

    The kernel's number is the abstract distance in steps of 128 (mm/memory-tiers.c): lower is
    faster. Nodes with CPUs come first within one, and never share a tier with a CPU-less one.
    """
    if any(node.memory_tier is None for node in nodes):
        return None
    keyed: dict[tuple[int, bool], list[Node]] = {}
    for node in nodes:
        keyed.setdefault((node.memory_tier or 0, not node.cpus), []).append(node)
    return [
        (
            keyed[key],
            f"the kernel's memory tier {key[0]}" + (", no CPUs" if key[1] else ", has CPUs"),
        )
        for key in sorted(keyed)
    ]


def _by_cpus(nodes: Sequence[Node]) -> _Groups | None:
    """CPU-less nodes are slower; None when all or none have CPUs."""
    local = [node for node in nodes if node.cpus]
    remote = [node for node in nodes if not node.cpus]
    if not local or not remote:
        return None
    return [
        (local, "has CPUs; neither latency nor memory tiers tell the nodes apart"),
        (remote, "no CPUs; neither latency nor memory tiers tell the nodes apart"),
    ]
