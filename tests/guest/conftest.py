# SPDX-License-Identifier: Apache-2.0
"""Guests for tests.

`guest` boots once per module: machine A with the release kernel, or what the module's
`pytestmark = pytest.mark.kernel("off")` and `pytest.mark.machine("B")` say. `guest_off` is one
with the call configured out. `boot(...)` gives a test one of its own, however often it asks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import rig
from conftest import require

OUT = Path(__file__).resolve().parents[2] / "out" / "guest"
"""Where the consoles are kept."""

Boot = Callable[..., rig.Guest]

_built: dict[str, rig.Artefacts | rig.Unavailable] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernel(flavour, ...): kernels that the tests boot")
    config.addinivalue_line("markers", "machine(name): the machine that `guest` runs on")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test: no test's time limit allows for a kernel."""
    flavours: set[str] = set()
    for item in session.items:
        names = set(getattr(item, "fixturenames", ()))
        if names & {"guest", "boot", "boot_module"}:
            marker = item.get_closest_marker("kernel")
            flavours |= set(marker.args) if marker else {"release"}
        if "guest_off" in names:
            flavours.add("off")
    if session.config.option.collectonly or not flavours:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        for flavour in sorted(flavours, reverse=True):  # off reuses what release compiled
            artefacts(flavour)


def artefacts(flavour: str) -> rig.Artefacts | rig.Unavailable:
    if flavour not in _built:
        try:
            _built[flavour] = rig.build([flavour])
        except rig.Unavailable as error:
            print(f"guest tests on kernel {flavour}: {error}", file=sys.stderr)
            _built[flavour] = error
    return _built[flavour]


def start(
    name: str,
    stack: ExitStack,
    kernel: str = "release",
    machine: str = "A",
    *,
    append: str = "",
) -> rig.Guest:
    made = artefacts(kernel)
    if isinstance(made, rig.Unavailable):
        require("guest", str(made))
    console = _console(name, kernel, machine)
    return stack.enter_context(
        rig.Guest(made, kernel, rig.MACHINES[machine], append=append, console=console)
    )


def _console(name: str, kernel: str, machine: str) -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    return OUT / f"{re.sub('[^A-Za-z0-9_.-]+', '-', name)}.{kernel}.{machine}.log"


def _of_module(request: pytest.FixtureRequest, kernel: str | None = None) -> Iterator[rig.Guest]:
    mark = request.node.get_closest_marker
    flavour = mark("kernel")
    machine = mark("machine")
    with ExitStack() as stack:
        guest = start(
            request.node.name,
            stack,
            kernel or (flavour.args[0] if flavour else "release"),
            machine.args[0] if machine else "A",
        )
        yield guest
        complaints = guest.complaints()
    assert not complaints, "the kernel complained:\n" + "\n".join(complaints)


@pytest.fixture(scope="module")
def guest(request: pytest.FixtureRequest) -> Iterator[rig.Guest]:
    """The module's guest; at its end the kernel must not have complained."""
    yield from _of_module(request)


@pytest.fixture(scope="module")
def guest_off(request: pytest.FixtureRequest) -> Iterator[rig.Guest]:
    """Like `guest`, on the kernel without the call."""
    yield from _of_module(request, "off")


@pytest.fixture
def boot(request: pytest.FixtureRequest) -> Iterator[Boot]:
    """`boot(kernel="release", machine="A", append="")`: a guest of the test's own."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: start(request.node.name, stack, *args, **kwargs)


@pytest.fixture(scope="module")
def boot_module(request: pytest.FixtureRequest) -> Boot:
    """`boot_module(kernel="release", machine="A", append="")`: a guest that is not booted yet, for
    a fixture of the module to enter and to leave; its console is kept like that of `boot`."""

    def make(kernel: str = "release", machine: str = "A", *, append: str = "") -> rig.Guest:
        made = artefacts(kernel)
        if isinstance(made, rig.Unavailable):
            require("guest", str(made))
        return rig.Guest(
            made,
            kernel,
            rig.MACHINES[machine],
            append=append,
            console=_console(f"{request.node.name} {append}".strip(), kernel, machine),
        )

    return make
