# SPDX-License-Identifier: Apache-2.0
"""Whether there is anything to plan: `Agenda`. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tierd.hotness import Seen


class Agenda:
    """What the last plan, and the looks since, say of the next one.

    Where the last plan moved nothing, and time alone will not change that, another one has to wait
    for a look that may. While there are candidates for promotion that is a look at any frame;
    without them there are no pairs either, and only a frame on a slower node that is accessed in a
    second of its last four looks makes one.
    """

    def __init__(self, fastest: Collection[int]) -> None:
        """fastest: nodes of the fastest tier."""
        self._fastest = frozenset(fastest)
        self.empty = False
        """Another plan would move nothing, but for the sake of headroom."""
        self._any_look = True
        """A look at any frame may change that."""

    def renew(self) -> None:
        """What was known of plans does not hold any more."""
        self.empty, self._any_look = False, True

    def planned(self, *, final: bool, candidates: bool) -> None:
        """A plan was made. final: another one would be the same, for what is known by now;
        candidates: there are some, or may be some that were not read."""
        self.empty, self._any_look = final, candidates

    def saw(self, told: Sequence[Seen], *, stopped: bool) -> None:
        """Take over what a batch of looks told. stopped: of some class it has to be found out
        whether what it wants goes on."""
        new = any(each.again for each in told if each.node not in self._fastest)
        self.empty = self.empty and not (self._any_look or new or stopped)
