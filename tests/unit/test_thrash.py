# SPDX-License-Identifier: Apache-2.0
"""A hot set that flips stops the promotions of the whole core, and one that stays lets them go."""

from __future__ import annotations

import numpy as np
import pytest

from bench.policy import workloads
from bench.policy.core import Tierd
from bench.policy.run import play

PAGES = 8192


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_flips_stop_the_promotions_and_their_end_is_noticed(seed: int) -> None:
    load = workloads.flips(PAGES, PAGES // 5 * 4 // 5, seed)
    outcome = play(Tierd(), load, 4, seed)
    stopped, end = np.array(outcome.stopped), load.shifts[0]
    assert stopped[30:70].all()
    assert not stopped[end + load.period + 2 :].any()


def test_a_hot_set_that_stays_never_stops_them() -> None:
    load = workloads.hot_set(PAGES, PAGES // 5 * 4 // 5, 1, 60)
    assert not any(play(Tierd(), load, 4, 1).stopped)
