# SPDX-License-Identifier: Apache-2.0
"""What the trials come to. Pure: no guest, no files."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles
from typing import Final

from .trial import HOT_MIB, Progress, Sample, Trial

PAGES: Final = HOT_MIB * 256
"""Of the window."""
TICKS: Final = 100.0
"""Per second, in /proc (USER_HZ)."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one trial.

    t90_start, t90_jump: seconds until 90 % of the window is on the fast node, None when never.
    resident: share of the window on the fast node, mean over start and jump phase, and in the
    last fifth of each. moved_mib: all that the kernel migrated; over_ideal: that over what the
    windows that the program had need; wasted_mib: what was moved beyond what it gained.
    cpu_user, cpu_system: of what works for the way, cores. own_system: system time of the
    program, cores. everything: what all processors did, without the program's user time and
    without watching, cores.
    cost: loss of the settled program's speed while the way is at work, median of pairs (share);
    cost_spread: half the distance of the quartiles. moving: loss of its speed over both phases
    against its speed with the way held still. All three None without pairs. stall: worst in
    both phases, seconds.
    """

    t90_start: float | None
    t90_jump: float | None
    resident: tuple[float, float]
    settled: tuple[float, float]
    moved_mib: float
    over_ideal: float
    wasted_mib: float
    cpu_user: float
    cpu_system: float
    own_system: float
    everything: float
    cost: float | None
    cost_spread: float | None
    moving: float | None
    stall: float


def measure(trial: Trial) -> Measures:
    start = [s for s in trial.samples if trial.ready <= s.ms < trial.jump]
    jump = [s for s in trial.samples if trial.jump <= s.ms <= trial.end]
    first, last = trial.samples[0], jump[-1]
    seconds = (last.ms - first.ms) / 1000
    moved = last.counters["pgmigrate_success"] - first.counters["pgmigrate_success"]
    losses = [1 - going / held for held, going in zip(trial.held, trial.going, strict=True)]
    quarters = quantiles(losses, n=4) if losses else None
    during = [p for p in trial.progress if trial.ready <= p.ms <= trial.end]
    # A part may have come before the first sample of its phase; nothing was there before that.
    gained = _gained([first, *start], 0) + _gained([*start[-1:], *jump], 1)
    return Measures(
        t90_start=_t90(start, 0, trial.ready),
        t90_jump=_t90(jump, 1, trial.jump),
        resident=(_mean(start, 0), _mean(jump, 1)),
        settled=(_mean(start[-len(start) // 5 :], 0), _mean(jump[-len(jump) // 5 :], 1)),
        moved_mib=moved / 256,
        over_ideal=moved / (2 * PAGES),
        wasted_mib=(moved - gained) / 256,
        cpu_user=(last.way[0] - first.way[0]) / TICKS / seconds,
        cpu_system=(last.way[1] - first.way[1]) / TICKS / seconds,
        own_system=(last.program[1] - first.program[1]) / TICKS / seconds,
        everything=_others(first, last) / TICKS / seconds,
        cost=median(losses) if losses else None,
        cost_spread=(quarters[2] - quarters[0]) / 2 if quarters else None,
        moving=1 - _speed(during) / median(trial.held) if trial.held else None,
        stall=max(p.stall for p in during),
    )


def _t90(samples: list[Sample], window: int, since: int) -> float | None:
    for sample in samples:
        if sample.windows[window] >= 0.9 * PAGES:
            return (sample.ms - since) / 1000
    return None


def _mean(samples: list[Sample], window: int) -> float:
    return sum(s.windows[window] for s in samples) / len(samples) / PAGES


def _gained(samples: list[Sample], window: int) -> int:
    return samples[-1].windows[window] - samples[0].windows[window]


def _others(first: Sample, last: Sample) -> int:
    """Ticks of all processors but for the program's user time and for watching."""
    everything = sum(last.everything) - sum(first.everything)
    program = last.program[0] - first.program[0]
    return everything - program - (sum(last.watch) - sum(first.watch))


def _speed(lines: list[Progress]) -> float:
    return (lines[-1].accesses - lines[0].accesses) / (lines[-1].ms - lines[0].ms) * 1000
