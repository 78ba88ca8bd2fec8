# SPDX-License-Identifier: Apache-2.0
"""`Engine`: runs cycles. It does all the asking (host, samplers, mover); the core only decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.config import Config, Mode
from tierd.engine.agenda import Agenda
from tierd.engine.appraisal import Appraiser
from tierd.engine.explain import explain
from tierd.engine.owners import OwnerBook
from tierd.engine.plans import (
    fit_promotions,
    frames_by_node,
    is_final,
    large_left,
    room_of,
    with_less_room,
)
from tierd.engine.report import CycleReport, Explanation
from tierd.engine.scout import LASTING, SEARCH_SHARE, Scout
from tierd.engine.tally import Circumstances, Tally, hit_ratio
from tierd.engine.watch import Watcher
from tierd.governor import Budget, Pieces, Thrash
from tierd.host import (
    NO_PFN,
    CapabilitySet,
    CpuTimes,
    Feature,
    Host,
    Pfns,
    frames_from,
)
from tierd.hotness import HeatMap, Seen
from tierd.movers import Mover, MoveResult
from tierd.pages import PageReader
from tierd.planner import Direction, Limits, MovePlan, Moves, Reason, Ways, code, plan
from tierd.policy import Changes, Target, TierHeat, decide, short
from tierd.samplers import Sampler
from tierd.topology import Topology

WASTE_WINDOW: Final = 3.0
"""A promotion is waste when it is undone within this many times the minimum residency."""

MOVE_SECONDS: Final = 1.0
"""Seconds that the moves of one direction may take in a cycle, if the interval is shorter."""


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
        """Reserves two bytes per frame; they are used as frames are looked at. Raises
        KernelError when cgroups cannot be read."""
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
        self._scout = Scout(self._heat, topology, self._reader, self._book)
        self._scout.bound(config.sampling.cpu * config.interval)
        self._budget = Budget(
            config.migration.promote,
            config.migration.demote,
            config.sampling.cpu,
            config.interval,
            host.monotonic(),
        )
        self._thrash = self._new_thrash(config)
        self._pieces = Pieces()
        self._appraiser = Appraiser(host, topology, config.migration)
        self._changes = [Changes() for _ in topology.tiers[1:]]
        self._cold_evidence = False
        self._number = 0
        self._since: CpuTimes | None = None
        """The process's CPU time at the end of the last cycle."""
        self.watcher: Watcher | None = None
        """Told of everything seen and moved; may be changed between two cycles."""
        self._targets: tuple[Target, ...] = ()
        self._agenda = Agenda(topology.tiers[0].nodes)

    # -- what the service calls --------------------------------------------------------------

    def cycle(self, *, paused: bool = False) -> CycleReport:
        """Run one cycle and report. Raises KernelError when a kernel interface that was there
        at the start refuses; the next cycle may succeed."""
        host = self._host
        self._number += 1
        tally = Tally(len(self._config.classes))
        rules = self._config.migration.back_off
        pressure = host.pressure(rules.cgroup)
        now = Circumstances(self._mode(paused), host.monotonic(), pressure)
        allowance = self._budget.begin(now.started, pressure, rules.limits)
        now.back_off, now.causes = 1 - allowance.share, allowance.causes
        now.rate[Direction.PROMOTE] = allowance.promote_rate
        now.rate[Direction.DEMOTE] = allowance.demote_rate
        at = host.cpu_times()
        if self._since is not None:
            self._budget.upkeep((at - self._since).total)
        self._since = None  # not counted twice should this cycle fail
        if self.watcher is not None:
            self.watcher.begin(now.started, pressure)
        sampled = self._look(tally)
        at = self._clock(tally, "sample", at)
        self._budget.upkeep(max(tally.cpu["sample"].total - sampled, 0.0))
        tiers = self._tiers(tally.seen)
        idle = self._agenda.empty and not any(short(tier) for tier in tiers[:-1])
        if tally.seen or not idle:
            self._targets = decide(tiers, self._changes, looked=bool(tally.seen))
        self._book.refresh()
        self._book.measure(self._heat)
        at = self._clock(tally, "heat", at)
        limits = Limits(
            allowance.promote // host.page_size,
            allowance.demote // host.page_size,
            Reason.BUDGET if allowance.share == 1 else Reason.PRESSURE,
        )
        # Deciding later is cheaper than not looking: what earlier decisions owe is paid first.
        now.deferred = not idle and self._budget.in_arrears(urgent=tally.confirmed > 0)
        if now.deferred or idle:
            plans = []
            if tally.seen:
                self._scout.watch()
        else:
            plans = self._plan(tally, tiers, limits, now.started)
        at = self._clock(tally, "plan", at)
        for each in plans:
            self._carry_out(tally, each, now)
        self._settle(tally, now.started)
        if self.watcher is not None:
            self.watcher.end([each.status() for each in self._samplers])
        self._since = self._clock(tally, "move", at)
        self._budget.upkeep(tally.cpu["heat"].total)
        self._budget.decided(tally.cpu["plan"].total)
        return self._report(tally, now, self._tiers(tally.seen) if tally.flows else tiers)

    def reconfigure(self, config: Config) -> None:
        """Follow another policy from the next cycle on; heat and the memory of moves stay."""
        move, cpu = config.migration, config.sampling.cpu
        self._appraiser.rules = move
        self._budget.limit(move.promote, move.demote, cpu, config.interval)
        self._scout.bound(config.sampling.cpu * config.interval)
        if config.classes != self._config.classes:
            self._book.use(config.classes)
            self._thrash = self._new_thrash(config)
            self._scout.forget_classes()
        self._config = config
        self._agenda.renew()

    def _new_thrash(self, config: Config) -> Thrash:
        fast = sum(self._topology.frames_of(node) for node in self._topology.tiers[0].nodes)
        limit = int(config.migration.promote * config.interval) // self._host.page_size
        return Thrash(len(config.classes), fast, limit)

    def close(self) -> None:
        """Stop sampling; samplers restore what they changed in the kernel."""
        for sampler in self._samplers:
            sampler.close()

    # -- sampling --------------------------------------------------------------------------

    def _look(self, tally: Tally) -> float:
        """Returns CPU seconds that samplers took, with what is made of their batches."""
        spent = 0.0
        first = self._targets[0] if self._targets else None
        self._heat.tick(first.cooling if first else 0.0, first.heating if first else 0.0)
        for sampler in self._samplers:
            before = self._host.cpu_times()
            seen: list[Seen] = []
            lost = 0
            for batch in sampler.sample(self._budget.cpu / len(self._samplers)):
                if len(batch.gone):
                    self._heat.forget(batch.gone)
                told = self._heat.observe(
                    batch.pfn, batch.weight, batch.granularity, learn=batch.cold_evidence
                )
                self._agenda.saw(told, stopped=bool(self._thrash.stopped.any()))
                seen += () if batch.repeated else told
                lost += batch.lost
                self._cold_evidence |= batch.cold_evidence
                if self.watcher is not None:
                    self.watcher.saw(batch)
            used = (self._host.cpu_times() - before).total
            self._budget.spent(0, 0, used)
            spent += used
            tally.sampled(sampler.status(), seen, lost)
        return spent

    def _clock(self, tally: Tally, phase: str, since: CpuTimes) -> CpuTimes:
        now = self._host.cpu_times()
        tally.cpu[phase] = now - since
        return now

    # -- deciding --------------------------------------------------------------------------

    def _tiers(self, seen: Sequence[Seen]) -> list[TierHeat]:
        """The tiers as they are now, fastest first."""
        memory = {entry.node: entry for entry in self._host.node_memory()}
        marks, page = self._config.migration.headroom, self._host.page_size
        tiers = []
        for tier in self._topology.tiers:
            here = [each for each in seen if each.node in tier.nodes]
            tiers.append(
                TierHeat(
                    rooms=tuple(
                        room_of(memory[n], marks, page, target=n in tier.targets)
                        for n in tier.nodes
                        if n in memory
                    ),
                    histogram=self._heat.histogram(tier.nodes),
                    settled=sum(each.settled for each in here),
                    expected=sum(each.expected for each in here),
                    met=sum(each.met for each in here),
                )
            )
        return tiers

    def _plan(
        self, tally: Tally, tiers: Sequence[TierHeat], limits: Limits, now: float
    ) -> list[MovePlan]:
        """One plan for each boundary, the fastest first; together they keep within `limits`."""
        plans: list[MovePlan] = []
        # Then the next search reads the same; classes have limits of their own.
        final = not self._book.classes and self._heat.frames <= self._heat.search.limit
        candidates = not final
        resident = self._book.resident
        taken: Pfns = np.zeros(0, np.uint64)
        filled: Counter[int] = Counter()  # frames of each node that the plans so far take
        for target in self._targets:
            target = with_less_room(target, filled)
            # Floors and caps are of the fastest tier, whatever lies below it.
            grants = self._book.grants(
                resident[target.fast], self._thrash.stopped, bounded=target.fast == 0
            )
            free = {room.node: room.free for room in tiers[target.fast].rooms}
            pieces = self._pieces.frames(free, now)
            hot, cold = self._scout.candidates(
                target,
                limits,
                grants,
                self._config.migration,
                now,
                cold_evidence=self._cold_evidence,
                pieces=pieces,
            )
            freed = self._scout.take_freed()
            for sampler in self._samplers if len(freed) else ():
                sampler.forget(freed)
            ways = self._ways(target, tiers, filled, pieces)
            worth = self._appraiser.worth(target.fast, tally.window)
            limits = replace(limits, worth=worth)
            made = plan(target, hot.without(taken), cold.without(taken), grants, ways, limits)
            plans.append(made)
            cut = len(hot) >= min(SEARCH_SHARE * limits.promote, self._scout.most)
            final &= not cut and is_final(made)
            candidates |= len(hot) > 0 or not self._heat.search.exhausted
            filled.update(frames_by_node(made.demote))
            tally.skipped.update(made.skipped)
            limits = Limits(
                limits.promote - int(made.promote.pages.sum()),
                limits.demote - int(made.demote.pages.sum()),
                limits.why,
            )
            taken = np.concatenate([taken, made.promote.pfn, made.demote.pfn])
        self._agenda.planned(final=final, candidates=candidates)
        return plans

    def _ways(
        self,
        target: Target,
        tiers: Sequence[TierHeat],
        filled: Mapping[int, int],
        pieces: Mapping[int, Mapping[int, int]],
    ) -> Ways:
        """Promotion goes to the tier of `target`, demotion to any slower tier with room that is
        not `filled` by a plan already. pieces: see `Ways`."""
        topology = self._topology
        fast = set(topology.tiers[target.fast].nodes)
        slow = {node for tier in topology.tiers[target.fast + 1 :] for node in tier.nodes}
        return Ways(
            promote={
                node: [n for n in topology.promotion_targets(node) if n in fast] for node in slow
            },
            demote={
                node: [n for n in topology.demotion_targets(node) if n in slow] for node in fast
            },
            pieces=pieces,
            # Not below half of the low mark: the slow tier takes allocations as well.
            room={
                each.node: max(each.free - each.low // 2 - filled.get(each.node, 0), 0)
                for tier in tiers[target.fast + 1 :]
                for each in tier.rooms
            },
        )

    # -- moving ----------------------------------------------------------------------------

    def _mode(self, paused: bool) -> str:
        if paused:
            return "paused"
        return "tier" if self._config.mode is Mode.TIER and self._mover else "observe"

    def _carry_out(self, tally: Tally, made: MovePlan, now: Circumstances) -> None:
        """Demote, then promote into no more room than that made."""
        tally.planned(Direction.DEMOTE, made.demote)
        demoted = self._move(tally, Direction.DEMOTE, made.demote, now, {})
        promote = fit_promotions(made.promote, demoted) if demoted else made.promote
        tally.planned(Direction.PROMOTE, promote)
        self._move(tally, Direction.PROMOTE, promote, now, large_left(demoted) if demoted else {})

    def _move(
        self,
        tally: Tally,
        direction: Direction,
        moves: Moves,
        now: Circumstances,
        made: Mapping[tuple[int, int], int],
    ) -> MoveResult | None:
        """made: what `large_left` says of the demotions before."""
        if now.mode != "tier" or self._mover is None or not len(moves.pfn):
            return None
        deadline = self._host.monotonic() + max(self._config.interval, MOVE_SECONDS)
        before = self._host.cpu_times()
        result = self._mover.move(moves, deadline)
        cpu = (self._host.cpu_times() - before).total
        self._appraiser.moved(direction, int(moves.pages[result.moved].sum()), cpu)
        if self.watcher is not None:
            self.watcher.moved(result)
        tally.carried_out(direction, moves, result.landed, result.moved)
        tally.seconds[direction] += result.seconds
        for reason, pages in result.failed.items():
            if pages:
                tally.refused[direction, reason] += pages
                tally.skipped[direction, reason] += pages
        self._follow(tally, direction, result, now.started)
        if result.why is not None:
            lasting = np.isin(result.why, [code(reason) for reason in LASTING])
            full = (result.why == code(Reason.NO_ROOM)) & (moves.pages > 1)
            if direction is Direction.PROMOTE:
                learned = moves.target, moves.pages, result.moved, full
                full = self._pieces.learn(*learned, made, now.started)
            lasting |= full
            why = result.why[lasting].astype(np.int16)
            self._scout.refused.add(now.started, moves.pfn[lasting], why, moves.pages[lasting])
        return result

    def _follow(self, tally: Tally, direction: Direction, result: MoveResult, now: float) -> None:
        """Heat and the memory of moves follow the pages to their new frames."""
        old, new = result.moves.pfn[result.moved], result.new_pfn[result.moved]
        pages = result.moves.pages[result.moved]
        owner = self._owners_of(np.where(new == NO_PFN, old, new))
        np.add.at(tally.moved[direction], owner, pages)
        if self._book.classes:
            source, landed = result.moves.source[result.moved], result.landed[result.moved]
            self._book.moved(owner, source, landed, pages)
        self._heat.move(old, new)
        large = (new != NO_PFN) & (pages > 1)  # nobody looks at tails
        self._heat.forget(frames_from(new[large] + np.uint64(1), pages[large] - np.uint32(1)))
        self._scout.follow(old, new)
        for sampler in self._samplers:
            sampler.forget(old)
        opposite = Direction.DEMOTE if direction is Direction.PROMOTE else Direction.PROMOTE
        before = self._scout.moved[opposite].leave(old, now - self._waste_window)
        # Between three tiers a page moves on in the same direction: its old frame is not it.
        self._scout.moved[direction].leave(old, now - self._waste_window)
        back = ~np.isnan(before)
        if direction is Direction.DEMOTE:
            np.add.at(tally.waste.pages, owner[back], pages[back])
            np.add.at(tally.waste.lasted, owner[back], (now - before[back]) * pages[back])
        known = new != NO_PFN
        self._scout.moved[direction].add(now, new[known], owner[known], pages[known])

    def _owners_of(self, pfn: Pfns) -> NDArray[np.int16]:
        """int16[n]: class of each moved folio; read only when there are classes."""
        if not self._book.classes:
            return np.full(len(pfn), -1, np.int16)
        return self._book.table.classes(self._host.cgroup_inodes(pfn))

    @property
    def _waste_window(self) -> float:
        return WASTE_WINDOW * self._config.migration.min_residency

    def _settle(self, tally: Tally, now: float) -> None:
        """Pay for what was moved, judge the classes, forget old moves."""
        page = self._host.page_size
        promoted, demoted = (tally.moved[each] for each in (Direction.PROMOTE, Direction.DEMOTE))
        self._budget.spent(int(promoted.sum()) * page, int(demoted.sum()) * page, 0.0)
        waste = tally.waste
        held = self._scout.moved[Direction.PROMOTE].pages
        self._appraiser.settle(now, held, int(waste.pages.sum()))
        again = self._thrash.update(
            now, promoted, waste.pages, waste.life, self._scout.take_persists()
        )
        for row in np.flatnonzero(again).tolist():  # the last row is of no class, -1
            owner = row if row < len(again) - 1 else -1
            self._scout.moved[Direction.PROMOTE].absolve(owner)
        if again.any():
            self._appraiser.begin()
            self._agenda.renew()
        for ledger in (*self._scout.moved.values(), self._scout.refused):
            ledger.prune(now - self._waste_window)

    # -- reporting -------------------------------------------------------------------------

    def _report(self, tally: Tally, now: Circumstances, tiers: Sequence[TierHeat]) -> CycleReport:
        page = self._host.page_size
        promote, demote = self._budget.tokens
        target = self._targets[0]
        resident, stopped = self._book.resident, self._thrash.stopped
        return CycleReport(
            number=self._number,
            started=now.started,
            duration=self._host.monotonic() - now.started,
            mode=now.mode,
            sampler="+".join(each.name for each in self._samplers) or "none",
            mover=self._mover.name if self._mover else "none",
            tiers=tally.tier_reports(self._topology.tiers, tiers, target.level, page),
            hit_ratio=hit_ratio(tiers) if tally.fast_share is None else tally.fast_share,
            flows=tally.flow_reports(),
            skipped=dict(tally.skipped),
            kernel_refused=dict(tally.refused),
            samplers=tuple(tally.samplers),
            classes=tally.class_reports(
                [rule.match for rule in self._config.classes],
                [self._book.by_tier(resident, index) for index in range(len(stopped) - 1)],
                stopped,
                page,
            ),
            wasted_pages=int(tally.waste.pages.sum()),
            cpu=tally.cpu,
            move_seconds=tally.seconds,
            tokens={Direction.PROMOTE: promote, Direction.DEMOTE: demote},
            rate=now.rate,
            deferred=now.deferred,
            threshold=target.rate / tally.window if tally.window > 0 else 0.0,
            cost=self._appraiser.costs,
            residency=self._appraiser.residency(tally.window),
            worth=self._appraiser.worth(0, tally.window).pair / (tally.window or 1.0),
            pressure=now.pressure,
            back_off=now.back_off,
            back_off_causes=now.causes,
            degraded=self._degraded + self._blind(now),
        )

    def _blind(self, now: Circumstances) -> tuple[str, ...]:
        """A reason to be degraded where the pressure that the policy names cannot be read."""
        cgroup = self._config.migration.back_off.cgroup
        if not cgroup or now.pressure:
            return ()
        return (f"no pressure of cgroup {cgroup} can be read, moves do not back off",)

    def explain(self, pfn: int) -> Explanation:
        """What heat knows of a frame and what the policy would do with it."""
        threshold = self._targets[0].rate if self._targets else 0.0
        return explain(pfn, self._topology, self._heat, self._reader, threshold)
