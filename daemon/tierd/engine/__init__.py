# SPDX-License-Identifier: Apache-2.0
"""One cycle: sample -> heat -> policy -> plan -> move -> `CycleReport`. No threads, no HTTP."""

from __future__ import annotations

from tierd.engine.cycle import Engine
from tierd.engine.report import (
    ClassReport,
    CycleReport,
    Explanation,
    FlowReport,
    SamplerReport,
    TierReport,
)
from tierd.engine.watch import Watcher

__all__ = [
    "ClassReport",
    "CycleReport",
    "Engine",
    "Explanation",
    "FlowReport",
    "SamplerReport",
    "TierReport",
    "Watcher",
]
