# SPDX-License-Identifier: Apache-2.0
"""How the stress suite judges; the storms themselves are in tests/guest/test_stress.py."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from conftest import require
from stress import report
from stress.checks import Memory, program, wrong
from stress.suite import STRESSORS, Result, judge

AT_REST = Memory(
    free_kib=1_900_000,
    anon=3_000,
    isolated_anon=0,
    isolated_file=0,
    ghosts_anon=0,
    ghosts_file=0,
    kernel_kib=23_000,
)


def told(**changes: Any) -> dict[str, Any]:
    said = {
        "name": "anon",
        "seconds": 10.0,
        "calls": 1_000,
        "moved": {"fast": 2_000, "slow": 3_000},
        "refused": {"EBUSY": 5, "ENOENT": 7},
        "events": {"forked": [40, 30]},
        "checked": 99,
        "bad": 0,
        "why": "",
    }
    return said | changes


def test_nothing_is_wrong_with_what_did_not_change() -> None:
    assert wrong(AT_REST, AT_REST, "release") == []
    assert wrong(AT_REST, replace(AT_REST, free_kib=1_950_000, anon=2_000), "release") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"isolated_anon": 1}, "nr_isolated_anon is 1, not 0"),
        ({"isolated_file": -2}, "nr_isolated_file is -2, not 0"),
        ({"ghosts_anon": 1}, "ghosts_anon: 1 pages"),
        ({"ghosts_file": 1}, "ghosts_file: 1 pages"),
        ({"anon": 4_100}, "nr_anon_pages is 4100, was 3000"),
        ({"free_kib": 1_890_000}, "10000 KiB less than can be explained"),
        ({"kernel_kib": 40_000, "free_kib": 1_883_000}, "17000 KiB more"),
    ],
)
def test_what_is_left_behind_is_told(changes: dict[str, int], message: str) -> None:
    found = wrong(AT_REST, replace(AT_REST, **changes), "release")
    assert len(found) == 1
    assert message in found[0]


def test_growth_of_the_kernel_explains_as_much_less_free_memory() -> None:
    grown = replace(AT_REST, kernel_kib=35_000, free_kib=1_888_000)
    assert wrong(AT_REST, grown, "release") == []
    kept = replace(AT_REST, kernel_kib=90_000, free_kib=1_833_000)
    assert wrong(AT_REST, kept, "debug") == []
    assert wrong(AT_REST, kept, "release") != []


def test_a_storm_in_which_too_little_happened_fails() -> None:
    assert judge(told(), 0, "") == []
    assert judge(told(events={"forked": [29, 30]}), 1, "") == [
        "too little happened: forked: 29 of 30"
    ]


def test_broken_promises_and_early_ends_fail() -> None:
    assert judge(told(bad=2, why="content lost"), 1, "stress: mmap: oh\n")[:2] == [
        "2 promises broken, the first: content lost",
        "stress: mmap: oh",
    ]
    assert judge({}, 2, "no stressor")[0].startswith("the program ended with status 2")
    assert judge(told(), 3, "") == ["the program ended with status 3"]


def test_results_of_another_kernel_are_not_in_the_table(tmp_path: Path) -> None:
    result = Result("anon", "debug", "A", report=told(), before=asdict(AT_REST))
    result.after = asdict(replace(AT_REST, free_kib=1_899_000))
    report.save(tmp_path, result, "new")
    report.save(tmp_path, Result("thp", "debug", "A", failures=["it hung"]), "new")
    report.save(tmp_path, Result("ksm", "debug", "A", report=told()), "old")
    rows = report.table(report.collect(tmp_path, "debug", "new")).splitlines()[2:]
    assert rows == [
        "| anon | A | 10 | 1,000 | 2,000 | 3,000 | ENOENT 7, EBUSY 5 | 99 | -1,000 | passed |",
        "| thp | A | | | | | | | | FAILED: it hung |",
    ]


def test_the_program_has_the_stressors_that_the_suite_names(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        require("gcc", "gcc is not installed (Debian: gcc, libc6-dev)")
    path = tmp_path / "stress"
    path.write_bytes(program())
    path.chmod(0o755)
    names = subprocess.run([path, "list"], capture_output=True, text=True, check=True).stdout
    assert set(names.split()) == {stressor.name for stressor in STRESSORS}
