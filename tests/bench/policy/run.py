# SPDX-License-Identifier: Apache-2.0
"""One policy on one workload: what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .references import Flags, Limited, Policy
from .workloads import Workload

LIMIT = 0.05
"""Share of the fast tier that may move per window and direction."""

HEADROOM = 0.04
"""Share of the fast tier that tierd and the oracle keep free."""

SEEN_AIM, SEEN_MOST = 2.0, 0.7
"""The window is tuned until frames seen accessed are that many times the fast tier, or that
share of all frames."""

WASTE = 30
"""A promotion that is undone within so many windows is waste."""


@dataclass
class Outcome:
    """hits: hit ratio over the oracle's, per window (before that window's moves take effect)."""

    policy: str
    workload: str
    ratio: int
    capacity: int
    hits: list[float] = field(default_factory=list)
    promoted: list[int] = field(default_factory=list)
    demoted: list[int] = field(default_factory=list)
    ideal: list[int] = field(default_factory=list)
    """Per phase (start, then each shift): pages that the oracle would have promoted."""
    wasted: int = 0
    shifts: tuple[int, ...] = ()
    seed: int = 0
    stopped: list[bool] = field(default_factory=list)
    """Whether the governor held promotions back, per window."""
    period: int = 0
    found: float | None = None
    """Share of the pages that became hot in a shift that are candidates after two looks."""


def play(policy: Policy, load: Workload, ratio: int, seed: int) -> Outcome:
    """Run all windows. `ratio` is slow over fast."""
    rng = np.random.default_rng(seed)
    rate = load.rates(0)
    pages = len(rate)
    frames = pages // (1 + ratio)
    capacity = frames - int(np.ceil(frames * HEADROOM))
    fast = _placement(
        rate if load.score is None else load.score, capacity, rng, ideal=load.ideal_start
    )
    policy.start(fast, capacity, max(1, int(frames * LIMIT)))
    result = Outcome(policy.name, load.name, ratio, capacity, shifts=load.shifts, seed=seed)
    result.period = load.period
    window = 1.0 if not load.tuned else _window(rate, 0.5 * capacity)
    since = np.full(pages, -(10**6))
    for t in range(load.windows):
        rate = load.rates(t)
        score = rate if load.score is None else load.score
        best = _best(score, capacity)
        now = policy.fast
        if t == 0 or t in load.shifts:
            result.ideal.append(int((best & ~now).sum()))
        result.hits.append(float(score[now].sum() / score[best].sum()))
        accessed = rng.random(pages) < -np.expm1(-rate * window)
        if isinstance(policy, Limited):
            policy.know(score, window, shifted=bool(load.shifts) and t >= load.shifts[0])
        promoted, demoted = policy.step(accessed)
        result.stopped.append(bool(getattr(policy, "stopped", False)))
        if load.fresh is not None and t == load.shifts[0] + 1 and hasattr(policy, "found"):
            result.found = float(policy.found(load.fresh))
        result.promoted.append(len(promoted))
        result.demoted.append(len(demoted))
        since[promoted] = t
        result.wasted += int((t - since[demoted] <= WASTE).sum())
        if load.tuned:
            aim = min(SEEN_AIM * capacity, SEEN_MOST * pages)
            window *= float(np.clip(aim / max(int(accessed.sum()), 1), 0.5, 2)) ** 0.5
    return result


def _placement(
    rate: NDArray[np.float64], capacity: int, rng: np.random.Generator, *, ideal: bool
) -> Flags:
    if ideal:
        return _best(rate, capacity)
    fast = np.zeros(len(rate), np.bool_)
    fast[rng.permutation(len(rate))[:capacity]] = True
    return fast


def _best(rate: NDArray[np.float64], capacity: int) -> Flags:
    best = np.zeros(len(rate), np.bool_)
    best[np.argsort(-rate, kind="stable")[:capacity]] = True
    return best


def _window(rate: NDArray[np.float64], seen: float) -> float:
    """Length in which about `seen` pages are accessed."""
    low, high = 1e-6, 1e12
    for _ in range(100):
        middle = np.sqrt(low * high)
        if -np.expm1(-rate * middle).sum() < seen:
            low = middle
        else:
            high = middle
    return float(low)


def t90(outcome: Outcome, begin: int, end: int) -> int | None:
    """Windows from `begin` until 90 % of the lost hits are back; None if not before `end`."""
    hits = np.array(outcome.hits)
    before = 1.0 if begin == 0 else hits[max(begin - 10, 0) : begin].mean()
    low = hits[begin]
    back = np.flatnonzero(hits[begin:end] >= low + 0.9 * (before - low))
    return int(back[0]) if len(back) else None
