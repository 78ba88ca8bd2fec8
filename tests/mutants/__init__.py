# SPDX-License-Identifier: Apache-2.0
"""`make mutants`: each mistake that the kernel series avoids is put back, and a test must notice.

A mutant is a patch in kernel-patches/mutants/ with a few lines on top: `Tests:` names those of the
selftest that are to notice it, `Kernel:` the flavour that it takes, `Append:` more for the
kernel's command line, `Expect: survives` marks a control that no test may notice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PATCHES = Path(__file__).resolve().parents[2] / "kernel-patches" / "mutants"

_HEADER = re.compile(r"^(Kernel|Append|Tests|Expect): (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    patch: Path | None
    """None: the series as it is."""
    kernel: str
    tests: tuple[str, ...]
    append: str = ""
    survives: bool = False
    """A control: it must pass its tests."""


def load(path: Path) -> Mutant:
    """Read a mutant's header. ValueError says which line is missing."""
    header = dict(_HEADER.findall(path.read_text().split("\n---\n")[0]))
    for line in ("Kernel", "Tests"):
        if line not in header:
            raise ValueError(f"{path}: no line '{line}: ...' above the patch")
    return Mutant(
        path.stem,
        path,
        header["Kernel"],
        tuple(header["Tests"].split()),
        header.get("Append", ""),
        header.get("Expect") == "survives",
    )


def load_all() -> list[Mutant]:
    """All mutants, by name. ValueError when there are none."""
    found = [load(path) for path in sorted(PATCHES.glob("*.patch"))]
    if not found:
        raise ValueError(f"no mutant in {PATCHES}")
    return found


def controls(mutants: list[Mutant]) -> list[Mutant]:
    """The unmutated series, once for each kernel and command line, with all of their tests."""
    groups: dict[tuple[str, str], list[str]] = {}
    for mutant in mutants:
        tests = groups.setdefault((mutant.kernel, mutant.append), [])
        tests += [test for test in mutant.tests if test not in tests]
    return [
        Mutant(
            f"none ({kernel}{' ' + append if append else ''})",
            None,
            kernel,
            tuple(tests),
            append,
            survives=True,
        )
        for (kernel, append), tests in groups.items()
    ]
