# SPDX-License-Identifier: Apache-2.0
"""What a cycle has to tell: `CycleReport` and its parts, and `Explanation` of one frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tierd.host import CpuTimes
from tierd.planner import Direction, Reason


@dataclass(frozen=True, slots=True)
class TierReport:
    """One tier at the end of a cycle. Bytes unless said otherwise."""

    name: str
    nodes: tuple[int, ...]
    total: int
    free: int
    headroom_low: int
    headroom_high: int
    looked_frames: int
    """Frames of this tier that were looked at in this cycle."""
    accessed_frames: int
    """Those of them that were seen accessed; the estimate of the tier's share of accesses."""
    hot: int
    """Bytes of known frames above the present threshold."""
    heat: tuple[int, ...]
    """Known frames per heat bucket (16, coldest first)."""


@dataclass(frozen=True, slots=True)
class FlowReport:
    """Moves from one node to another in this cycle, in base pages."""

    direction: Direction
    source: int
    target: int
    attempted: int
    moved: int


@dataclass(frozen=True, slots=True)
class SamplerReport:
    name: str
    looked: int
    accessed: int
    lost: int
    window: float
    coverage: float
    round_time: float
    find_time: float | None = None
    """Seconds until a block that becomes hot is known for it, see `SamplerStatus`."""


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One configured class. Bytes per tier name are estimates from sampled owners."""

    match: str
    resident: Mapping[str, int]
    promoted: int
    demoted: int
    wasted: int
    """Bytes demoted soon after their promotion in this cycle."""
    stopped: bool
    """The thrash governor has stopped promotion for this class."""


@dataclass(frozen=True, slots=True)
class CycleReport:
    """Everything one cycle has to tell; immutable, read by other threads."""

    number: int
    started: float
    """Host clock at the start, seconds."""
    duration: float
    mode: str
    """"tier", "observe" or "paused"."""
    sampler: str
    mover: str
    """Name of the mover in use, "none" when observing without one."""
    tiers: tuple[TierReport, ...]
    hit_ratio: float | None
    """Share of the accesses that go to the fastest tier, as far as the samplers can tell: by the
    pages seen accessed, or else by heat. None before the first look."""
    flows: tuple[FlowReport, ...]
    skipped: Mapping[tuple[Direction, Reason], int]
    """Base pages of candidates not moved: the planner's skips and the kernel's refusals."""
    kernel_refused: Mapping[tuple[Direction, Reason], int]
    """The part of `skipped` that was the mover's verdict, not the planner's."""
    samplers: tuple[SamplerReport, ...]
    classes: tuple[ClassReport, ...]
    wasted_pages: int
    """Base pages demoted soon after tierd itself promoted them."""
    cpu: Mapping[str, CpuTimes]
    """CPU time of this cycle by phase: sample, heat, plan, move."""
    move_seconds: Mapping[Direction, float]
    tokens: Mapping[Direction, int]
    """Bytes left in each direction's bucket."""
    rate: Mapping[Direction, int]
    """Bytes per second that each direction may use."""
    deferred: bool
    """Nothing was planned: decisions so far have cost more than their part of the CPU share."""
    threshold: float
    """Heat (accesses per second) above which a frame belongs in the fast tier."""
    cost: Mapping[Direction, float]
    """CPU seconds per base page that was moved, as measured."""
    residency: float
    """Seconds that a promotion is expected to last."""
    worth: float
    """Accesses per second that a promoted page must win over the one it displaces, for the moves
    to be worth their cost."""
    pressure: Mapping[str, float]
    """PSI as ratios by resource, as far as the kernel has it."""
    back_off: float
    """Part of the rates that is held back because of pressure, 0..1."""
    back_off_causes: tuple[str, ...]
    """Resources whose pressure is too high."""
    degraded: tuple[str, ...]
    """Why less is done than the policy asks for; empty when all is well."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What heat knows of one frame and what the policy would do with it."""

    pfn: int
    node: int
    """-1 when the frame is in no tier."""
    tier: str
    """Name of its tier, "" for none."""
    known: bool
    """It was looked at since its data came there."""
    looks: str
    """The last four looks, newest last: A accessed, . idle; "" when unknown."""
    share: float
    """Share of looks that found it accessed."""
    rate: float
    """Accesses per window, and its standard error."""
    error: float
    neighbours: float
    """What the frames around it multiply the rate by when it may be promoted."""
    threshold: float
    """Accesses per window from which a frame belongs in the fastest tier."""
    verdict: str
    """One phrase: what the policy would do and why."""
