# SPDX-License-Identifier: Apache-2.0
"""Heat of every page frame: two bytes each, of huge pages hardly any, in place, vectorised.

`HeatMap` knows frames, not folios: it is told about folio heads, and tails stay unknown to it.
Pure: no I/O, no clock; draws are the same for the same seed.
"""

from __future__ import annotations

from tierd.hotness.draws import Draws
from tierd.hotness.heatmap import HeatMap, Seen
from tierd.hotness.packed import CHUNK
from tierd.hotness.search import SCAN_LIMIT, Candidates
from tierd.hotness.state import LEVELS, level_rate, level_state, rate, rate_bound, recent, settled

__all__ = [
    "CHUNK",
    "LEVELS",
    "SCAN_LIMIT",
    "Candidates",
    "Draws",
    "HeatMap",
    "Seen",
    "level_rate",
    "level_state",
    "rate",
    "rate_bound",
    "recent",
    "settled",
]
