# SPDX-License-Identifier: Apache-2.0
"""How the worker waits for its next cycle."""

from __future__ import annotations

import threading

from tierd.pace import RealPace

LONG = 30.0
"""Seconds: what is waited for has long come by then."""


def test_a_wait_takes_its_time() -> None:
    pace = RealPace()
    before = pace.now()
    pace.wait(0.05)
    pace.wait(-1.0)
    assert pace.now() - before >= 0.05


def test_a_wake_ends_the_present_wait_or_the_next_one() -> None:
    pace = RealPace()
    before = pace.now()
    pace.wake()
    pace.wait(LONG)
    threading.Timer(0.05, pace.wake).start()
    pace.wait(LONG)
    assert 0.05 <= pace.now() - before < LONG


def test_several_wakes_end_one_wait() -> None:
    pace = RealPace()
    for _ in range(3):
        pace.wake()
    pace.wait(LONG)
    before = pace.now()
    pace.wait(0.05)
    assert pace.now() - before >= 0.05
