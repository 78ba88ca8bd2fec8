# SPDX-License-Identifier: Apache-2.0
"""How the kernel selftest's output and the mutants' headers are read."""

from __future__ import annotations

from pathlib import Path

import pytest

import mutants
import selftest

KTAP = """\
TAP version 13
1..4
# Starting 4 tests from 2 test cases.
#  RUN           mpp.move ...
#            OK  mpp.move
ok 1 mpp.move
#  RUN           mpp.hugetlb ...
#      SKIP      no hugetlb
#            OK  mpp.hugetlb
ok 2 mpp.hugetlb # SKIP no hugetlb
#  RUN           mpp.ksm ...
# move_phys_pages.c:12:ksm:Expected 1 (1) == status (-16)
# ksm: Test failed
#          FAIL  mpp.ksm
not ok 3 mpp.ksm
#  RUN           mpp.killed ...
"""


def test_outcomes_are_read_up_to_where_the_guest_fell() -> None:
    outcomes = selftest.parse(KTAP)
    assert list(outcomes) == ["move", "hugetlb", "ksm"]
    assert outcomes["move"].passed
    assert outcomes["move"].skipped is None
    assert outcomes["hugetlb"].passed
    assert outcomes["hugetlb"].skipped == "no hugetlb"
    assert not outcomes["ksm"].passed
    assert "status (-16)" in outcomes["ksm"].log
    assert "hugetlb" not in outcomes["ksm"].log


def test_every_mutant_names_tests_that_exist() -> None:
    known = set(selftest.names())
    assert len(known) > 60
    for mutant in mutants.load_all():
        assert set(mutant.tests) <= known, mutant.name
        assert mutant.kernel in ("release", "debug")


def test_the_series_is_tried_first_with_all_tests_of_its_mutants() -> None:
    every = [
        mutants.Mutant("B1", Path("x"), "debug", ("a", "b")),
        mutants.Mutant("B2", Path("x"), "debug", ("b", "c")),
        mutants.Mutant("B3", Path("x"), "debug", ("d",), append="security=smack"),
        mutants.Mutant("B4", Path("x"), "release", ("a",)),
    ]
    tried = mutants.controls(every)
    assert [(each.kernel, each.append, each.tests) for each in tried] == [
        ("debug", "", ("a", "b", "c")),
        ("debug", "security=smack", ("d",)),
        ("release", "", ("a",)),
    ]
    assert all(each.survives and each.patch is None for each in tried)


def test_a_mutant_without_its_tests_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "B99-x.patch"
    bad.write_text("What it is.\n\nKernel: debug\n---\n--- a/x\n+++ b/x\n")
    with pytest.raises(ValueError, match=r"B99-x\.patch: no line 'Tests: \.\.\.'"):
        mutants.load(bad)
