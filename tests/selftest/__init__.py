# SPDX-License-Identifier: Apache-2.0
"""The kernel series' own selftest: which tests it has, how to run it in a guest, what it said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rig

SERIES = Path(__file__).resolve().parents[2] / "kernel-patches" / "6.12"
PROGRAM = "/usr/local/bin/move_phys_pages"

_TEST = re.compile(r"^\+TEST_F(?:_TIMEOUT)?\(mpp\w*, (\w+)", re.MULTILINE)
_RUN = re.compile(r"^#  RUN +mpp\w*\.(\w+) \.\.\.")
_RESULT = re.compile(r"^(not ok|ok) \d+ mpp\w*\.(\w+)(?: # (SKIP|XFAIL) ?(.*))?")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one kernel test came to."""

    passed: bool
    skipped: str | None
    """Why it did not run, in the test's own words; None when it ran."""
    log: str
    """What it printed."""


@dataclass(frozen=True, slots=True)
class Report:
    outcomes: Mapping[str, Outcome]
    """By the name of the test; one that is not there was not reached."""
    trouble: str
    """What became of the guest on the way, or what its kernel complained of; empty: nothing."""

    def failed(self) -> list[str]:
        return [name for name, outcome in self.outcomes.items() if not outcome.passed]


def names() -> list[str]:
    """All tests of the selftest, in order, from the patch that adds it.

    Raises ValueError when there is no such patch, or no test in it."""
    found = [name for patch in sorted(SERIES.glob("*selftests*.patch")) for name in _names(patch)]
    if not found:
        raise ValueError(f"no test in {SERIES}/*selftests*.patch")
    return found


def _names(patch: Path) -> list[str]:
    return _TEST.findall(patch.read_text())


def parse(text: str) -> dict[str, Outcome]:
    """Outcomes from the KTAP output of kselftest_harness.h, by the name of the test."""
    outcomes: dict[str, Outcome] = {}
    log: list[str] = []
    for line in text.splitlines():
        if _RUN.match(line):
            log = []
        result = _RESULT.match(line)
        if result is None:
            log.append(line)
            continue
        verdict, name, directive, reason = result.groups()
        skipped = (reason or "no reason given") if directive == "SKIP" else None
        outcomes[name] = Outcome(verdict == "ok", skipped, "\n".join(log))
        log = []
    return outcomes


def install(guest: rig.Guest, program: Path) -> None:
    """Put the selftest into the guest."""
    guest.put(PROGRAM, program.read_bytes(), 0o755)


def run(
    guest: rig.Guest,
    only: Sequence[str],
    *,
    timeout: float,
    log: Path | None = None,
) -> Report:
    """Run these tests; `timeout` in seconds before the guest's patience. Never raises for what
    becomes of the guest: then the report tells of it, and has the outcomes up to there. `log` is
    where the output is kept."""
    seen = len(guest.complaints())
    chosen = " ".join(f"-t {name}" for name in only)
    trouble = ""
    process = None
    try:
        # The harness tells on stderr why a test fails.
        process = guest.popen(f"exec {PROGRAM} {chosen} 2>&1")
        process.wait(timeout)
    except rig.GuestError as error:
        trouble = str(error)
    output = process.stdout if process else ""
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(output)
    complaints = guest.complaints()[seen:]
    if complaints:
        trouble = "\n".join(["the kernel complained:", *complaints, trouble])
    return Report(parse(output), trouble)
