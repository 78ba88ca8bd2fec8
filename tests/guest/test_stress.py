# SPDX-License-Identifier: Apache-2.0
"""Short forms of the stressors on the release kernel; `make stress` runs the long ones on the
debug kernel. Each lasts until enough has happened to prove something, and ten seconds at least."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

import stress
from rig import Guest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

SECONDS = 10
HERE = [stressor for stressor in stress.STRESSORS if stressor.machine == "A"]
ELSEWHERE = [stressor for stressor in stress.STRESSORS if stressor.machine != "A"]


@functools.cache
def prepared(guest: Guest) -> list[int]:
    return stress.prepare(guest)


@pytest.mark.parametrize("stressor", HERE, ids=lambda stressor: stressor.name)
def test_storm(guest: Guest, stressor: stress.Stressor) -> None:
    result = stress.run(guest, stressor, SECONDS, prepared(guest))
    assert result.failures == [], result


@pytest.mark.parametrize("stressor", ELSEWHERE, ids=lambda stressor: stressor.name)
def test_storm_on_another_machine(boot: Callable[..., Guest], stressor: stress.Stressor) -> None:
    guest = boot("release", stressor.machine)
    result = stress.run(guest, stressor, SECONDS, stress.prepare(guest))
    assert result.failures == [], result


def test_one_leaked_reference_is_seen(guest: Guest) -> None:
    """That the checks can fail: a page with one reference too many, and nothing else wrong."""
    blocks = prepared(guest)
    before, _ = stress.baseline(guest)
    with guest.popen(["stress", "leak"]) as leak:
        block, node = map(int, leak.readline().split())
        assert node == 1
        assert block in blocks
        # What just exited may have pages that wait in a list for a moment: this one stays.
        only = ["ghosts_anon: 1 pages nobody has and that are not free"]
        assert stress.come_to_rest(guest, before, only)[2] == only
        assert stress.cycle_offline(guest, [block], patience=3) != []
        leak.close_stdin()
        leak.wait()
    assert stress.come_to_rest(guest, before)[2] == []
    assert stress.cycle_offline(guest, [block]) == []
