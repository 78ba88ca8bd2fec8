# SPDX-License-Identifier: Apache-2.0
"""Sources of hotness. Each yields `SampleBatch`, none knows another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tierd.host import Pfns


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """What one source saw of at most one chunk of frames between t0 and t1.

    pfn: uint64[n], sorted and unique: the frames that were looked at, folio heads only.
    weight: uint8[n]; how often each was seen accessed, 0 where it was looked at and found
    idle. A source that cannot see idleness (`cold_evidence` False) never yields a 0.
    granularity: frames that one entry speaks for (1 for exact sources). Tails become known by
    more, and heads of large folios are not told from others any more (`HeatMap.coldest`).
    lost: accesses that the source knows it missed.
    gone: uint64[m], sorted, none of them in pfn: frames that are free now, or tails of a larger
    folio. What was known of them is void. repeated: what an earlier look told by other frames,
    of frames that another batch of the same call has as well; no looks of their own. A recording
    has neither.
    A frame that is in no batch was not looked at: it is unknown, never cold.
    """

    source: str
    pfn: Pfns
    weight: NDArray[np.uint8]
    t0: float
    t1: float
    granularity: int = 1
    lost: int = 0
    cold_evidence: bool = True
    gone: Pfns = field(default_factory=lambda: np.zeros(0, np.uint64))
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class SamplerStatus:
    """How a sampler is doing, for metrics and `tierctl status`."""

    name: str
    window: float
    """Seconds between marking and reading (idle bitmap), or the aggregation interval."""
    coverage: float
    """Share of the frames that were looked at within the last full round, 0..1."""
    round_time: float
    """Seconds that a full round over all frames takes at the present budget; the bound on the
    time to find a new hot block."""
    fast_share: float | None = None
    """Share of the pages accessed within a window that are in the fastest tier, over all blocks
    and not only those looked at last: blocks that may have to move are looked at more often than
    others, so batches are no fair sample. None where the source cannot say."""
    find_time: float | None = None
    """Seconds within which a 2 MiB block that becomes hot as a whole, outside the fastest tier,
    is looked at twice and so known for hot: an estimate. None where the source cannot say."""
    confirmed: int = 0
    """2 MiB blocks outside the fastest tier that became hot a moment ago and are known for it
    since the last call: there is something to decide."""


class Sampler(Protocol):
    """One source of hotness."""

    @property
    def name(self) -> str: ...

    def sample(self, cpu_budget: float) -> Iterator[SampleBatch]:
        """Yield what was seen since the last call and begin the next windows, spending at most
        about `cpu_budget` CPU seconds, kernel time included."""

    def status(self) -> SamplerStatus: ...

    def forget(self, pfn: Pfns) -> None:
        """uint64[n]: frames whose data is elsewhere now or that turned out to be free. What was
        known of them, and what a look that is under way would take them for, is void."""

    def close(self) -> None:
        """Stop and restore whatever was changed in the kernel."""
