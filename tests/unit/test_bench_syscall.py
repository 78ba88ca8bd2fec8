# SPDX-License-Identifier: Apache-2.0
"""The pure parts of `make bench-syscall`: figures and bars, and the translation on made-up maps."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.syscall import figures, report
from bench.syscall.figures import Check, Run, Sample, Scratch
from conftest import require

SOURCE = Path(__file__).resolve().parents[1] / "bench" / "syscall" / "translate.c"
PRESENT = 1 << 63
SWAPPED = 1 << 62


def sample(way: str, round_: int, cpu: int, **other: int | str) -> Sample:
    """100 pages; wall is twice the CPU."""
    made = Sample(1, way, "move", 64, 0, round_, 1, 100, 100, 100, cpu, 2 * cpu)
    return replace(made, **other)  # type: ignore[arg-type]


def good_run() -> Run:
    """Meets every bar: phys costs 10 ns a page, known 20, scan 500."""
    run = Run(checks=[Check(1, 1000, 0)], scratch=[Scratch(1, "scan", 64, 4096, 0)])
    for round_ in range(6):
        for stale in (0, 50):
            for way, cpu in (("phys", 1000), ("known", 2000), ("scan", 50000)):
                run.samples.append(sample(way, round_, cpu, stale=stale))
    return run


def missed(run: Run) -> list[str]:
    return [bar.text for bar in figures.bars(run) if not bar.met]


# Figures.


def test_the_round_that_warms_up_does_not_count() -> None:
    run = Run([sample("phys", 0, 10**9), sample("phys", 1, 1000), sample("phys", 2, 3000)])
    assert run.median(1, "phys", 64, "cpu") == 20
    assert run.median(1, "phys", 64, "wall") == 40
    assert run.median(1, "known", 64, "cpu") is None


def test_ratios_are_those_of_pairs() -> None:
    """A disturbance that hits both of a pair alike does not change the ratio."""
    over = {r: sample("phys", r, cpu) for r, cpu in ((1, 100), (2, 9000), (3, 110))}
    under = {r: sample("known", r, cpu) for r, cpu in ((1, 200), (2, 18000), (3, 220), (4, 1))}
    assert figures.ratio(over, under, "cpu") == 0.5
    assert figures.ratio(over, {9: sample("known", 9, 1)}, "cpu") is None


def test_a_page_that_did_not_move_is_no_bargain() -> None:
    assert sample("phys", 1, 1000, moved=50).per_page("cpu") == 20


def test_the_multiple_and_the_amortised_cost() -> None:
    run = good_run()
    assert figures.multiple(run, 1, 64, "cpu") == 50
    assert figures.shared_pass(run, 1) is None
    for round_ in (0, 1):
        run.samples.append(sample("table", round_, 64000, batch=0, moved=0))
        run.samples.append(sample("table", round_, 640))
        run.samples.append(sample("phys", round_, 320, variant="back"))
    assert figures.shared_pass(run, 1) == ((64000 + 640) / 64, (64000 + 640) / 320)


def test_how_many_pages_migrate_with_those_that_are_wanted() -> None:
    assert figures.pages_of_processes_hit(1, 1000, 1) == 1000
    assert figures.pages_of_processes_hit(10, 1000, 1) == pytest.approx(100)
    assert figures.pages_of_processes_hit(10, 1000, 10**4) == pytest.approx(1000)


# Bars.


def test_a_good_run_misses_nothing() -> None:
    assert missed(good_run()) == []


@pytest.mark.parametrize(
    ("way", "stale", "cpu", "expected"),
    [
        ("phys", 0, 2100, "0 % stale: wall time per page over that of move_pages"),
        ("phys", 50, 1300, "50 % stale over clean"),
        ("phys", 50, 2100, "50 % stale: wall time per page over that of move_pages"),
    ],
)
def test_each_bar_can_be_missed(way: str, stale: int, cpu: int, expected: str) -> None:
    run = good_run()
    run.samples = [
        replace(s, cpu_ns=cpu, wall_ns=2 * cpu) if (s.way, s.stale) == (way, stale) else s
        for s in run.samples
    ]
    assert any(expected in text for text in missed(run))


def test_what_was_not_measured_is_missed() -> None:
    run = good_run()
    run.samples = [s for s in run.samples if s.way != "known"]
    assert any("not measured" in text for text in missed(run))
    run = good_run()
    run.scratch = []
    assert any("time and memory" in text for text in missed(run))


def test_pages_that_stayed_or_broke_are_missed() -> None:
    run = good_run()
    run.samples = [replace(s, migrated=0) if s.way == "phys" else s for s in run.samples]
    assert any("phys: 1200 of 1200 pages moved" in text for text in missed(run))
    run = good_run()
    run.checks = [Check(1, 1000, 1)]
    assert missed(run) == ["1 processes: 1 of 1000 pages lost their content"]


def test_output_is_parsed_and_shown() -> None:
    rows = [
        {"kind": "check", "processes": 1, "pages": 1000, "damaged": 0},
        {
            "kind": "memory",
            "processes": 1,
            "way": "phys",
            "batch": 64,
            "user_bytes": 1024,
            "kernel_bytes": 2048,
        },
        {
            "kind": "time",
            **{name: getattr(sample("phys", 1, 1230000), name) for name in Sample.__slots__},
        },
    ]
    run = figures.parse([json.dumps(row) for row in rows])
    text = report.tables(run)
    assert "| 12.3 / 24.6 " in text
    assert "| 1 + 2 " in text
    with pytest.raises(ValueError, match="not a result"):
        figures.parse(['{"kind": "else"}'])


def test_tables_line_up() -> None:
    lines = report.table(("a", "long head"), [("1,000", "x")])
    assert lines == ["| a     | long head |", "|-------|-----------|", "| 1,000 | x         |", ""]


# The translation, in C.


class Group(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_int), ("first", ctypes.c_size_t), ("n", ctypes.c_size_t))


class Search(ctypes.Structure):
    _fields_ = (
        ("phys", ctypes.c_void_p),
        ("n", ctypes.c_size_t),
        ("left", ctypes.c_size_t),
        ("max_pfn", ctypes.c_uint64),
        ("bits", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("slot_bits", ctypes.c_uint),
        ("found", ctypes.c_size_t),
        ("va", ctypes.POINTER(ctypes.c_uint64)),
        ("index", ctypes.POINTER(ctypes.c_uint32)),
        ("groups", ctypes.POINTER(Group)),
        ("nr_groups", ctypes.c_size_t),
        ("max_groups", ctypes.c_size_t),
    )


class Table(ctypes.Structure):
    _fields_ = (("owner", ctypes.c_void_p), ("frames", ctypes.c_uint64))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("gcc") is None:
        require("gcc", "gcc is not installed (Debian: gcc)")
    out = tmp_path_factory.mktemp("translate") / "translate.so"
    command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(out)]
    subprocess.run([*command, str(SOURCE)], check=True)
    return ctypes.CDLL(str(out))


def visit(
    library: ctypes.CDLL, name: str, state: ctypes.Structure, pid: int, va: int, run: Sequence[int]
) -> int:
    entries = np.array(run, np.uint64)
    pointer = entries.ctypes.data_as(ctypes.c_void_p)
    function = getattr(library, name)
    return int(
        function(
            ctypes.byref(state), pid, ctypes.c_uint64(va), pointer, ctypes.c_size_t(len(entries))
        )
    )


def test_a_search_finds_the_pages_and_which_they_are(library: ctypes.CDLL) -> None:
    wanted = np.array([7, 1_500_000, 9, 12], np.uint64) << np.uint64(12)
    search = Search()
    library.search_start(
        ctypes.byref(search), wanted.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(wanted))
    )
    first = [0, PRESENT | 8, PRESENT | 9, SWAPPED | 7, PRESENT | 7]
    assert visit(library, "search_visit", search, 100, 0x10000, first) == 1
    # 9 is shared with process 100 and was found there; 2**21 lies beyond all that is wanted.
    second = [PRESENT | 9, PRESENT | 2**21, PRESENT | 1_500_000]
    assert visit(library, "search_visit", search, 200, 0x7F0000000000, second) == 1
    found = [(search.index[i], search.va[i]) for i in range(search.found)]
    assert found == [(2, 0x12000), (0, 0x14000), (1, 0x7F0000002000)]
    groups = [search.groups[i] for i in range(search.nr_groups)]
    assert [(g.pid, g.first, g.n) for g in groups] == [(100, 0, 2), (200, 2, 1)]
    assert search.left == 1
    # The last one ends the scan.
    assert visit(library, "search_visit", search, 200, 0x1000, [PRESENT | 12]) == 0
    library.search_free(ctypes.byref(search))


def test_a_search_of_many_frames_mixes_none_up(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(5)
    frames = rng.permutation(50_000).astype(np.uint64)
    wanted = frames[:20_000] << np.uint64(12)
    search = Search()
    library.search_start(
        ctypes.byref(search), wanted.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(wanted))
    )
    order = rng.permutation(50_000)
    entries = (np.uint64(PRESENT) | order.astype(np.uint64)).tolist()
    assert visit(library, "search_visit", search, 5, 0, entries) == 0
    assert search.found == 20_000
    va = np.ctypeslib.as_array(search.va, (20_000,))
    index = np.ctypeslib.as_array(search.index, (20_000,))
    assert (order[va >> np.uint64(12)] == frames[index]).all()
    library.search_free(ctypes.byref(search))


def test_a_table_knows_the_owner_of_every_frame(library: ctypes.CDLL) -> None:
    library.table_find.restype = ctypes.c_int
    table, va = Table(), ctypes.c_uint64()
    library.table_start(ctypes.byref(table), ctypes.c_uint64(1000))
    entries = [PRESENT | 5, 0, SWAPPED | 6, PRESENT | 999, PRESENT | 1000]
    visit(library, "table_visit", table, 4_000_000, 0x7FFF_FFFF_0000, entries)

    def find(pfn: int) -> tuple[int, int]:
        pid = library.table_find(
            ctypes.byref(table), ctypes.c_uint64(pfn << 12 | 0x123), ctypes.byref(va)
        )
        return pid, va.value

    assert find(5) == (4_000_000, 0x7FFF_FFFF_0000)
    assert find(999) == (4_000_000, 0x7FFF_FFFF_3000)
    assert [find(pfn)[0] for pfn in (6, 7, 1000, 10**9)] == [0, 0, 0, 0]
    library.table_free(ctypes.byref(table))


def test_a_scan_of_this_machine_ends(library: ctypes.CDLL) -> None:
    """Whatever /proc shows here: every page map is read in whole entries and without an error."""
    visitor = ctypes.CFUNCTYPE(
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.POINTER(ctypes.c_uint64),
        ctypes.c_size_t,
    )
    seen: list[int] = []

    @visitor
    def stop(_: int, pid: int, va: int, __: object, n: int) -> int:
        seen.append(n)
        assert pid > 0
        assert va % 4096 == 0
        return int(len(seen) < 10)

    library.scan_processes.restype = ctypes.c_size_t
    assert library.scan_processes(stop, None) == sum(seen)
