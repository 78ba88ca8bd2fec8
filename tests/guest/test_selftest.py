# SPDX-License-Identifier: Apache-2.0
"""The selftest of the kernel series, one case for each of its tests and machines.

On the release kernel here. `make selftest-debug` runs the same on the debug kernel, which takes
too long for every day. A test of the selftest that skips itself fails here, unless SKIPS has it
with the reason that it must give; and what SKIPS has must not run, or the list would grow stale.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

import selftest

if TYPE_CHECKING:
    import rig

KERNEL = os.environ.get("TIERD_SELFTEST_KERNEL", "release")

pytestmark = [
    pytest.mark.guest,
    pytest.mark.kernel(KERNEL),
    pytest.mark.timeout(14400 if KERNEL == "debug" else 2400),
]

NO_DEVICE_MEMORY = "no device memory"
NO_SMACK = "no Smack"
"""Of any machine until it is asked for with security=smack."""

ONLY_DEBUG = {
    "writeback": "this kernel cannot slow down a disk",
    "private_copy_in_pfnmap": "no /dev/mem",
    "page_refs": "no page_ref events",
}
"""What the release kernel lacks and config/debug.config adds."""


@dataclass(frozen=True)
class Run:
    """One boot, and the tests that run in it."""

    machine: str
    skips: dict[str, str] = field(default_factory=dict)
    """Tests that skip themselves there, with the reason that they must give."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Tests that are not started, and why not."""
    only: tuple[str, ...] = ()
    """Not all tests, but these."""
    append: str = ""
    """More for the kernel's command line."""
    before: str = ""
    """A command that prepares the guest."""

    def tests(self) -> list[str]:
        chosen = self.only or selftest.names()
        return [name for name in chosen if name not in self.left_out]


def runs(kernel: str) -> dict[str, Run]:
    """What is run on that kernel, by a name for the report."""
    lacks = {"device_memory": NO_DEVICE_MEMORY, "security_module": NO_SMACK}
    if kernel != "debug":
        lacks |= ONLY_DEBUG
    fixed = {"offline": "the memory of that node cannot go offline"}
    every = {
        "A": Run("A", skips=lacks | fixed),
        "B": Run("B", skips=lacks, left_out=NOT_ON_CXL),
        "B-devdax": Run("B", only=("device_memory",), before=TO_DEVDAX),
    }
    if kernel == "debug":
        every["A-smack"] = Run("A", only=("security_module",), append="security=smack")
    return every


_NO_DMA = "QEMU's disk cannot read from CXL memory, and is dead once it was told to"

NOT_ON_CXL = {
    "mapped_file": _NO_DMA,
    "swap_cache": _NO_DMA,
    "writeback": _NO_DMA,
    "random_addresses": f"it moves everyone's pages: {_NO_DMA}",
    "killed": f"it moves everyone's pages: {_NO_DMA}",
}
"""Not started where the slow node is a CXL device; all of them run on machine A."""

TO_DEVDAX = (
    "daxctl reconfigure-device --mode=devdax --force dax0.0"
    # It wants to load a module that is built in here.
    " || echo dax0.0 > /sys/bus/dax/drivers/device_dax/new_id; test -e /dev/dax0.0"
)
"""Takes the memory of the CXL region from the system and gives it to the device."""

RUNS = runs(KERNEL)


@pytest.fixture(scope="module")
def report(
    request: pytest.FixtureRequest, boot_module: Callable[..., rig.Guest]
) -> Callable[[str], selftest.Report]:
    """`report(run)`: all outcomes of that run; it boots when it is first asked for."""
    done: dict[str, selftest.Report] = {}

    def ask(name: str) -> selftest.Report:
        if name not in done:
            done[name] = boot_and_run(RUNS[name], selected(request.session, name), boot_module)
        return done[name]

    return ask


def selected(session: pytest.Session, run: str) -> set[str]:
    """The tests of that run that pytest was asked for, or all when only of others."""
    nodes = [item for item in session.items if isinstance(item, pytest.Function)]
    params = [item.callspec.params for item in nodes if hasattr(item, "callspec")]
    wanted = {str(each["test"]) for each in params if each.get("run") == run and "test" in each}
    return wanted or set(RUNS[run].tests())


def boot_and_run(run: Run, wanted: set[str], boot: Callable[..., rig.Guest]) -> selftest.Report:
    with boot(KERNEL, run.machine, append=run.append) as guest:
        selftest.install(guest, guest.artefacts.kernels[KERNEL] / "move_phys_pages")
        if run.before:
            guest.run(run.before, timeout=120)
        tests = [name for name in run.tests() if name in wanted]
        return selftest.run(guest, tests, timeout=900, log=guest.console_path.with_suffix(".ktap"))


@pytest.mark.parametrize(
    ("run", "test"), [(name, test) for name, run in RUNS.items() for test in run.tests()]
)
def test_kernel(run: str, test: str, report: Callable[[str], selftest.Report]) -> None:
    outcomes = report(run)
    assert test in outcomes.outcomes, f"not reached\n{outcomes.trouble}"
    outcome = outcomes.outcomes[test]
    assert outcome.passed, outcome.log
    assert outcome.skipped == RUNS[run].skips.get(test), outcome.log


@pytest.mark.parametrize("run", list(RUNS))
def test_the_kernel_has_nothing_to_complain_of(
    run: str, report: Callable[[str], selftest.Report]
) -> None:
    assert not report(run).trouble


def test_what_is_skipped_in_one_run_runs_in_another() -> None:
    """On the debug kernel, which can show everything: no test is skipped everywhere."""
    every = runs("debug")
    shown = {test for run in every.values() for test in run.tests() if test not in run.skips}
    assert shown == set(selftest.names())
