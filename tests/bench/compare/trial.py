# SPDX-License-Identifier: Apache-2.0
"""One trial: a program in a guest under one way of tiering, watched from outside.

The program is 256 MiB and reads one word of each page of a window of 48 MiB, over and over. It is
started when the way is at work already, with all its pages on the slow node; later its window
jumps once. In the end the way is held still and let go by turns, for what it costs a program that
has settled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from guest import loads
from guest.loads import MIB
from rig import Guest

from .ways import Way

SIZE_MIB: Final = 256
HOT_MIB: Final = 48
WATCH_MS: Final = 250
SETTLE: Final = 15.0
"""Seconds before each program: a program's end, and how its frames are filled anew, are not what is
measured of the next one."""
CPU: Final = 1
"""Where the program runs."""
TICK_US: Final = 10_000
"""How old a translation in its CPU may be; see tick.c."""
SLICE: Final = 1.0
"""Seconds with the way held still and as long with it at work, `PAIRS` times."""
PAIRS: Final = 8


@dataclass(frozen=True, slots=True)
class Manner:
    """How the program runs. pause: microseconds between two passes over the window; phase:
    seconds from the start to the jump, and from there to the end; pairs: of slices at the end."""

    name: str
    about: str
    pause: int
    phase: float
    pairs: int


BUSY: Final = Manner("busy", "as fast as it can", 0, 12.0, PAIRS)
PAUSING: Final = Manner("pausing", "with a rest of 20 ms after each pass", 20_000, 20.0, 0)


@dataclass(frozen=True, slots=True)
class Sample:
    """What watch.c saw at `ms` (the guest's monotonic clock). Pages of the first and the second
    window on the fast node; the kernel's counters; CPU ticks (user, system) of the program, of
    what works for the way, of all processors, and of watch itself."""

    ms: int
    windows: tuple[int, int]
    counters: dict[str, int]
    program: tuple[int, int]
    way: tuple[int, int]
    everything: tuple[int, int]
    watch: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Progress:
    """A line of the program's: accesses so far and the worst stall (seconds) since the last."""

    ms: int
    accesses: int
    stall: float


@dataclass(slots=True)
class Trial:
    """All that one trial showed; `ready`, `jump` and `end` in milliseconds as in `Sample`."""

    way: str
    manner: str
    ready: int = 0
    jump: int = 0
    end: int = 0
    samples: list[Sample] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    """Accesses per second in each slice with the way held still."""
    going: list[float] = field(default_factory=list)
    """The same with it at work, each after the slice of `held` with the same index."""


COUNTERS: Final = (
    "pgmigrate_success",
    "pgmigrate_fail",
    "pgpromote_success",
    "pgdemote_kswapd",
    "pgdemote_direct",
    "numa_hint_faults",
    "numa_pte_updates",
)
"""As in watch.c."""


def run(guest: Guest, way: Way, manners: Sequence[Manner]) -> Iterator[Trial]:
    """Boot is done; switch the way on, let it settle and run a trial for each manner."""
    for name in ("access", "tick", "watch"):
        guest.put(f"/usr/local/bin/{name}", loads.binary(name), 0o755)
    way.start(guest)
    for manner in manners:
        time.sleep(SETTLE)
        yield _one(guest, way, manner)


def _one(guest: Guest, way: Way, manner: Manner) -> Trial:
    trial = Trial(way.name, manner.name)
    tasks = guest.run(way.tasks, check=True).stdout.split()
    program = Program(guest, manner)
    watching = guest.popen(
        f"exec watch {WATCH_MS} {program.pid} {program.address:#x} "
        + " ".join(f"--range {each * MIB}:{HOT_MIB * MIB}" for each in program.windows)
        + "".join(f" --task {pid}" for pid in (program.pid, *tasks))
    )
    trial.ready = program.began
    time.sleep(manner.phase)
    trial.jump = program.jump()
    time.sleep(manner.phase)
    trial.end = now_ms(guest)
    watching.kill()
    trial.samples = [_sample(line, len(tasks)) for line in whole_lines(watching.stdout)]
    trial.progress = program.progress()
    for _ in range(manner.pairs):
        way.hold(guest)
        trial.held.append(program.speed(SLICE))
        way.go(guest)
        trial.going.append(program.speed(SLICE))
    program.check()
    return trial


def now_ms(guest: Guest) -> int:
    """The guest's monotonic clock (which has not been set back: nothing suspends it)."""
    return int(float(guest.run("cut -d' ' -f1 /proc/uptime", check=True).stdout) * 1000)


def whole_lines(text: str) -> list[str]:
    return text.split("\n")[:-1]


class Program:
    """access.c at work on its window."""

    def __init__(self, guest: Guest, manner: Manner) -> None:
        self._guest = guest
        self._process = guest.popen(
            f"exec taskset --cpu-list {CPU} access window {SIZE_MIB} --hot {HOT_MIB} --node 1 "
            f"--report 250 --pause {manner.pause}"
        )
        self._tick = guest.popen(f"exec tick {CPU} {TICK_US}")
        ready = self._process.readline(timeout=240).split()
        self.began = now_ms(guest)
        self.pid, self.address = int(ready[1]), int(ready[2], 0)
        # Where shift() of access.c goes from place 0.
        places = SIZE_MIB // HOT_MIB
        self.windows = (0, (places // 2 + 1) % places * HOT_MIB)

    def jump(self) -> int:
        """Move the window; when."""
        said = self._process.stdout.count("hot ")
        self._guest.run(f"kill -USR1 {self.pid}", check=True)
        at = now_ms(self._guest)
        loads.wait(lambda: self._process.stdout.count("hot ") > said, 60, "no jump")
        offset = int(self._last("hot").split()[1])
        assert offset == self.windows[1] * MIB, offset
        return at

    def progress(self) -> list[Progress]:
        lines = [line.split() for line in whole_lines(self._process.stdout)]
        return [
            Progress(self.began + int(words[1]), int(words[2]), int(words[3]) / 1e6)
            for words in lines
            if words[0] == "did"
        ]

    def speed(self, seconds: float) -> float:
        """Accesses per second over the next seconds, by the program's own lines."""
        time.sleep(0.3)  # what was changed takes effect
        first = len(self.progress())
        loads.wait(lambda: len(self.progress()) > first + seconds * 4, 60, "no progress")
        part = self.progress()[first:]
        return (part[-1].accesses - part[0].accesses) / (part[-1].ms - part[0].ms) * 1000

    def check(self) -> None:
        """No page may have lost its content."""
        self._guest.run(f"kill -USR2 {self.pid}", check=True)
        loads.wait(lambda: "pages bad" in self._process.stdout, 120, "no answer")
        assert self._last("pages") == "pages bad 0", self._last("pages")
        self._tick.kill()
        self._process.kill()

    def _last(self, word: str) -> str:
        lines = whole_lines(self._process.stdout)
        return [line for line in lines if line.startswith(word)][-1]


def _sample(line: str, tasks: int) -> Sample:
    clock, windows, counters, cpu = (part.split() for part in line.split("|"))
    ticks = [(int(user), int(system)) for user, system in (pair.split(":") for pair in cpu)]
    first, second = map(int, windows)
    return Sample(
        int(clock[0]),
        (first, second),
        dict(zip(COUNTERS, map(int, counters), strict=True)),
        ticks[0],
        total(ticks[1 : 1 + tasks]),
        ticks[1 + tasks],
        ticks[2 + tasks],
    )


def total(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """User and system ticks in sum."""
    return sum(user for user, _ in pairs), sum(system for _, system in pairs)
