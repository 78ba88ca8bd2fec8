# SPDX-License-Identifier: Apache-2.0
"""Programs as arrays of true access rates, one value per page and window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rates = NDArray[np.float64]


@dataclass(frozen=True)
class Workload:
    """`rates(t)` is float64[pages]: accesses per window of length 1 in window t.

    tuned: the sampler lengthens its window until it sees enough frames (otherwise the active set
    is small and its accesses dense, so that the shortest window is right). shifts: windows in
    which the rates change for good. ideal_start: begins with its hottest pages in the fast tier.
    mixed: share of the pages, drawn at random, that exchange their rates in a shift. fresh: pages
    that become hot in the first shift. period: windows between two flips, until the first shift.
    """

    name: str
    windows: int
    rates: Callable[[int], Rates]
    tuned: bool = False
    shifts: tuple[int, ...] = ()
    ideal_start: bool = False
    score: Rates | None = None
    mixed: float = 0.0
    fresh: NDArray[np.int64] | None = None
    period: int = 0


def zipf(pages: int, skew: float, seed: int, windows: int = 300) -> Workload:
    """Rank r gets 1/(r+1)^skew; ranks lie scattered over the pages."""
    rate = _zipf_rates(pages, skew, np.random.default_rng(seed))
    return Workload(f"zipf {skew}", windows, lambda t: rate, tuned=True)


def zipf_shift(pages: int, skew: float, share: float, seed: int, at: int = 100) -> Workload:
    """At window `at` a share of the pages, drawn by their share of the accesses' ranks, change
    places with cold ones."""
    rng = np.random.default_rng(seed)
    before = _zipf_rates(pages, skew, rng)
    after = before.copy()
    moved = rng.choice(pages, int(pages * share), replace=False)
    after[moved] = before[rng.permutation(moved)]
    return Workload(
        f"zipf {skew} shift {share:.0%}",
        2 * at,
        lambda t: before if t < at else after,
        tuned=True,
        shifts=(at,),
        mixed=share,
    )


def _zipf_rates(pages: int, skew: float, rng: np.random.Generator) -> Rates:
    rate = 1.0 / np.arange(1, pages + 1) ** skew
    return rng.permutation(rate / rate.sum())


def hot_set(
    pages: int,
    hot: int,
    seed: int,
    windows: int = 100,
    *,
    settled: bool = False,
    together: bool = False,
) -> Workload:
    """90 % of the accesses go to `hot` pages. `settled`: they begin in the fast tier. `together`:
    they lie in eight stretches, not scattered."""
    rng = np.random.default_rng(seed)
    these = rng.permutation(pages)[:hot]
    if together:
        begins = rng.permutation(8) * (pages // 8) + rng.integers(0, pages // 8 - hot // 8, 8)
        these = (begins[:, None] + np.arange(hot // 8)).ravel()
    rate = _hot_rates(pages, these)
    name = "hot set settled" if settled else "hot set 90/10"
    name += " together" if together else ""
    return Workload(name, windows, lambda t: rate, ideal_start=settled)


def hot_shift(pages: int, hot: int, share: float, seed: int, at: int = 60) -> Workload:
    """At window `at` a share of the hot set is replaced by pages that were cold."""
    order = np.random.default_rng(seed).permutation(pages)
    new = int(hot * share)
    before = _hot_rates(pages, order[:hot])
    after = _hot_rates(pages, np.concatenate([order[new:hot], order[hot : hot + new]]))
    return Workload(
        f"hot set shift {share:.0%}",
        at + 60,
        lambda t: before if t < at else after,
        shifts=(at,),
        fresh=order[hot : hot + new],
    )


def tenants(pages: int, seed: int, count: int = 24, period: int = 80) -> Workload:
    """Programs side by side, each with a stretch of the memory and a zipf of its own within it.
    Some do much and some little (weights of 1/rank); which ones changes twice."""
    rng = np.random.default_rng(seed)
    each = pages // count
    skew = rng.uniform(0.6, 1.2, count)
    inner = np.concatenate([_zipf_rates(each, float(s), rng) for s in skew])
    inner = np.append(inner, np.zeros(pages - len(inner)))
    owner = np.minimum(np.arange(pages) // each, count - 1)
    busy = [rng.permutation(1.0 / np.arange(1, count + 1)) for _ in range(3)]
    return Workload(
        "many tenants",
        3 * period,
        lambda t: inner * busy[t // period][owner],
        tuned=True,
        shifts=(period, 2 * period),
    )


def flips(pages: int, hot: int, seed: int, period: int = 4, stop: int = 100) -> Workload:
    """The hot set is another one every `period` windows; from `stop` on it stays."""
    order = np.random.default_rng(seed).permutation(pages)
    sets = [_hot_rates(pages, order[i * hot : (i + 1) * hot]) for i in range(2)]
    return Workload(
        "hot set flips",
        stop + 60,
        lambda t: sets[(min(t, stop) // period) % 2],
        shifts=(stop,),
        period=period,
    )


def _hot_rates(pages: int, hot: NDArray[np.int64], dense: float = 5.0) -> Rates:
    """Each hot page is accessed `dense` times per window; a tenth of all accesses is spread
    over all pages."""
    rate = np.full(pages, dense * len(hot) / 0.9 * 0.1 / pages)
    rate[hot] += dense
    return rate


def scan(pages: int, hot: int, seed: int, windows: int = 200, speed: int = 64) -> Workload:
    """A resident hot set, and a scan that touches every other page once per `speed` windows."""
    order = np.random.default_rng(seed).permutation(pages)
    base = np.zeros(pages)
    base[order[:hot]] = 5.0
    others = np.sort(order[hot:])
    stride = -(-len(others) // speed)

    def rates(t: int) -> Rates:
        rate = base.copy()
        if t >= windows // 2:
            begin = t % speed * stride
            rate[others[begin : begin + stride]] = 64.0  # every cache line once
        return rate

    return Workload("sequential scan", windows, rates, ideal_start=True, score=base)


def uniform(pages: int, active: int, seed: int, windows: int = 300) -> Workload:
    """Uniform random over `active` pages, the others idle."""
    rate = np.zeros(pages)
    rate[np.random.default_rng(seed).permutation(pages)[:active]] = 1.0 / active
    return Workload("uniform", windows, lambda t: rate, tuned=True)


def phases(pages: int, seed: int, regions: int = 16, period: int = 60, count: int = 5) -> Workload:
    """masim's tiering configuration: equal regions, whose weights 0.. are permuted per phase."""
    rng = np.random.default_rng(seed)
    weights = [rng.permutation(regions).astype(float) for _ in range(count)]
    region = np.arange(pages) * regions // pages
    return Workload(
        "phases",
        period * count,
        lambda t: weights[t // period][region] / pages,
        tuned=True,
        shifts=tuple(range(period, period * count, period)),
    )
