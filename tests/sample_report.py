# SPDX-License-Identifier: Apache-2.0
"""A cycle's report in which nothing is empty, so that every metric has a value."""

from __future__ import annotations

import dataclasses
from typing import Any

from tierd.engine import ClassReport, CycleReport, FlowReport, SamplerReport, TierReport
from tierd.host import CpuTimes
from tierd.planner import Direction, Reason

GIB = 2**30


def tier(name: str, node: int, size: int, accessed: int) -> TierReport:
    """One tier on one node."""
    return TierReport(
        name=name,
        nodes=(node,),
        total=size,
        free=size // 20,
        headroom_low=size // 50,
        headroom_high=size // 25,
        looked_frames=1000,
        accessed_frames=accessed,
        hot=size // 2,
        heat=tuple(range(16)),
    )


SAMPLE = CycleReport(
    number=7,
    started=100.0,
    duration=0.2,
    mode="tier",
    sampler="page_idle",
    mover="move_phys_pages",
    tiers=(tier("dram", 0, 16 * GIB, 900), tier("cxl", 1, 48 * GIB, 100)),
    hit_ratio=0.9,
    flows=(
        FlowReport(Direction.PROMOTE, source=1, target=0, attempted=600, moved=512),
        FlowReport(Direction.DEMOTE, source=0, target=1, attempted=700, moved=700),
    ),
    skipped={(Direction.PROMOTE, Reason.CPUSET): 88, (Direction.PROMOTE, Reason.BUDGET): 5},
    kernel_refused={(Direction.PROMOTE, Reason.CPUSET): 88},
    samplers=(SamplerReport("page_idle", 2000, 1000, 3, 0.5, 0.9, 12.0, 14.5),),
    classes=(
        ClassReport("system.slice/db*", {"dram": 4 * GIB, "cxl": GIB}, 4096, 8192, 4096, False),
    ),
    wasted_pages=4,
    cpu={"sample": CpuTimes(0.01, 0.02), "move": CpuTimes(0.03, 0.04)},
    move_seconds={Direction.PROMOTE: 0.05, Direction.DEMOTE: 0.0},
    tokens={Direction.PROMOTE: 1000, Direction.DEMOTE: 2000},
    rate={Direction.PROMOTE: 200 * 2**20, Direction.DEMOTE: 100 * 2**20},
    threshold=0.25,
    cost={Direction.PROMOTE: 2e-6, Direction.DEMOTE: 1.5e-6},
    residency=60.0,
    worth=0.2,
    pressure={"memory": 0.01, "cpu": 0.2, "io": 0.03},
    back_off=0.5,
    back_off_causes=("memory",),
    deferred=False,
    degraded=(),
)


def report(**changes: Any) -> CycleReport:
    """`SAMPLE` with some fields changed."""
    return dataclasses.replace(SAMPLE, **changes)
