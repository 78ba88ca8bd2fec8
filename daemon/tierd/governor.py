# SPDX-License-Identifier: Apache-2.0
"""Budgets that bind: bytes per second, CPU share, pressure, and tierd's own mistakes.

No clock of its own: every method that needs the time is told it, in seconds of any clock that
does not go back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PRESSURE_FLOOR: Final = 1 / 16
"""Under pressure the rate halves each cycle, but never below this share: demotion is what
relieves pressure."""

RECOVERY: Final = 1.25
"""Growth of the rate per cycle once the pressure is gone."""

BURST: Final = 1.0
"""Seconds' worth of its rate that a bucket holds."""

CPU_BURST: Final = 4.0
"""Cycles' worth of the CPU share that may be saved up: where it is small beside what looks cost
whatever their size, they come less often and are larger."""

OTHERS_SHARE: Final = 0.5
"""Of the CPU share: so much of a cycle's at most goes to upkeep (reports, whoever asks for them,
all that is done in every cycle) and, as far as that leaves any, to decisions, so that sampling does
not starve."""

DECISIONS_SHARE: Final = 0.125
"""Of the CPU share: for decisions in any case, where upkeep takes all of that: on a slow host or
where many ask there must be decisions, too."""

CREDIT: Final = 4.0
"""Cycles' worth of the CPU share that decisions may owe before even those decisions wait that
something has just been found for; others wait from one cycle's worth on."""

MOST_OWED: Final = 60.0
"""Cycles' worth of the CPU share that upkeep may owe, and that decisions may; beyond that the
share is exceeded."""


class TokenBucket:
    """At most `rate` per second in the long run and `burst` at once."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._then = now

    def refill(self, now: float, share: float = 1.0) -> None:
        """Let time pass; `share` of the rate applies to it."""
        gained = max(now - self._then, 0.0) * self.rate * share
        self._tokens = min(self._tokens + gained, self.burst)
        self._then = max(now, self._then)

    @property
    def tokens(self) -> float:
        """What may be spent now; negative after an overdraft."""
        return self._tokens

    def spend(self, amount: float) -> None:
        """Take out what was used, known or not beforehand: a debt is paid before the next."""
        self._tokens -= amount

    def limit(self, rate: float, burst: float) -> None:
        """New bounds; what is in the bucket stays, up to the new burst."""
        self.rate = rate
        self.burst = burst
        self._tokens = min(self._tokens, burst)


class BackOff:
    """Share of the rates that pressure leaves: halves while any of it is high, then recovers."""

    def __init__(self) -> None:
        self.share = 1.0
        self.causes: tuple[str, ...] = ()
        """What was under too much pressure in the last cycle."""

    def update(self, pressure: Mapping[str, float], most: Mapping[str, float]) -> float:
        """One cycle. pressure: PSI as ratios by resource, as far as it is known; most: what is
        borne of each, resources that are not named do not matter."""
        self.causes = tuple(name for name, limit in most.items() if pressure.get(name, 0.0) > limit)
        if self.causes:
            self.share = max(self.share / 2, PRESSURE_FLOOR)
        else:
            self.share = min(self.share * RECOVERY, 1.0)
        return self.share


TRIP: Final = 0.5
"""Share of a class's promotions that go back soon at which it is stopped."""

TRIP_LIMIT: Final = 0.25
"""Share of what the rate limit allows that is wasted in the long run before a class is stopped:
some promotions are always mistaken, and a few cost little."""

TRIP_FAST: Final = 1 / 16
"""Share of the faster tier that is wasted within the memory of `Thrash` at which a class is
stopped in any case."""

OUTLIVE: Final = 1.2
"""Times its longest recent life after which a pattern is taken to last."""

LIVES: Final = 4
"""Lives of a pattern that count as recent."""

LONGEST: Final = 60.0
MOST_LONGEST: Final = 960.0
"""Seconds after which a stopped class is tried again in any case: candidates near the threshold
may come and go for ever. They double each time, up to the second, until a pattern has lasted."""

MEMORY: Final = 0.8
"""Weight of the past per cycle in the sums that `Thrash` judges by."""


