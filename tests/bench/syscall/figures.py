# SPDX-License-Identifier: Apache-2.0
"""From samples to figures: medians, ratios of pairs, bars. Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

STALE_BAR = 1.2
"""Most that a moved page may cost with 50 % stale addresses, of what it costs with none."""

Unit = Literal["cpu", "wall"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A line of the program's output; times in ns, for all pages of the sample together.

    batch: entries of a call (0: what has none); stale: percent of the entries that name no page;
    wanted, moved: pages; migrated: by the kernel's own count."""

    processes: int
    way: str
    variant: str
    batch: int
    stale: int
    round: int
    calls: int
    wanted: int
    moved: int
    migrated: int
    cpu_ns: int
    wall_ns: int

    def per_page(self, unit: Unit) -> float:
        """Nanoseconds for each page that moved (or was where it should be)."""
        return (self.cpu_ns if unit == "cpu" else self.wall_ns) / max(self.moved, 1)


@dataclass(frozen=True, slots=True)
class Scratch:
    """Most memory that a way took beside the pages that it moves, in bytes."""

    processes: int
    way: str
    batch: int
    user_bytes: int
    kernel_bytes: int

    @property
    def bytes(self) -> int:
        return self.user_bytes + self.kernel_bytes


@dataclass(frozen=True, slots=True)
class Check:
    """How many pages the processes have, and how many lost their content."""

    processes: int
    pages: int
    damaged: int


@dataclass
class Run:
    samples: list[Sample] = field(default_factory=list)
    scratch: list[Scratch] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def of(
        self, processes: int, way: str, batch: int, *, stale: int = 0, variant: str = "move"
    ) -> dict[int, Sample]:
        """By round, without the one that warms up."""
        wanted = (processes, way, batch, stale, variant)
        return {
            s.round: s
            for s in self.samples
            if (s.processes, s.way, s.batch, s.stale, s.variant) == wanted and s.round > 0
        }

    def median(
        self,
        processes: int,
        way: str,
        batch: int,
        unit: Unit,
        *,
        stale: int = 0,
        variant: str = "move",
    ) -> float | None:
        """Median ns per page; None if nothing was measured."""
        samples = self.of(processes, way, batch, stale=stale, variant=variant).values()
        return statistics.median(s.per_page(unit) for s in samples) if samples else None

    def memory(self, processes: int, way: str, batch: int) -> Scratch | None:
        wanted = (processes, way, batch)
        found = [s for s in self.scratch if (s.processes, s.way, s.batch) == wanted]
        return found[0] if found else None

    @property
    def processes(self) -> list[int]:
        return sorted({s.processes for s in self.samples})

    @property
    def batches(self) -> list[int]:
        return sorted({s.batch for s in self.samples if s.batch})


def parse(lines: Iterable[str]) -> Run:
    """The program's output; ValueError for a line that is none of its kinds."""
    run = Run()
    kinds: dict[str, Callable[[dict[str, int]], None]] = {
        "time": lambda row: run.samples.append(Sample(**row)),  # type: ignore[arg-type]
        "memory": lambda row: run.scratch.append(Scratch(**row)),  # type: ignore[arg-type]
        "check": lambda row: run.checks.append(Check(**row)),
    }
    for line in lines:
        row = json.loads(line)
        if not isinstance(row, dict) or row.get("kind") not in kinds:
            raise ValueError(f"not a result: {line!r}")
        kinds[row.pop("kind")](row)
    return run


def ratio(over: dict[int, Sample], under: dict[int, Sample], unit: Unit) -> float | None:
    """Median of the rounds' ratios per page; None without a round that both have."""
    both = sorted(over.keys() & under.keys())
    if not both:
        return None
    return statistics.median(over[r].per_page(unit) / under[r].per_page(unit) for r in both)


def multiple(run: Run, processes: int, batch: int, unit: Unit, *, stale: int = 0) -> float | None:
    """What a page costs by reverse translation over what it costs by physical address."""
    scan = run.of(processes, "scan", batch, stale=stale)
    return ratio(scan, run.of(processes, "phys", batch, stale=stale), unit)


def shared_pass(run: Run, processes: int) -> tuple[float, float] | None:
    """When one translation pass serves a batch of each size: CPU in ns per page, and over that of
    move_phys_pages for the same pages. Medians; None if it was not measured."""
    passes = run.of(processes, "table", 0)
    tabled = [run.of(processes, "table", batch) for batch in run.batches]
    back = [run.of(processes, "phys", batch, variant="back") for batch in run.batches]
    rounds = set(passes).intersection(*map(set, tabled), *map(set, back))
    if not rounds:
        return None
    pages = sum(run.batches)
    times = {r: passes[r].cpu_ns + sum(part[r].cpu_ns for part in tabled) for r in rounds}
    phys = {r: sum(part[r].cpu_ns for part in back) for r in rounds}
    return (
        statistics.median(time / pages for time in times.values()),
        statistics.median(times[r] / phys[r] for r in rounds),
    )


def pages_of_processes_hit(processes: int, pages: int, batch: int) -> float:
    """Expected pages of all processes that at least one of `batch` random pages belongs to, where
    that many processes share that many pages evenly."""
    return pages * (1 - (1 - 1 / processes) ** batch)


@dataclass(frozen=True, slots=True)
class Bar:
    text: str
    met: bool


def bars(run: Run) -> list[Bar]:
    """Each bar in words with what was reached. Slower is a matter of wall time: the caller's CPU
    leaves out what move_pages has other threads do for it."""
    result = [_intact(check) for check in run.checks]
    result += _moved(run.samples)
    for n in run.processes:
        for batch in run.batches:
            where = f"{n} processes, batch {batch}"
            for stale in (0, 50):
                slower = ratio(
                    run.of(n, "phys", batch, stale=stale),
                    run.of(n, "known", batch, stale=stale),
                    "wall",
                )
                text = f"{where}, {stale} % stale: wall time per page over that of move_pages"
                result.append(_at_most(f"{text} with known addresses", slower, 1.0))
            for unit in ("cpu", "wall"):
                stale_ratio = ratio(
                    run.of(n, "phys", batch, stale=50), run.of(n, "phys", batch), unit
                )
                text = f"{where}: {unit} per moved page, 50 % stale over clean"
                result.append(_at_most(text, stale_ratio, STALE_BAR))
            result.append(
                Bar(
                    f"{where}: reverse translation is measured, time and memory",
                    multiple(run, n, batch, "cpu") is not None
                    and run.memory(n, "scan", batch) is not None,
                )
            )
    return result


def _at_most(what: str, reached: float | None, most: float) -> Bar:
    if reached is None:
        return Bar(f"{what}: not measured", False)
    return Bar(f"{what} {reached:.2f}, at most {most:g}", reached <= most)


def _intact(check: Check) -> Bar:
    text = f"{check.processes} processes: {check.damaged} of {check.pages} pages lost their content"
    return Bar(text, check.damaged == 0 and check.pages > 0)


def _moved(samples: Sequence[Sample]) -> list[Bar]:
    """A page that does not move costs nothing: nearly all must have, by the kernel's count too."""
    result = []
    for way in ("phys", "known", "scan"):
        mine = [s for s in samples if s.way == way and s.variant == "move"]
        wanted, moved = sum(s.wanted for s in mine), sum(s.moved for s in mine)
        migrated = sum(s.migrated for s in mine)
        text = f"{way}: {moved} of {wanted} pages moved, by the kernel's count {migrated}"
        result.append(Bar(text, wanted > 0 and min(moved, migrated) >= 0.999 * wanted))
    return result
