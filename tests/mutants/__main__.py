# SPDX-License-Identifier: Apache-2.0
"""Build every mutant of the kernel series, and see which test kills it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import rig
import selftest
from mutants import Mutant, controls, load_all
from mutants.workshop import Workshop

QUICK_BOOT = "systemd.mask=systemd-logind.service"
"""Nobody logs in, and on a busy host it takes half of the debug kernel's boot."""

_SPLAT = re.compile(
    r"(BUG: [^\n\[]*|kernel BUG at [^\n!]*|WARNING: [^\n\[]*|Oops: [^\n\[]*|"
    r"Kernel panic - not syncing: [^\n]*|INFO: (?:task|rcu)[^\n]*)"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    mutant: Mutant
    killers: tuple[str, ...]
    """Tests that failed, or in which the kernel fell or complained."""
    how: str
    """What the kernel said, or why there is no verdict."""
    decided: bool = True
    """It was built and ran."""

    @property
    def right(self) -> bool:
        return self.decided and bool(self.killers) != self.mutant.survives

    def row(self) -> str:
        if not self.decided:
            text = f"NO VERDICT: {self.how}"
        elif self.killers:
            text = "killed by " + ", ".join(self.killers) + (f" ({self.how})" if self.how else "")
        else:
            text = "passes " + ", ".join(self.mutant.tests)
        wrong = "" if self.right else "   <-- WRONG"
        return f"{self.mutant.name:28} {self.mutant.kernel:8} {text}{wrong}"


def main() -> int:
    options = _parser().parse_args()
    try:
        chosen = [
            mutant
            for mutant in load_all()
            if not options.only or any(mutant.name.startswith(word) for word in options.only)
            if options.kernel in (None, mutant.kernel)
        ]
        if not chosen:
            raise ValueError("no such mutant")
        known = set(selftest.names())
        for mutant in chosen:
            if unknown := set(mutant.tests) - known:
                raise ValueError(f"{mutant.patch}: no such test: {', '.join(sorted(unknown))}")
        kernels = sorted({mutant.kernel for mutant in chosen}, reverse=True)
        made = rig.build(kernels)
    except (ValueError, rig.Unavailable) as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    verdicts: list[Verdict] = []
    for kernel in kernels:
        workshop = Workshop(made, kernel, options.jobs)
        here = [mutant for mutant in chosen if mutant.kernel == kernel]
        # The series itself first: a test that fails without a mutant kills nothing.
        for mutant in [*controls(here), *here]:
            verdict = _judge(mutant, workshop, made, options.logs)
            verdicts.append(verdict)
            print(verdict.row(), flush=True)
            if mutant.patch is None and not verdict.right:
                print("mutants: the tests do not pass without a mutant", file=sys.stderr)
                return 1
    wrong = [verdict for verdict in verdicts if not verdict.right]
    killed = sum(1 for verdict in verdicts if verdict.killers)
    print(f"{killed} of {sum(not m.survives for m in chosen)} mutants killed, {len(wrong)} wrong")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--only", type=str.split, default=[], help="beginnings of names: 'B02 B1'")
    parser.add_argument("--kernel", choices=["release", "debug"], help="only those of this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="of make")
    parser.add_argument(
        "--logs", type=Path, default=Path("out/mutants"), help="where output and consoles are kept"
    )
    return parser


def _judge(mutant: Mutant, workshop: Workshop, made: rig.Artefacts, logs: Path) -> Verdict:
    try:
        kernel = workshop.build(mutant)
    except subprocess.CalledProcessError as error:
        return Verdict(mutant, (), f"does not build ({Path(error.cmd[0]).name})", decided=False)
    logs.mkdir(parents=True, exist_ok=True)
    name = mutant.name.replace(" ", "-")
    guest = rig.Guest(
        dataclasses.replace(made, kernels={mutant.kernel: kernel}),
        mutant.kernel,
        append=f"{QUICK_BOOT} {mutant.append}",
        console=logs / f"{name}.console",
    )
    start = time.monotonic()
    try:
        with guest:
            selftest.install(guest, workshop.selftest)
            killers, how = _tests(guest, mutant, logs / name)
    except rig.GuestError as error:
        # Before the first test: nothing that the mutant's tests have to do with.
        return Verdict(mutant, (), f"the guest did not come up: {error.message}", decided=False)
    print(f"  {mutant.name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return Verdict(mutant, killers, how)


def _tests(guest: rig.Guest, mutant: Mutant, logs: Path) -> tuple[tuple[str, ...], str]:
    """Which of its tests notice it, and what the kernel says; each runs by itself."""
    killers: list[str] = []
    how = ""
    for test in mutant.tests:
        report = selftest.run(guest, [test], timeout=300, log=logs / f"{test}.log")
        outcome = report.outcomes.get(test)
        if report.trouble:
            said = _SPLAT.search(report.trouble)
            how = how or (said.group(1).strip() if said else "the guest is gone")
        if report.trouble or outcome is None or not outcome.passed:
            killers.append(test)
        elif outcome.skipped:
            # It proves nothing, and must not look like a pass.
            how = how or f"{test} was skipped: {outcome.skipped}"
            killers += [test] if mutant.survives else []
        if not guest.alive:
            break
    return tuple(killers), how


if __name__ == "__main__":
    sys.exit(main())