class Thrash:
    """Stops the promotions of a class that undoes them, restarts it when its pattern lasts.

    A page demoted soon after its promotion is waste. The sums of promoted and wasted pages fade,
    so the judgement is on the last few cycles' worth. All the time it is observed how long what
    a class wants stays what it wants. A stopped class begins again when that has outlived its last
    changes, or, if it never changed, the time that promotions used to last. A class whose pattern
    has begun to last is not stopped for what it wasted before; one that goes on with it is, for as
    long as its promotions used to last.
    """

    def __init__(self, classes: int, fast: int, limit: int) -> None:
        """For `classes` configured classes and the pages that are in none (index -1); `fast`:
        frames of the faster tier; `limit`: frames that may be promoted in a cycle."""
        n = classes + 1
        self._least = min(TRIP_LIMIT * limit / (1 - MEMORY), TRIP_FAST * fast)
        self._promoted = np.zeros(n)
        self._wasted = np.zeros(n)
        self.stopped = np.zeros(n, np.bool_)
        self._life = np.zeros(n)
        self._changed: NDArray[np.float64] | None = None
        """When each pattern began; None before the first observation."""
        self._lives = np.zeros((LIVES, n))
        self._first = np.ones(n, np.bool_)
        """The pattern has not changed since it is observed."""
        self._persisted = np.zeros(n, np.bool_)
        self._lasts = np.zeros(n, np.bool_)
        self._wasteful = np.zeros(n, np.bool_)
        """Stopped although its pattern lasted."""
        self._since = np.zeros(n)
        self._patience = np.full(n, LONGEST)

    def update(
        self,
        now: float,
        promoted: NDArray[np.int64],
        wasted: NDArray[np.int64],
        life: NDArray[np.float64],
        persists: NDArray[np.bool_] | None,
    ) -> NDArray[np.bool_]:
        """One cycle; returns which classes begin again. All arrays have one entry per class, the
        last for pages in none.

        promoted, wasted: base pages in this cycle. life: mean seconds between the promotion and
        the demotion of the wasted ones (0 without any). persists: whether what the class wanted
        is still accessed; None where nobody looked.
        """
        if persists is None and not (promoted.any() or wasted.any() or self.stopped.any()):
            self._promoted *= MEMORY
            self._wasted *= MEMORY
            return np.zeros(len(promoted), np.bool_)  # nothing to stop and nothing to let begin
        self._promoted = self._promoted * MEMORY + promoted
        self._wasted = self._wasted * MEMORY + wasted
        self._life = np.where(wasted > 0, np.maximum(self._life * MEMORY, life), self._life)
        excused = self._observe(now, persists)
        trip = (self._wasted >= self._least) & (self._wasted > TRIP * self._promoted)
        trip &= ~self.stopped & ~excused
        self._since = np.where(trip, now, self._since)
        self._wasteful = np.where(trip, self._lasts, self._wasteful)
        paused = now - self._since >= np.maximum(self._life, OUTLIVE * self._lives.max(axis=0))
        lasts = self._lasts & (paused | ~self._wasteful)
        late = self.stopped & ~lasts & (now - self._since >= self._patience)
        self._patience[late] = np.minimum(2 * self._patience[late], MOST_LONGEST)
        calm: NDArray[np.bool_] = late | (self.stopped & lasts)
        self._patience[calm & lasts] = LONGEST
        self._promoted[calm] = 0
        self._wasted[calm] = 0
        self.stopped = (self.stopped | trip) & ~calm
        return calm

    def _observe(self, now: float, persists: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Note whether each pattern has outlived its last ones. Returns whether it did so just
        now, so that what is wasted yet was promoted before it."""
        if self._changed is None:
            self._changed = np.full(len(self._first), now)
        if persists is not None:
            ended = np.flatnonzero(self._persisted & ~persists)
            self._lives[1:, ended] = self._lives[:-1, ended]
            self._lives[0, ended] = (now - self._changed)[ended]
            self._first[ended] = False
            self._changed = np.where(persists, self._changed, now)
            self._persisted = persists
        longest = self._lives.max(axis=0)
        wait = np.where(longest > 0, OUTLIVE * longest, self._life)
        age = now - self._changed
        if persists is not None:
            self._lasts = persists & (age >= wait)
        excused: NDArray[np.bool_] = self._lasts & ~self._first & (age <= wait + 2 * self._life)
        return excused


PIECES_MOST: Final = 1 << 40
"""Frames: no limit."""

PIECES_LEAST: Final = 2048
"""Frames of large folios that are tried at least: four huge pages of 2 MiB."""

RETRY_LEAST: Final = 60.0
RETRY_MOST: Final = 960.0
"""Seconds after which that is tried again where there was no room for a single one, unless more
memory is free before; doubled each time that there is none again. Meanwhile large folios take the
place of others of their size."""


@dataclass(frozen=True, slots=True)
class _Rest:
    """Until when there is no try, how long that was, and free frames when it began."""

    until: float
    seconds: float
    free: int


class Pieces:
    """How much of the free room of a node folios of each size may be given.

    A node can have much free memory and none of it in one piece. What the last attempts came to
    tells. It grows fourfold while all succeed. Sizes are in base pages, more than one.
    """

    def __init__(self) -> None:
        self._frames: dict[tuple[int, int], int] = {}
        """By node and size, as all that follows."""
        self._rest: dict[tuple[int, int], _Rest] = {}
        self._free: dict[int, int] = {}

    def frames(self, free: Mapping[int, int], now: float) -> dict[int, dict[int, int]]:
        """Frames for large folios by node and size; no limit where there is no entry. free: free
        frames of each node. now: seconds of the monotonic clock."""
        self._free.update(free)
        result: dict[int, dict[int, int]] = {node: {} for node in free}
        for key, frames in self._frames.items():
            if key[0] in free:
                result[key[0]][key[1]] = 0 if self._rests(key, now) else frames
        return result

    def _rests(self, key: tuple[int, int], now: float) -> bool:
        rest = self._rest.get(key)
        if rest is None or now >= rest.until:
            return False
        return self._free.get(key[0], 0) < rest.free + max(PIECES_LEAST, key[1])

    def learn(
        self,
        target: NDArray[np.int32],
        pages: NDArray[np.uint32],
        moved: NDArray[np.bool_],
        full: NDArray[np.bool_],
        made: Mapping[tuple[int, int], int],
        now: float,
    ) -> NDArray[np.bool_]:
        """Outcomes of promotions, one entry per folio: where to, base pages, whether it moved,
        whether it found no room. made: frames that folios of each size have just left on each
        node. Returns bool[n]: large folios that found no room although others of their size had
        made it, or none was tried without that; to try those again soon is of no use."""
        vain = np.zeros(len(pages), np.bool_)
        large = pages > 1
        for node, size in {*zip(target[large].tolist(), pages[large].tolist(), strict=True)}:
            here, spare = (target == node) & (pages == size), made.get((node, size), 0)
            if int(pages[here].sum()) <= spare or self._rests((node, size), now):
                vain |= here & full
            else:
                came = max(int(pages[here & moved].sum()) - spare, 0)
                self._note((node, size), came, bool((here & full).any()), now)
        return vain

    def _note(self, key: tuple[int, int], came: int, full: bool, now: float) -> None:
        """So many frames found room in what was free, and some folio did not, or all did."""
        if came:
            self._rest.pop(key, None)
        if full:
            self._frames[key] = max(came // 2, PIECES_LEAST, key[1])
        elif came:
            self._frames[key] = min(4 * max(self._frames.get(key, PIECES_MOST), came), PIECES_MOST)
        if full and not came:
            last = self._rest.get(key)
            wait = min(2 * last.seconds, RETRY_MOST) if last else RETRY_LEAST
            self._rest[key] = _Rest(now + wait, wait, self._free.get(key[0], 0))


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one cycle may spend. Bytes per direction; the rates those come from, bytes/s.

    share: what pressure leaves of the rates, 1 is all; causes: the resources that are under it.
    """

    promote: int
    demote: int
    promote_rate: int
    demote_rate: int
    share: float = 1.0
    causes: tuple[str, ...] = ()


class Budget:
    """The rate limits of both directions, and the CPU share of all but moves."""

    def __init__(self, promote: int, demote: int, cpu: float, interval: float, now: float) -> None:
        """promote, demote: bytes/s. cpu: CPU seconds per second. interval: seconds."""
        burst = max(BURST, interval)
        self._promote = TokenBucket(promote, promote * burst, now)
        self._demote = TokenBucket(demote, demote * burst, now)
        self._cpu = TokenBucket(cpu, cpu * CPU_BURST * interval, now)
        self._interval, self._begun = interval, now
        self._earned = self._payable = 0.0
        """CPU seconds that the share was since the last cycle, and what may still be taken of them
        for other things than sampling."""
        self._upkeep = self._decisions = 0.0
        """CPU seconds that each owes."""
        self._back_off = BackOff()

    def limit(self, promote: int, demote: int, cpu: float, interval: float) -> None:
        """New limits between cycles; spent tokens stay spent."""
        burst = max(BURST, interval)
        self._promote.limit(promote, promote * burst)
        self._demote.limit(demote, demote * burst)
        self._cpu.limit(cpu, cpu * CPU_BURST * interval)
        self._interval = interval

    def begin(
        self, now: float, pressure: Mapping[str, float], most: Mapping[str, float]
    ) -> Allowance:
        """Let time pass up to this cycle and say what it may move; see `BackOff.update`."""
        share = self._back_off.update(pressure, most)
        self._promote.refill(now, share)
        self._demote.refill(now, share)
        self._cpu.refill(now)
        # A cycle that was late has more to pay with, as it has had more to pay for.
        seconds = min(max(now - self._begun, self._interval), CPU_BURST * self._interval)
        self._begun = now
        self._earned = self._cpu.rate * seconds
        self._payable = OTHERS_SHARE * self._earned
        return Allowance(
            promote=max(int(min(self._promote.tokens, self._promote.burst * share)), 0),
            demote=max(int(min(self._demote.tokens, self._demote.burst * share)), 0),
            promote_rate=int(self._promote.rate * share),
            demote_rate=int(self._demote.rate * share),
            share=share,
            causes=self._back_off.causes,
        )

    @property
    def _part(self) -> float:
        """CPU seconds that the share is in one cycle."""
        return self._cpu.rate * self._interval

    @property
    def cpu(self) -> float:
        """CPU seconds that sampling may use in this cycle; negative where it owes some."""
        return self._cpu.tokens

    def spent(self, promoted: int, demoted: int, cpu: float) -> None:
        """Bytes that were moved or tried, CPU seconds of sampling."""
        self._promote.spend(promoted)
        self._demote.spend(demoted)
        self._cpu.spend(cpu)

    def upkeep(self, cpu: float) -> None:
        """CPU seconds of what is neither sampling nor moving nor planning. They come out of the
        same share, but leave half of it to sampling in every cycle: what is too much for one is
        paid in the next ones."""
        self._upkeep = min(self._upkeep + cpu, MOST_OWED * self._part)
        self._upkeep -= self._pay(min(self._upkeep, self._payable))

    def decided(self, cpu: float) -> None:
        """CPU seconds of planning, to be told of in every cycle after its upkeep. They are paid
        with what that has left of its half of the share, an eighth of the share at least: upkeep
        up to half of it exceeds it by nothing."""
        self._decisions = min(self._decisions + cpu, MOST_OWED * self._part)
        room = max(self._payable, DECISIONS_SHARE * self._earned)
        self._decisions -= self._pay(min(self._decisions, room))

    def _pay(self, cpu: float) -> float:
        """Take so much from sampling; returns it."""
        self._payable = max(self._payable - cpu, 0.0)
        self._cpu.spend(cpu)
        return cpu

    def in_arrears(self, *, urgent: bool) -> bool:
        """Whether decisions owe too much for another one now. urgent: something has just been
        found that is to be moved."""
        return self._decisions > (CREDIT if urgent else 1.0) * self._part

    @property
    def tokens(self) -> Sequence[int]:
        """Bytes left: (promote, demote)."""
        return int(self._promote.tokens), int(self._demote.tokens)
