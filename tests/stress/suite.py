# SPDX-License-Identifier: Apache-2.0
"""The stressors, and one run of one of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from rig import Guest
from rig import Result as Done
from stress import checks


@dataclass(frozen=True, slots=True)
class Stressor:
    name: str
    about: str
    machine: str = "A"
    """The name of one of rig.MACHINES."""
    debug_machine: str = ""
    """Another one for the debug kernel, on which a process costs nearly twice the memory."""

    warm_up: tuple[str, ...] = ()
    """Kernels on which one short storm goes before memory is measured. KASAN keeps the shadow of
    address space that stacks once had: it is there at the next storm, so it is no leak, and no
    counter of the kernel names it."""

    def machine_for(self, kernel: str) -> str:
        return (kernel == "debug" and self.debug_machine) or self.machine


STRESSORS = (
    Stressor("files", "file pages: truncate, unlink, munmap, punched holes"),
    Stressor("anon", "anonymous pages: fork, COW, exit, SIGKILL, munmap"),
    Stressor("thp", "huge pages: split in each way, collapse"),
    Stressor("ksm", "KSM: merge, write apart, unmerge"),
    Stressor("callers", "four callers in opposite directions"),
    Stressor("balance", "NUMA balancing, compaction, DAMON"),
    Stressor("cpuset", "cpuset changes"),
    Stressor("random", "random addresses"),
    Stressor("kill", "SIGKILL in a million-page call"),
    Stressor("mapped", "a page that 5,000 processes map", debug_machine="D", warm_up=("debug",)),
    Stressor("offline", "offlining of the CXL node", machine="B"),
)

_COUNTERS = (
    "pgmigrate_success",
    "pgmigrate_fail",
    "thp_migration_success",
    "thp_migration_fail",
    "thp_migration_split",
    "thp_split_page",
    "allocstall_dma32",
    "allocstall_normal",
    "allocstall_movable",
)


KNOWN = re.compile(
    r"WARNING: .* deferred_split_folio\+|BUG: KASAN: slab-use-after-free in page_address_in_vma\+"
)
"""Complaints of Linux 6.12.117 that move_pages() brings about as well (`--move-pages`).

- migrate_folio_move() maps the new folio and then queues it for deferred splitting as it found the
  old one, which a munmap() or MADV_DONTNEED in between contradicts. DEBUG_VM alone warns of it.
- ksmd holds a page by a reference between its scan and the merge; when the page is unmapped
  meanwhile, folio->mapping still names an anon_vma that may be gone, and write_protect_page()
  follows it in page_address_in_vma(), outside of RCU."""


@dataclass
class Result:
    """What became of one stressor."""

    name: str
    kernel: str
    machine: str
    failures: list[str] = field(default_factory=list)
    """Why it failed; empty when it passed."""
    known: list[str] = field(default_factory=list)
    """Complaints of the kernel that are not of the call, see KNOWN."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the program says: guest seconds, calls, moves, refusals by code, events."""
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    """Memory at rest (see checks.Memory)."""
    vmstat: dict[str, int] = field(default_factory=dict)
    """How much the kernel's own counters have grown."""
    blocks: int = 0
    """Memory blocks of the slow node that went offline and came back afterwards."""

    @property
    def passed(self) -> bool:
        return not self.failures


def run(
    guest: Guest,
    stressor: Stressor,
    seconds: int,
    blocks: list[int],
    *,
    processes: int = 5000,
    move_pages: bool = False,
) -> Result:
    """One stressor in a prepared guest, and all checks after it.

    With `move_pages` the flood is one of move_pages(2): what is seen then as well is not of our
    call. The program ends by itself when enough has happened, or nothing goes on any more."""
    name = stressor.name + ("-move_pages" if move_pages else "")
    result = Result(name, guest.kernel, guest.machine.name)
    options = ["--processes", str(processes), *(["--move-pages"] if move_pages else [])]
    complaints = len(guest.complaints())

    def storm(seconds: int) -> Done:
        with guest.popen(["stress", *options, "run", stressor.name, str(seconds)]) as process:
            process.close_stdin()
            return process.wait(timeout=6 * seconds + 900)

    if guest.kernel in stressor.warm_up:
        storm(1)
    before, counters = checks.baseline(guest)
    result.before = before.as_dict()
    done = storm(seconds)
    if done.stdout.strip():
        result.report = json.loads(done.stdout)
    result.failures += judge(result.report, done.returncode, done.stderr)
    after, now, found = checks.come_to_rest(guest, before)
    result.after = after.as_dict()
    result.vmstat = {key: now[key] - counters[key] for key in _COUNTERS if key in now}
    result.failures += found
    result.failures += checks.cycle_offline(guest, blocks)
    result.blocks = len(blocks)
    if not blocks:
        result.failures.append("no memory of the slow node can go offline")
    said = guest.complaints()[complaints:]
    result.known = [line for line in said if KNOWN.search(line)]
    result.failures += [line for line in said if not KNOWN.search(line)]
    return result


def judge(report: dict[str, Any], status: int, stderr: str) -> list[str]:
    """Why a storm failed, from what the program said and how it ended; empty when it did not."""
    if not report:
        return [f"the program ended with status {status}: {stderr[-500:]}"]
    found = []
    if report["bad"]:
        # It ended the storm at once, so there is no point in counting what happened.
        found.append(f"{report['bad']} promises broken, the first: {report['why']}")
        return found + [line for line in stderr.splitlines() if line.startswith("stress: ")][:3]
    found += [
        f"too little happened: {name}: {count} of {need}"
        for name, (count, need) in report["events"].items()
        if count < need
    ]
    if status and not found:
        found.append(f"the program ended with status {status}")
    return found
