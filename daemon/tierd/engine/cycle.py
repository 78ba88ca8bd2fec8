# SPDX-License-Identifier: Apache-2.0
"""`Engine`: runs cycles. It does all the asking (host, samplers, mover); the core only decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.config import Config, Mode
from tierd.engine.owners import OwnerBook
from tierd.engine.report import (
    ClassReport,
    CycleReport,
    Explanation,
    FlowReport,
    SamplerReport,
    TierReport,
)
from tierd.governor import Budget, Ledger, Thrash
from tierd.host import NO_PFN, CapabilitySet, CpuTimes, Feature, Host, NodeMemory, Pfns
from tierd.hotness import (
    LEVELS,
    Candidates,
    HeatMap,
    Seen,
    level_state,
    rate,
    rate_error,
    recent,
)
from tierd.movers import Mover, MoveResult
from tierd.pages import PageReader, PageReason
from tierd.planner import (
    FREE_TO_GO,
    Direction,
    Folios,
    Limits,
    MovePlan,
    Moves,
    Reason,
    Ways,
    code,
    plan,
)
from tierd.policy import DOOR, Room, Target, TierHeat, decide
from tierd.samplers import Sampler
from tierd.topology import Topology

SEARCH_SHARE: Final = 2
"""Candidates looked up per page that the budget allows: some are refused."""

WASTE_WINDOW: Final = 3.0
"""A promotion is waste when it is undone within this many times the minimum residency."""

HEAT_BUCKETS: Final = 16

_REFUSALS: Final = {
    PageReason.FREE: Reason.STALE,
    PageReason.KERNEL: Reason.STALE,
    PageReason.FOREIGN: Reason.STALE,
    PageReason.HUGETLB: Reason.PINNED,
    PageReason.POISONED: Reason.PINNED,
    PageReason.ZERO: Reason.PINNED,
    PageReason.BUSY: Reason.BUSY,
}


@dataclass(slots=True)
class _Tally:
    """What a cycle has counted so far."""

    seen: list[Seen] = field(default_factory=list)
    samplers: list[SamplerReport] = field(default_factory=list)
    flows: Counter[tuple[Direction, int, int]] = field(default_factory=Counter)
    attempted: Counter[tuple[Direction, int, int]] = field(default_factory=Counter)
    skipped: Counter[tuple[Direction, Reason]] = field(default_factory=Counter)
    refused: Counter[tuple[Direction, Reason]] = field(default_factory=Counter)
    seconds: dict[Direction, float] = field(default_factory=lambda: dict.fromkeys(Direction, 0.0))
    cpu: dict[str, CpuTimes] = field(default_factory=dict)
    wasted: int = 0
    level: int = 1


class Engine:
    """The whole of tierd without its surroundings: `cycle` is one round of everything.

    Not thread-safe: one worker calls `cycle`, `reconfigure`, `explain` and `close`.
    """

    def __init__(
        self,
        host: Host,
        config: Config,
        topology: Topology,
        samplers: Sequence[Sampler],
        mover: Mover | None,
        degraded: tuple[str, ...] = (),
    ) -> None:
        """Allocates two bytes per frame, lazily. Raises KernelError when cgroups cannot be read."""
        self._host = host
        self._config = config
        self._topology = topology
        self._samplers = tuple(samplers)
        self._mover = mover
        self._degraded = degraded
        self._heat = HeatMap(topology.spans)
        owners = CapabilitySet(host.capabilities()).has(Feature.KPAGECGROUP)
        self._reader = PageReader(host, topology, owners=owners)
        self._book = OwnerBook(host, topology, config.classes, self._reader)
        now = host.monotonic()
        move = config.migration
        cpu = config.sampling.cpu
        self._budget = Budget(move.promote, move.demote, cpu, config.interval, now)
        self._ledgers = {direction: Ledger() for direction in Direction}
        self._thrash = Thrash(len(config.classes))
        self._wanted: Pfns = np.zeros(0, np.uint64)
        self._cold_evidence = False
        self._number = 0
        self._targets: tuple[Target, ...] = ()

    # -- what the service calls --------------------------------------------------------------

    def cycle(self, *, paused: bool = False) -> CycleReport:
        """Run one cycle and report. Raises KernelError when a kernel interface that was there
        at the start refuses; the next cycle may succeed."""
        host = self._host
        started = host.monotonic()
        self._number += 1
        tally = _Tally()
        pressure = host.pressure()
        allowance = self._budget.begin(started, pressure)
        at = host.cpu_times()
        self._look(tally)
        at = self._clock(tally, "sample", at)
        memory = {entry.node: entry for entry in host.node_memory()}
        tiers = self._tiers(tally, memory)
        self._targets = decide(tiers)
        tally.level = self._targets[0].level
        self._book.refresh()
        self._book.draw(self._heat)
        at = self._clock(tally, "heat", at)
        limits = Limits(allowance.promote // host.page_size, allowance.demote // host.page_size)
        plans = self._plan(tally, tiers, memory, limits)
        at = self._clock(tally, "plan", at)
        mode = self._mode(paused)
        moved = {direction: self._owner_zeros() for direction in Direction}
        wasted, life = self._owner_zeros(), np.zeros(len(self._owner_zeros()))
        for each in plans:
            self._carry_out(tally, each, mode, started, moved, (wasted, life))
        self._clock(tally, "move", at)
        self._settle(tally, started, moved, (wasted, life))
        done = _Done(mode, started, pressure, allowance.promote_rate, allowance.demote_rate)
        return self._report(tally, done, moved, wasted)

    def reconfigure(self, config: Config) -> None:
        """Follow another policy from the next cycle on; heat and the memory of moves stay."""
        move, cpu = config.migration, config.sampling.cpu
        self._budget.limit(move.promote, move.demote, cpu, config.interval)
        if config.classes != self._config.classes:
            self._book.use(config.classes)
            self._thrash = Thrash(len(config.classes))
            self._ledgers = {direction: Ledger() for direction in Direction}
        self._config = config

    def close(self) -> None:
        """Stop sampling; samplers restore what they changed in the kernel."""
        for sampler in self._samplers:
            sampler.close()

    # -- sampling --------------------------------------------------------------------------

    def _look(self, tally: _Tally) -> None:
        self._heat.tick()
        for sampler in self._samplers:
            before = self._host.cpu_times()
            looked = accessed = lost = 0
            for batch in sampler.sample(self._budget.cpu / len(self._samplers)):
                seen = self._heat.observe(batch.pfn, batch.weight, batch.granularity)
                tally.seen += seen
                looked += sum(each.looked for each in seen)
                accessed += sum(each.accessed for each in seen)
                lost += batch.lost
                self._cold_evidence |= batch.cold_evidence
            self._budget.spent(0, 0, (self._host.cpu_times() - before).total)
            status = sampler.status()
            tally.samplers.append(
                SamplerReport(
                    name=status.name,
                    looked=looked,
                    accessed=accessed,
                    lost=lost,
                    window=status.window,
                    coverage=status.coverage,
                    round_time=status.round_time,
                )
            )

    def _clock(self, tally: _Tally, phase: str, since: CpuTimes) -> CpuTimes:
        now = self._host.cpu_times()
        tally.cpu[phase] = now - since
        return now

    # -- deciding --------------------------------------------------------------------------

    def _tiers(self, tally: _Tally, memory: Mapping[int, NodeMemory]) -> list[TierHeat]:
        page = self._host.page_size
        marks = self._config.migration.headroom
        tiers = []
        for tier in self._topology.tiers:
            rooms = tuple(
                Room(
                    node=node,
                    total=memory[node].total // page,
                    free=memory[node].free // page,
                    low=max(int(memory[node].total * marks.low), memory[node].high_watermark)
                    // page,
                    high=max(int(memory[node].total * marks.high), memory[node].high_watermark)
                    // page,
                )
                for node in tier.nodes
                if node in memory
            )
            here = [seen for seen in tally.seen if seen.node in tier.nodes]
            tiers.append(
                TierHeat(
                    target=tier.target,
                    rooms=rooms,
                    histogram=self._heat.histogram(tier.nodes),
                    expected=sum(seen.expected for seen in here),
                    met=sum(seen.met for seen in here),
                )
            )
        return tiers

    def _plan(
        self,
        tally: _Tally,
        tiers: Sequence[TierHeat],
        memory: Mapping[int, NodeMemory],
        limits: Limits,
    ) -> list[MovePlan]:
        plans: list[MovePlan] = []
        resident = self._book.resident(self._heat)
        taken: Pfns = np.zeros(0, np.uint64)
        for target in self._targets:
            hot, cold = self._candidates(target, limits, taken)
            grants = self._book.grants(resident[target.fast], self._thrash.stopped)
            made = plan(target, hot, cold, grants, self._ways(target, tiers), limits)
            plans.append(made)
            tally.skipped.update(made.skipped)
            limits = Limits(
                limits.promote - int(made.promote.pages.sum()),
                limits.demote - int(made.demote.pages.sum()),
            )
            taken = np.concatenate([taken, made.promote.pfn, made.demote.pfn])
        return plans

    def _candidates(self, target: Target, limits: Limits, taken: Pfns) -> tuple[Folios, Folios]:
        tiers = self._topology.tiers
        slow = [node for tier in tiers[target.fast + 1 :] for node in tier.nodes]
        fast = tiers[target.fast].nodes
        wanted = SEARCH_SHARE * limits.promote if tiers[target.fast].target else 0
        hot = self._heat.hottest(slow, wanted, level_state(1), DOOR)
        need = sum(target.need.values())
        due = min(SEARCH_SHARE * need + len(hot), SEARCH_SHARE * limits.demote)
        if self._book.classes:
            due = SEARCH_SHARE * limits.demote
        cold = Candidates(np.zeros(0, np.uint64), np.zeros(0, np.uint16))
        if self._cold_evidence and due:
            cold = self._heat.coldest(fast, due)
        if target.fast == 0:
            self._note_wanted(hot.pfn)
        hot_folios = self._folios(_without(hot, taken), slow, fast, Direction.PROMOTE)
        cold_folios = self._folios(_without(cold, taken), fast, slow, Direction.DEMOTE)
        return hot_folios, cold_folios

    def _folios(
        self,
        found: Candidates,
        sources: Sequence[int],
        targets: Sequence[int],
        direction: Direction,
    ) -> Folios:
        """Describe candidates as they are now; what is gone is forgotten."""
        order = np.argsort(found.pfn)
        info = self._reader.describe(found.pfn[order])
        known = self._book.table.known(info.cgroup) | (info.cgroup == 0)
        if not known.all():
            self._book.refresh(now=True)
        state = np.zeros(len(info.pfn), np.uint16)
        np.maximum.at(state, info.index, found.state[order])
        refused = np.full(len(info.pfn), FREE_TO_GO, np.int8)
        residency = self._config.migration.min_residency
        opposite = Direction.DEMOTE if direction is Direction.PROMOTE else Direction.PROMOTE
        since = self._host.monotonic() - residency
        refused[self._ledgers[opposite].recent(info.pfn, since)] = code(Reason.COOLDOWN)
        refused[~np.isin(info.node, sources)] = code(Reason.STALE)
        for why, reason in _REFUSALS.items():
            refused[info.reason == why] = code(reason)
        stale = refused[info.index] == code(Reason.STALE)
        self._heat.forget(found.pfn[order][stale])
        every = np.ones(len(info.pfn), np.bool_)
        check = self._config.migration.precheck
        table = self._book.table
        return Folios(
            pfn=info.pfn,
            pages=info.pages,
            node=info.node,
            state=state,
            owner=table.classes(info.cgroup),
            refused=refused,
            allowed={n: table.allows(info.cgroup, n) if check else every for n in targets},
        )

    def _ways(self, target: Target, tiers: Sequence[TierHeat]) -> Ways:
        """Promotion goes to the tier of `target`, demotion to any slower tier with room."""
        topology = self._topology
        fast = set(topology.tiers[target.fast].nodes)
        slow = {node for tier in topology.tiers[target.fast + 1 :] for node in tier.nodes}
        last = tiers[-1]
        room = {
            each.node: max(each.free - (each.low if tier is not last else each.low // 2), 0)
            for tier in tiers[target.fast + 1 :]
            for each in tier.rooms
        }
        return Ways(
            promote={
                node: [n for n in topology.promotion_targets(node) if n in fast] for node in slow
            },
            demote={
                node: [n for n in topology.demotion_targets(node) if n in slow] for node in fast
            },
            room=room,
        )

    def _note_wanted(self, pfn: Pfns) -> None:
        """Whether the candidates are mostly those of the last cycle tells a lasting pattern."""
        pfn = np.sort(pfn)
        self._persists = len(pfn) == 0 or (
            2 * np.count_nonzero(np.isin(pfn, self._wanted, assume_unique=True)) > len(pfn)
        )
        self._wanted = pfn

    # -- moving ----------------------------------------------------------------------------

    def _mode(self, paused: bool) -> str:
        if paused:
            return "paused"
        return "tier" if self._config.mode is Mode.TIER and self._mover else "observe"

    def _carry_out(
        self,
        tally: _Tally,
        made: MovePlan,
        mode: str,
        started: float,
        moved: dict[Direction, NDArray[np.int64]],
        waste: tuple[NDArray[np.int64], NDArray[np.float64]],
    ) -> None:
        """Demote, then promote into no more room than that made."""
        promote = made.promote
        for direction in (Direction.DEMOTE, Direction.PROMOTE):
            moves = made.demote if direction is Direction.DEMOTE else promote
            _count(tally.attempted, direction, moves, moves.target, np.ones(len(moves.pfn), bool))
            if mode != "tier" or self._mover is None or not len(moves.pfn):
                continue
            deadline = self._host.monotonic() + max(self._config.interval, 1.0)
            result = self._mover.move(moves, deadline)
            self._follow(tally, direction, result, started, moved[direction], waste)
            if direction is Direction.DEMOTE:
                promote = _fit_promotions(promote, result)

    def _follow(
        self,
        tally: _Tally,
        direction: Direction,
        result: MoveResult,
        now: float,
        moved: NDArray[np.int64],
        waste: tuple[NDArray[np.int64], NDArray[np.float64]],
    ) -> None:
        """Heat, ledgers and counters follow the pages that moved."""
        moves, ok = result.moves, result.moved
        _count(tally.flows, direction, moves, result.landed, ok)
        tally.seconds[direction] += result.seconds
        for reason, pages in result.failed.items():
            tally.refused[direction, reason] += pages
            tally.skipped[direction, reason] += pages
        sizes = moves.pages[ok]
        owner = self._owners_of(result.new_pfn[ok], moves.pfn[ok])
        np.add.at(moved, owner, sizes)
        self._heat.move(moves.pfn[ok], result.new_pfn[ok])
        opposite = Direction.DEMOTE if direction is Direction.PROMOTE else Direction.PROMOTE
        since = now - WASTE_WINDOW * self._config.migration.min_residency
        before = self._ledgers[opposite].leave(moves.pfn[ok], since)
        back = ~np.isnan(before)
        if direction is Direction.DEMOTE and back.any():
            np.add.at(waste[0], owner[back], sizes[back])
            np.add.at(waste[1], owner[back], (now - before[back]) * sizes[back])
            tally.wasted += int(sizes[back].sum())
        known = result.new_pfn[ok] != NO_PFN
        self._ledgers[direction].add(now, result.new_pfn[ok][known], owner[known], sizes[known])

    def _owners_of(self, new: Pfns, old: Pfns) -> NDArray[np.int16]:
        """int16[n]: class of each moved folio; read only when there are classes."""
        if not self._book.classes:
            return np.full(len(new), -1, np.int16)
        where = np.where(new == NO_PFN, old, new)
        return self._book.table.classes(self._host.cgroup_inodes(where))

    def _owner_zeros(self) -> NDArray[np.int64]:
        return np.zeros(len(self._config.classes) + 1, np.int64)

    def _settle(
        self,
        tally: _Tally,
        now: float,
        moved: Mapping[Direction, NDArray[np.int64]],
        waste: tuple[NDArray[np.int64], NDArray[np.float64]],
    ) -> None:
        page = self._host.page_size
        self._budget.spent(
            int(moved[Direction.PROMOTE].sum()) * page,
            int(moved[Direction.DEMOTE].sum()) * page,
            0.0,
        )
        wasted, life = waste
        mean = life / np.maximum(wasted, 1)
        persists = np.full(len(wasted), self._persists)
        self._thrash.update(now, moved[Direction.PROMOTE], wasted, mean, persists)
        for ledger in self._ledgers.values():
            ledger.prune(now - WASTE_WINDOW * self._config.migration.min_residency)

    # -- reporting -------------------------------------------------------------------------

    def _report(
        self,
        tally: _Tally,
        done: _Done,
        moved: Mapping[Direction, NDArray[np.int64]],
        wasted: NDArray[np.int64],
    ) -> CycleReport:
        page = self._host.page_size
        tokens = self._budget.tokens
        accessed = sum(seen.accessed for seen in tally.seen)
        fast = sum(s.accessed for s in tally.seen if s.node in self._topology.tiers[0].nodes)
        window = max((each.window for each in tally.samplers), default=0.0)
        flows = tuple(
            FlowReport(*key, attempted=count, moved=tally.flows[key])
            for key, count in sorted((tally.attempted | tally.flows).items())
        )
        return CycleReport(
            number=self._number,
            started=done.started,
            duration=self._host.monotonic() - done.started,
            mode=done.mode,
            sampler="+".join(each.name for each in self._samplers) or "none",
            mover=self._mover.name if self._mover else "none",
            tiers=self._tier_reports(tally),
            hit_ratio=fast / accessed if accessed else None,
            flows=flows,
            skipped=dict(tally.skipped),
            kernel_refused=dict(tally.refused),
            samplers=tuple(tally.samplers),
            classes=self._class_reports(moved, wasted, page),
            wasted_pages=tally.wasted,
            cpu=tally.cpu,
            move_seconds=tally.seconds,
            tokens={Direction.PROMOTE: tokens[0], Direction.DEMOTE: tokens[1]},
            rate={Direction.PROMOTE: done.promote_rate, Direction.DEMOTE: done.demote_rate},
            threshold=self._targets[0].rate / window if window > 0 else 0.0,
            pressure=done.pressure,
            degraded=self._degraded,
        )

    def _tier_reports(self, tally: _Tally) -> tuple[TierReport, ...]:
        page = self._host.page_size
        memory = {entry.node: entry for entry in self._host.node_memory()}
        reports = []
        for heat, tier in zip(self._tiers(tally, memory), self._topology.tiers, strict=True):
            here = [seen for seen in tally.seen if seen.node in tier.nodes]
            edges = np.arange(HEAT_BUCKETS) * (LEVELS - 1) // HEAT_BUCKETS
            reports.append(
                TierReport(
                    name=tier.name,
                    nodes=tier.nodes,
                    total=sum(room.total for room in heat.rooms) * page,
                    free=sum(room.free for room in heat.rooms) * page,
                    headroom_low=sum(room.low for room in heat.rooms) * page,
                    headroom_high=sum(room.high for room in heat.rooms) * page,
                    looked_frames=sum(seen.looked for seen in here),
                    accessed_frames=sum(seen.accessed for seen in here),
                    hot=int(heat.histogram[tally.level :].sum()) * page,
                    heat=tuple(int(n) for n in np.add.reduceat(heat.histogram[1:], edges)),
                )
            )
        return tuple(reports)

    def _class_reports(
        self,
        moved: Mapping[Direction, NDArray[np.int64]],
        wasted: NDArray[np.int64],
        page: int,
    ) -> tuple[ClassReport, ...]:
        resident = self._book.resident(self._heat)
        return tuple(
            ClassReport(
                match=rule.match,
                resident=self._book.by_tier(resident, index),
                promoted=int(moved[Direction.PROMOTE][index]) * page,
                demoted=int(moved[Direction.DEMOTE][index]) * page,
                wasted=int(wasted[index]) * page,
                stopped=bool(self._thrash.stopped[index]),
            )
            for index, rule in enumerate(self._config.classes)
        )

    # -- explaining ------------------------------------------------------------------------

    def explain(self, pfn: int) -> Explanation:
        """What heat knows of a frame and what the policy would do with it."""
        one = np.array([pfn], np.uint64)
        node = int(self._topology.node_of(one)[0])
        tier = self._topology.tier_of(node)
        state = self._heat.states(one)
        threshold = self._targets[0].rate if self._targets else 0.0
        known = bool(state[0])
        looks = f"{int(state[0]) & 15:04b}".replace("1", "A").replace("0", ".") if known else ""
        return Explanation(
            pfn=pfn,
            node=node,
            tier=self._topology.tiers[tier].name if tier >= 0 else "",
            known=known,
            looks=looks,
            share=float(1 - np.exp(-rate(state)[0])),
            rate=float(rate(state)[0]),
            error=float(rate_error(state)[0]) if known else 0.0,
            threshold=threshold,
            verdict=self._verdict(one, tier, state, threshold),
        )

    def _verdict(self, pfn: Pfns, tier: int, state: NDArray[np.uint16], threshold: float) -> str:
        if tier < 0:
            return "stays: it is in no tier"
        info = self._reader.describe(pfn)
        if not info.movable[0]:
            return f"stays: {PageReason(int(info.reason[0])).name.lower()}"
        if not state[0]:
            return "stays: it was not looked at since its data came there"
        if tier == 0:
            colder = rate(state)[0] < threshold
            return "first to go when room is needed" if colder else "stays: it is hot"
        if recent(state)[0] < DOOR:
            return f"stays: accessed in fewer than {DOOR} of its last 4 looks"
        if rate(state)[0] < threshold:
            return "promoted if there is free room: colder than the threshold"
        return "promoted: hotter than the threshold"


@dataclass(frozen=True, slots=True)
class _Done:
    """Facts of a cycle that only the report needs."""

    mode: str
    started: float
    pressure: float | None
    promote_rate: int
    demote_rate: int


def _count(
    counter: Counter[tuple[Direction, int, int]],
    direction: Direction,
    moves: Moves,
    target: NDArray[np.int32],
    which: NDArray[np.bool_],
) -> None:
    """Add base pages of the chosen entries by (direction, source, target)."""
    pairs = np.stack([moves.source[which], target[which]], axis=1)
    for source, end in np.unique(pairs, axis=0):
        these = (pairs[:, 0] == source) & (pairs[:, 1] == end)
        counter[direction, int(source), int(end)] += int(moves.pages[which][these].sum())


def _fit_promotions(promote: Moves, demoted: MoveResult) -> Moves:
    """Drop the last promotions to each node for which a planned demotion made no room."""
    keep = np.ones(len(promote.pfn), np.bool_)
    failed = ~demoted.moved
    for node in np.unique(demoted.moves.source[failed]):
        missing = int(demoted.moves.pages[failed & (demoted.moves.source == node)].sum())
        rows = np.flatnonzero(promote.target == node)[::-1]
        ahead = np.cumsum(promote.pages[rows]) - promote.pages[rows]
        keep[rows[ahead < missing]] = False
    return Moves(promote.pfn[keep], promote.pages[keep], promote.source[keep], promote.target[keep])


def _without(found: Candidates, taken: Pfns) -> Candidates:
    """Candidates that no earlier plan of this cycle names."""
    if not len(taken):
        return found
    keep = ~np.isin(found.pfn, taken)
    return Candidates(found.pfn[keep], found.state[keep])
