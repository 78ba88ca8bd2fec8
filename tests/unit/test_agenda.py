# SPDX-License-Identifier: Apache-2.0
"""When there is something to plan."""

from __future__ import annotations

import pytest

from tierd.engine.agenda import Agenda
from tierd.hotness import Seen

FAST, SLOW = 0, 1


def look(node: int, again: int) -> Seen:
    return Seen(node, 100, 50, 0, 0.0, 0, again)


def test_at_first_and_anew_there_is_something_to_plan() -> None:
    agenda = Agenda([FAST])
    assert not agenda.empty
    agenda.planned(final=True, candidates=False)
    assert agenda.empty
    agenda.renew()
    assert not agenda.empty
    agenda.planned(final=False, candidates=False)
    assert not agenda.empty


@pytest.mark.parametrize(
    ("candidates", "stopped", "told", "empty"),
    [
        (False, False, look(SLOW, 0), True),
        (False, False, look(FAST, 9), True),
        (False, False, look(SLOW, 1), False),
        (False, True, look(FAST, 0), False),
        (True, False, look(FAST, 0), False),
    ],
)
def test_what_a_look_may_change(candidates: bool, stopped: bool, told: Seen, empty: bool) -> None:
    agenda = Agenda([FAST])
    agenda.planned(final=True, candidates=candidates)
    agenda.saw([look(FAST, 0), told], stopped=stopped)
    assert agenda.empty is empty
    agenda.saw([], stopped=False)
    assert agenda.empty is (empty and not candidates)


def test_a_look_does_not_undo_what_is_to_be_planned() -> None:
    agenda = Agenda([FAST])
    agenda.planned(final=True, candidates=False)
    agenda.saw([look(SLOW, 1)], stopped=False)
    agenda.saw([look(SLOW, 0)], stopped=False)
    assert not agenda.empty
