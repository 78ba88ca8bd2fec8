# SPDX-License-Identifier: Apache-2.0
"""How the worker waits between cycles: on the wall, or on the clock of a simulated host."""

from __future__ import annotations

import contextlib
import queue
import time
from typing import Protocol

from tierd.host import Host


class Pace(Protocol):
    """A clock that can be waited on."""

    def now(self) -> float:
        """Seconds on a clock that does not go back."""

    def wait(self, seconds: float) -> None:
        """Let that much time pass, or return early after `wake`."""

    def wake(self) -> None:
        """End the present or the next wait. Called from other threads."""


class RealPace:
    """Real time."""

    def __init__(self) -> None:
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._woken.get(timeout=max(seconds, 0.0))
        while not self._woken.empty():
            self._woken.get()

    def wake(self) -> None:
        self._woken.put(None)


class HostPace:
    """The host's own clock: a virtual one jumps, so cycles follow each other at once."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def now(self) -> float:
        return self._host.monotonic()

    def wait(self, seconds: float) -> None:
        self._host.sleep(seconds)

    def wake(self) -> None:
        """A virtual wait takes no time that could be cut short."""
