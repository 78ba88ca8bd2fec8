# SPDX-License-Identifier: Apache-2.0
"""How long to wait between marking frames idle and reading them. Pure.

Too short, and only the very hottest frames are seen; too long, and everything looks hot. Best is
a window in which 1.5 to 2 times the fast tier's frames are seen accessed, but never most of the
machine. Where a longer window does not show more, there is nothing to tune for.
"""

from __future__ import annotations

from typing import Final

ENOUGH: Final = 65_536
"""Pages that must have been looked at in turn before the active set is judged."""
STEP: Final = 1.5
"""Factor by which the window changes."""
ELASTIC: Final = 1.1
"""A window longer by STEP must show this many times more, or it was for nothing."""
HOLD: Final = 60.0
"""Seconds (at least) before a settled window is put to the test again."""
FIRST: Final = 20.0
"""Seconds before the window is made longer for the first time, and after a hot block was found that
was not: what is plainly hot comes first."""
MOST_HELD: Final = 60.0
"""Seconds at most that the window is held for that: where hot blocks are found all the time, it may
still be too short for others."""
FUZZY: Final = 0.1
"""Share of the active pages that lie in blocks which are neither idle nor hot as a whole. Below
it the picture is sharp, and a longer window would only show it later."""


class WindowTuner:
    """Keeps `window` seconds between `least` and `most`. `fast` is the fast tier in frames."""

    def __init__(self, least: float, most: float, fast: int) -> None:
        self.least = least
        self._most = most
        self._fast = fast
        self.window = min(max(1.0, least), most)
        self._pages = 0
        self._active = 0.0
        self._mixed = 0.0
        self._recent = (0.0, 0.0)
        self._quiet_until = 0.0
        self._found = self._finding = -FIRST
        """When a hot block was found last, and since when they have been without a pause."""
        self._hold_until: float | None = None
        self._probe: tuple[float, float] | None = None

    def note(self, pages: int, accessed: float, mixed: float) -> None:
        """Blocks looked at in turn had this many user pages, so many seen accessed, and so many
        of those in blocks where others were not."""
        self._pages += pages
        self._active += accessed
        self._mixed += mixed

    def effective(self, gap: float) -> float:
        """Seconds that frames really wait: a window longer than half the time between calls is
        read in a later call."""
        return max(self.window, gap) if self.window >= gap / 2 else self.window

    def step(self, now: float, gap: float, total: int, *, found: bool = False) -> None:
        """Judge what was noted and perhaps change the window.

        now: seconds; gap: seconds between calls; total: user pages of the machine. found: blocks
        that were not hot are known for it since the last call.
        """
        if self._hold_until is None:
            self._hold_until = now + FIRST
        elif found:
            if now - self._found > FIRST:
                self._finding = now
            self._found = now
            self._hold_until = max(self._hold_until, min(now + FIRST, self._finding + MOST_HELD))
        if now < self._quiet_until:
            self._pages, self._active, self._mixed = 0, 0.0, 0.0  # marked under the old window
            return
        if not total or self._pages < min(total, ENOUGH):
            return
        active = total * self._active / self._pages
        # Blocks are told of when they are chosen or when they are read, so that a small active set
        # is told of twice in one epoch and not at all in the next: judge by several.
        self._recent = (
            (self._recent[0] + self._active) * 0.7,
            (self._recent[1] + self._mixed) * 0.7,
        )
        sharp = self._recent[1] <= FUZZY * self._recent[0]
        self._pages, self._active, self._mixed = 0, 0.0, 0.0
        window = self._judge(active, sharp, gap, total, now)
        window = min(max(window, self.least), self._most)
        if window != self.window:
            self.window = window
            self._quiet_until = now + 2 * self.effective(gap)

    def _judge(self, active: float, sharp: bool, gap: float, total: int, now: float) -> float:
        window = self.effective(gap)
        if active > min(2.0 * self._fast, 0.7 * total):
            self._probe = None
            # Between half the time between calls and all of it there is nothing in effect.
            return min(window / STEP, 0.49 * gap) if window >= gap / 2 else window / STEP
        if active >= min(1.5 * self._fast, 0.5 * total):
            self._probe = None
            return self.window
        if self._probe is not None:
            return self._judge_probe(*self._probe, active, window, now)
        if self._hold_until is not None and now < self._hold_until:
            return self.window
        longer = window > max(gap, self.least) * 1.01
        if sharp and not longer:
            return self.window
        self._probe = (window, active)
        # Shorter first: after a change of load a long window may have lost its reason.
        return window / STEP if longer else window * STEP

    def _judge_probe(
        self, before: float, showed: float, active: float, window: float, now: float
    ) -> float:
        """The window was changed from `before`, which showed so much, to see what that does."""
        self._probe = None
        if window < before:
            if active * ELASTIC >= showed:
                return window  # as much to see in less time
            self._hold_until = now + HOLD
            return before * STEP if active * ELASTIC * ELASTIC < showed else before
        if active >= showed * ELASTIC:
            self._probe = (window, active)
            return window * STEP
        self._hold_until = now + HOLD + 10 * before
        return before
