# SPDX-License-Identifier: Apache-2.0
"""Writes what an engine sees into a trace, and what a replay must know besides: whose the frames
are, how large their folios, and which are gone.

The samplers do not tell those. They are read here, for frames that were looked at, a bounded
number in each cycle; what was read is read again in turn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd import __version__
from tierd.config import Config
from tierd.host import NO_PFN, CapabilitySet, Cgroup, Feature, Host, Pfns
from tierd.movers import MoveResult
from tierd.pages import PageReader, PageReason
from tierd.samplers import SampleBatch, SamplerStatus
from tierd.sets import unique
from tierd.topology import Topology
from tierd.trace import Cycle, Gauge, Header, Layout, Look, Moved, TraceError
from tierd.trace.file import Writer

PART: Final = 8192
"""Frames described at once: about 3 ms natively."""

AGAIN: Final = 8192
"""Frames described again in a cycle, in turn: who owns them may have changed."""

STRETCH: Final = 1 << 22
"""Frames in which those to be described again are searched, per cycle."""

CGROUP_CYCLES: Final = 60
"""Cycles between two readings of all cgroups, unless an unknown one turns up."""

_log = logging.getLogger(__name__)


def begin(
    host: Host, topology: Topology, path: Path, policy: Config, limit: int | None = None
) -> Recorder:
    """A recorder with a new file. limit: most bytes of it. Raises TraceError."""
    header = Header(
        __version__, host.name, host.page_size, time.time(), policy.interval, host.nodes()
    )
    cpu = policy.sampling.cpu * policy.interval
    return Recorder(host, topology, Writer(path, header), cpu, limit)


def begin_in(host: Host, topology: Topology, policy: Config) -> Recorder | None:
    """The recorder that the policy asks for, None where it asks for none. Raises TraceError."""
    rules = policy.trace
    if rules.directory is None:
        return None
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = Path(rules.directory) / f"tierd-{now}.trace"
    return begin(host, topology, path, policy, rules.size)


class Recorder:
    """`tierd.engine.Watcher` that writes a trace. Uses a byte per frame looked at."""

    def __init__(
        self,
        host: Host,
        topology: Topology,
        writer: Writer,
        cpu: float,
        limit: int | None = None,
    ) -> None:
        """cpu: CPU seconds that telling what frames are may take in a cycle; limit: bytes of the
        file from which on nothing more is written."""
        self._host = host
        self._writer = writer
        self._cpu = cpu
        self._limit = limit
        owners = CapabilitySet(host.capabilities()).has(Feature.KPAGECGROUP)
        self._reader = PageReader(host, topology, owners=owners)
        self._start = np.array([span.start for span in topology.spans], np.int64)
        self._end = np.array([span.end for span in topology.spans], np.int64)
        lengths = self._end - self._start
        self._first = np.cumsum(lengths) - lengths
        self._described = np.zeros(int(lengths.sum()), np.bool_)
        self._turn = 0
        self._cgroups: tuple[Cgroup, ...] = ()
        self._inodes: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._since_cgroups = CGROUP_CYCLES
        self._looks: list[Look] = []
        self._moves: list[Moved] = []
        self._now = 0.0
        self._pressure: Mapping[str, float] = {}
        self.stopped: str | None = None
        """Why nothing more is written, None while it is."""

    @property
    def writer(self) -> Writer:
        return self._writer

    def begin(self, now: float, pressure: Mapping[str, float]) -> None:
        """A cycle begins."""
        self._now, self._pressure = now, pressure
        self._looks, self._moves = [], []

    def saw(self, batch: SampleBatch) -> None:
        """Remember a batch until the end of the cycle."""
        if self.stopped is None:
            self._looks.append(
                Look(
                    batch.source,
                    batch.pfn,
                    batch.weight,
                    batch.t0,
                    batch.t1,
                    batch.granularity,
                    batch.lost,
                    batch.cold_evidence,
                )
            )

    def moved(self, result: MoveResult) -> None:
        """Remember where folios went."""
        went = result.moved & (result.new_pfn != NO_PFN)
        if self.stopped is None and went.any():
            old, new = result.moves.pfn[went], result.new_pfn[went]
            order = np.log2(result.moves.pages[went]).astype(np.uint8)
            self._moves.append(Moved(old, new, order))
            self._forget(old)

    def end(self, statuses: Sequence[SamplerStatus]) -> None:
        """Write the cycle. Whatever keeps it from being written ends the recording, not the
        daemon."""
        if self.stopped is not None:
            return
        try:
            self._writer.write(self._cycle(statuses))
        except (TraceError, OSError) as error:
            self._stop(str(error))
            return
        if self._limit is not None and self._writer.size >= self._limit:
            self._stop(f"{self._writer.path} has reached the size that the policy allows")

    def close(self) -> None:
        """End the trace."""
        self.stopped = self.stopped or "closed"
        self._writer.close()

    def _stop(self, why: str) -> None:
        self.stopped = why
        self._writer.close()
        _log.warning("the recording has ended: %s", why)

    def _cycle(self, statuses: Sequence[SamplerStatus]) -> Cycle:
        layout = self._layout()
        return Cycle(
            time=self._now,
            memory=self._host.node_memory(),
            pressure=self._pressure,
            looks=tuple(self._looks),
            gauges=tuple(Gauge(s.name, s.window, s.coverage, s.round_time) for s in statuses),
            layout=layout,
            moved=_joined(self._moves),
            cgroups=self._new_cgroups(layout),
        )

    # -- what frames are ---------------------------------------------------------------------

    def _layout(self) -> Layout:
        """As much as there is time for, and a little in any case; frames that were accessed come
        first, for they are what a policy would move."""
        since = self._host.cpu_times()
        todo = np.concatenate([self._again(), self._fresh(hot=True), self._fresh(hot=False)])
        parts: list[Layout] = []
        for at in range(0, len(todo), PART):
            parts.append(self._describe(unique(todo[at : at + PART])))
            if (self._host.cpu_times() - since).total >= self._cpu:
                break
        return _merged(parts)

    def _describe(self, pfn: Pfns) -> Layout:
        info = self._reader.describe(pfn)
        gone = np.isin(info.reason, (PageReason.FREE, PageReason.KERNEL))
        kept = info.movable
        self._note(info.pfn[kept], described=True)
        self._forget(info.pfn[gone])
        return Layout(
            info.pfn[kept],
            np.log2(info.pages[kept]).astype(np.uint8),
            info.cgroup[kept],
            # Also those just looked at: a sampler may take a frame that was freed for accessed.
            gone=info.pfn[gone],
        )

    def _fresh(self, *, hot: bool) -> Pfns:
        """Frames looked at in this cycle that were not described yet: those accessed, or the
        others."""
        found: list[Pfns] = [np.zeros(0, np.uint64)]
        for look in self._looks:
            if look.granularity == 1:
                pfn = look.pfn[(look.weight > 0) == hot]
                at = self._index(pfn)
                found.append(pfn[(at >= 0) & ~self._described[at]])
        return np.concatenate(found)

    def _again(self) -> Pfns:
        """The next described frames in turn."""
        part = self._described[self._turn : self._turn + STRETCH]
        at = np.flatnonzero(part)[:AGAIN]
        # A stretch that had more than fit goes on where that ended.
        ahead = int(at[-1]) + 1 if len(at) == AGAIN else len(part)
        index = at + self._turn
        self._turn = (self._turn + ahead) % max(len(self._described), 1)
        span = np.searchsorted(self._first, index, side="right") - 1
        frames: Pfns = (self._start[span] + index - self._first[span]).astype(np.uint64)
        return frames

    def _index(self, pfn: Pfns) -> NDArray[np.int64]:
        """int64[n]: place of each frame in `_described`, -1 outside all tiers."""
        where = pfn.astype(np.int64)
        span = np.searchsorted(self._start, where, side="right") - 1
        inside = (span >= 0) & (where < self._end[span])
        return np.where(inside, where - self._start[span] + self._first[span], -1)

    def _note(self, pfn: Pfns, *, described: bool) -> None:
        at = self._index(pfn)
        self._described[at[at >= 0]] = described

    def _forget(self, pfn: Pfns) -> None:
        self._note(pfn, described=False)

    def _new_cgroups(self, layout: Layout) -> tuple[Cgroup, ...] | None:
        """All cgroups, where they are other ones than those written last."""
        self._since_cgroups += 1
        known = np.isin(layout.cgroup, self._inodes) | (layout.cgroup == 0)
        if self._since_cgroups < CGROUP_CYCLES and known.all():
            return None
        self._since_cgroups = 0
        found = tuple(sorted(self._host.cgroups(), key=lambda cgroup: cgroup.inode))
        if found == self._cgroups:
            return None
        self._cgroups = found
        self._inodes = np.array([cgroup.inode for cgroup in found], np.uint64)
        return found


def _joined(parts: Sequence[Moved]) -> Moved:
    if not parts:
        return Moved()
    return Moved(
        np.concatenate([part.old for part in parts]),
        np.concatenate([part.new for part in parts]),
        np.concatenate([part.order for part in parts]),
    )


def _merged(parts: Sequence[Layout]) -> Layout:
    """All of them; of a frame that several parts tell of, what the first says."""
    if not parts:
        return Layout()
    pfn, first = np.unique(np.concatenate([part.pfn for part in parts]), return_index=True)
    return Layout(
        pfn,
        np.concatenate([part.order for part in parts])[first],
        np.concatenate([part.cgroup for part in parts])[first],
        gone=unique(np.concatenate([part.gone for part in parts])),
    )
