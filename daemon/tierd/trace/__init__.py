# SPDX-License-Identifier: Apache-2.0
"""Traces: what the samplers saw, cycle by cycle, without any content of memory.

`tierd.trace.file` writes and reads them, `tierd.trace.codec` turns a cycle into bytes and back;
docs/trace.md describes the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tierd.host import Cgroup, Node, NodeMemory, Pfns

__all__ = ["Cycle", "Gauge", "Header", "Layout", "Look", "Moved", "TraceError"]


class TraceError(Exception):
    """A trace cannot be read or written: one line with the file, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Header:
    """What holds for a whole trace. `started` is Unix time; `interval` seconds between cycles."""

    tierd: str
    host: str
    page_size: int
    started: float
    interval: float
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """One batch of a sampler; fields as in `tierd.samplers.SampleBatch`.

    pfn: uint64[n] sorted, unique; weight: uint8[n].
    """

    source: str
    pfn: Pfns
    weight: NDArray[np.uint8]
    t0: float
    t1: float
    granularity: int = 1
    lost: int = 0
    cold_evidence: bool = True


@dataclass(frozen=True, slots=True)
class Gauge:
    """How a sampler was doing; fields as in `tierd.samplers.SamplerStatus`."""

    name: str
    window: float
    coverage: float
    round_time: float


def _no_frames() -> Pfns:
    return np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Layout:
    """What some frames turned out to be.

    pfn: uint64[n] sorted folio heads; order: uint8[n], 2 ** order base pages; cgroup: uint64[n]
    inode, 0 for none. gone: uint64[m] sorted frames that hold no page of a program any more.
    """

    pfn: Pfns = field(default_factory=_no_frames)
    order: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    cgroup: NDArray[np.uint64] = field(default_factory=_no_frames)
    gone: Pfns = field(default_factory=_no_frames)


@dataclass(frozen=True, slots=True)
class Moved:
    """Folios that tierd moved while it recorded, in that order: heads before and after (uint64),
    order (uint8)."""

    old: Pfns = field(default_factory=_no_frames)
    new: Pfns = field(default_factory=_no_frames)
    order: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))


@dataclass(frozen=True, slots=True)
class Cycle:
    """One cycle. `time` is the host's clock in seconds; `cgroups` is None where they are those of
    the cycle before."""

    time: float
    memory: tuple[NodeMemory, ...]
    pressure: Mapping[str, float]
    looks: tuple[Look, ...] = ()
    gauges: tuple[Gauge, ...] = ()
    layout: Layout = field(default_factory=Layout)
    moved: Moved = field(default_factory=Moved)
    cgroups: tuple[Cgroup, ...] | None = None
