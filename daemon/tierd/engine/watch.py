# SPDX-License-Identifier: Apache-2.0
"""Who may look on while the engine works, such as a recorder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tierd.movers import MoveResult
from tierd.samplers import SampleBatch, SamplerStatus


class Watcher(Protocol):
    """Told by the engine what it sees and does. It must not fail, and its CPU time counts as the
    sampler's."""

    def begin(self, now: float, pressure: Mapping[str, float]) -> None:
        """A cycle begins, at `now` of the host's clock."""

    def saw(self, batch: SampleBatch) -> None:
        """A sampler yielded this."""

    def moved(self, result: MoveResult) -> None:
        """The mover came back with this."""

    def end(self, statuses: Sequence[SamplerStatus]) -> None:
        """The cycle is over."""
