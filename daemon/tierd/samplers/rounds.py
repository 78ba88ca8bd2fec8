# SPDX-License-Identifier: Apache-2.0
"""Progress of a scan round and round over all memory. Pure."""

from __future__ import annotations


class Round:
    """How far the present round over all blocks has come, and how the last one went."""

    def __init__(self, blocks: int, now: float) -> None:
        self._blocks = max(blocks, 1)
        self._began = now
        self._passed = 0
        self._looked = 0
        self._last: tuple[int, float] | None = None

    def looked(self, frames: int) -> None:
        """So many frames were looked at."""
        self._looked += frames

    def passed(self, blocks: int, now: float) -> None:
        """So many blocks have had their turn; `now` in seconds."""
        self._passed += blocks
        if self._passed >= self._blocks:
            self._last = (self._looked, now - self._began)
            self._passed, self._looked, self._began = 0, 0, now

    def status(self, now: float, known: int) -> tuple[float, float]:
        """Share of the known frames that were looked at, and seconds of a round; before the
        first round is over, what is known so far."""
        if self._last is not None:
            looked, seconds = self._last
        else:
            part = self._passed / self._blocks
            looked, seconds = self._looked, (now - self._began) / part if part else 0.0
        return min(looked / known, 1.0) if known else 0.0, seconds
