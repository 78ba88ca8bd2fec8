# SPDX-License-Identifier: Apache-2.0
"""What is known of one frame, in words: `explain`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tierd.engine.report import Explanation
from tierd.host import Pfns
from tierd.hotness import HeatMap, rate, rate_bound, recent
from tierd.pages import PageReader, PageReason
from tierd.policy import DOOR
from tierd.topology import Topology


def explain(
    pfn: int, topology: Topology, heat: HeatMap, reader: PageReader, threshold: float
) -> Explanation:
    """What heat knows of a frame, and what the policy would do with it; threshold: accesses per
    window from which a page belongs into the fastest tier. Raises KernelError when the kernel
    refuses."""
    one = np.array([pfn], np.uint64)
    node = int(topology.node_of(one)[0])
    tier = topology.tier_of(node)
    state = heat.states(one)
    known = bool(state[0])
    neighbours = float(heat.neighbours(one, state)[0]) if tier > 0 else 1.0
    looks = f"{int(state[0]) & 15:04b}".replace("1", "A").replace("0", ".") if known else ""
    return Explanation(
        pfn=pfn,
        node=node,
        tier=topology.tiers[tier].name if tier >= 0 else "",
        known=known,
        looks=looks,
        share=float(1 - np.exp(-rate(state)[0])),
        rate=float(rate(state)[0]),
        error=float(rate_bound(state, 1)[0] - rate(state)[0]) if known else 0.0,
        neighbours=neighbours,
        threshold=threshold,
        verdict=_verdict(one, tier, state, neighbours, reader, threshold),
    )


def _verdict(
    pfn: Pfns,
    tier: int,
    state: NDArray[np.uint16],
    neighbours: float,
    reader: PageReader,
    threshold: float,
) -> str:
    if tier < 0:
        return "stays: it is in no tier"
    info = reader.describe(pfn)
    if not info.movable[0]:
        return f"stays: {PageReason(int(info.reason[0])).name.lower()}"
    if not state[0]:
        return "stays: it was not looked at since its data came there"
    if tier == 0:
        colder = rate(state)[0] < threshold
        return "first to go when room is needed" if colder else "stays: it is hot"
    if recent(state)[0] < DOOR:
        return f"stays: accessed in fewer than {DOOR} of its last 4 looks"
    if neighbours * rate(state)[0] < threshold:
        return "promoted if there is free room: colder than the threshold"
    return "promoted: hotter than the threshold"
