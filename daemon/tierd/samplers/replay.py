# SPDX-License-Identifier: Apache-2.0
"""What a trace's samplers saw, told again about the frames of a replayed machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tierd.host import NO_PFN, Pfns
from tierd.samplers import SampleBatch, SamplerStatus
from tierd.trace import Cycle, Look


class ReplaySampler:
    """`tierd.samplers.Sampler` over cycles of a trace, which `feed` hands over one by one."""

    name = "replay"

    def __init__(
        self, place: Callable[[Look], Pfns], fast_share: Callable[[], float | None]
    ) -> None:
        """place: takes in a look and says which frame each of its entries is in now, in their
        order, NO_PFN for none. fast_share: as in `SamplerStatus`."""
        self._place = place
        self._fast_share = fast_share
        self._cycle: Cycle | None = None

    def feed(self, cycle: Cycle) -> None:
        """Have this cycle told by the next `sample`."""
        self._cycle = cycle

    def sample(self, cpu_budget: float) -> Iterator[SampleBatch]:
        """The looks of the cycle, at no cost."""
        looks = self._cycle.looks if self._cycle is not None else ()
        for look in looks:
            look = _spread(look) if look.granularity > 1 else look
            pfn = self._place(look)
            order = np.argsort(pfn, kind="stable")
            order = order[: int((pfn != NO_PFN).sum())]
            yield SampleBatch(
                look.source,
                pfn[order],
                look.weight[order],
                look.t0,
                look.t1,
                lost=look.lost,
                cold_evidence=look.cold_evidence,
            )

    def status(self) -> SamplerStatus:
        """As the recorded samplers were; with several of them, the slowest counts."""
        gauges = self._cycle.gauges if self._cycle is not None else ()
        return SamplerStatus(
            self.name,
            max((gauge.window for gauge in gauges), default=0.0),
            min((gauge.coverage for gauge in gauges), default=0.0),
            max((gauge.round_time for gauge in gauges), default=0.0),
            self._fast_share(),
        )

    def forget(self, pfn: Pfns) -> None:
        """A recording says what was seen: nothing is known besides."""

    def close(self) -> None:
        """Nothing was changed."""


def _spread(look: Look) -> Look:
    """One entry per frame: they may be on different nodes of the replayed machine."""
    step = np.arange(look.granularity, dtype=np.uint64)
    pfn, first = np.unique((look.pfn[:, None] + step).reshape(-1), return_index=True)
    weight = np.repeat(look.weight, look.granularity)[first]
    return Look(look.source, pfn, weight, look.t0, look.t1, 1, look.lost, look.cold_evidence)
