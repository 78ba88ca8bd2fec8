# SPDX-License-Identifier: Apache-2.0
"""What a frame is, and whose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakehost import machine, pages_of, topology_of
from tierd.config import Class, Workload
from tierd.host import KPF, Cgroup, Feature
from tierd.pages import OwnerTable, PageReader, PageReason, class_pattern, judge


class Flags:
    """A host of which only page flags and owners are asked: flags by frame, 0 elsewhere."""

    def __init__(self, folios: list[tuple[int, int, int]]) -> None:
        """folios: head, order, flags of the head."""
        self.table: dict[int, int] = {}
        for head, order, flags in folios:
            self.table[head] = flags | (int(KPF.COMPOUND_HEAD) if order else 0)
            for tail in range(head + 1, head + (1 << order)):
                self.table[tail] = flags | int(KPF.COMPOUND_TAIL)

    def flags(self, pfn: np.ndarray) -> np.ndarray:
        return np.array([self.table.get(frame, 0) for frame in pfn.tolist()], np.uint64)

    def cgroup_inodes(self, pfn: np.ndarray) -> np.ndarray:
        return pfn + np.uint64(1_000_000)


LRU = int(KPF.LRU | KPF.ANON | KPF.MMAP)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.data())
def test_every_tail_folds_into_its_head(orders: list[int], data: st.DataObject) -> None:
    """Folios of any size, naturally aligned, looked up by any of their frames."""
    folios, at = [], 0
    for order in orders:
        at = -(-at // (1 << order)) * (1 << order)
        folios.append((at, order, LRU))
        at += 1 << order
    picks = sorted(
        {
            head + data.draw(st.integers(0, (1 << order) - 1))
            for head, order, _ in data.draw(st.lists(st.sampled_from(folios), min_size=1))
        }
    )
    host = machine(fast="4MiB", slow="4MiB")
    reader = PageReader(Flags(folios), topology_of(host))  # type: ignore[arg-type]
    info = reader.describe(np.array(picks, np.uint64))
    head_of = {frame: (h, o) for h, o, _ in folios for frame in range(h, h + (1 << o))}
    assert info.pfn.tolist() == sorted({head_of[frame][0] for frame in picks})
    for row, frame in zip(info.index.tolist(), picks, strict=True):
        head, order = head_of[frame]
        assert int(info.pfn[row]) == head
        assert int(info.pages[row]) == 1 << order


def test_owners_are_read_for_what_can_move_and_for_nothing_else() -> None:
    host = machine(fast="4MiB", slow="4MiB")
    flags = Flags([(0, 0, LRU), (1, 0, int(KPF.SLAB)), (2, 0, LRU | int(KPF.HWPOISON))])
    info = PageReader(flags, topology_of(host)).describe(  # type: ignore[arg-type]
        np.array([0, 1, 2, 3, 2**40], np.uint64)
    )
    assert info.movable.tolist() == [True, False, False, False, False]
    assert info.cgroup.tolist() == [1_000_000, 0, 0, 0, 0]
    assert info.reason.tolist() == [
        PageReason.NONE,
        PageReason.KERNEL,
        PageReason.POISONED,
        PageReason.FREE,
        PageReason.FOREIGN,
    ]
    assert info.node.tolist() == [0, 0, 0, 0, -1]


def test_describe_on_a_simulated_host() -> None:
    host = machine(
        workloads=(Workload(kind="uniform", size="64MiB", cgroup="a/b"),),
        folios={"16KiB": "25%", "64KiB": "25%", "2MiB": "25%"},
    )
    frames = pages_of(host, 0)
    info = PageReader(host, topology_of(host)).describe(frames)
    assert int(info.pages.sum()) == len(frames)
    assert set(info.pages.tolist()) == {1, 4, 16, 512}
    assert info.movable.all()
    inode = {cgroup.path: cgroup.inode for cgroup in host.cgroups()}["a/b"]
    assert set(info.cgroup.tolist()) == {inode}


def test_without_kpagecgroup_nobody_owns_anything() -> None:
    host = machine(
        workloads=(Workload(kind="uniform", size="4MiB"),), absent={Feature.KPAGECGROUP: "gone"}
    )
    info = PageReader(host, topology_of(host), owners=False).describe(pages_of(host, 0))
    assert not info.cgroup.any()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (KPF.LRU | KPF.ANON, PageReason.NONE),
        (KPF.LRU | KPF.ANON | KPF.UNEVICTABLE | KPF.MLOCKED, PageReason.NONE),
        (KPF.ANON | KPF.MMAP, PageReason.BUSY),
        (KPF.SLAB, PageReason.KERNEL),
        (KPF.PGTABLE, PageReason.KERNEL),
        (KPF.LRU | KPF.HUGE, PageReason.HUGETLB),
        (KPF.ZERO_PAGE | KPF.MMAP, PageReason.ZERO),
        (KPF.BUDDY, PageReason.FREE),
        (KPF.NOPAGE, PageReason.FREE),
        (np.uint64(0), PageReason.FREE),
        (KPF.LRU | KPF.COMPOUND_TAIL, PageReason.KERNEL),
    ],
)
def test_judge(flags: np.uint64, reason: PageReason) -> None:
    assert judge(np.array([flags], np.uint64)).tolist() == [reason]


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("system.slice", "system.slice", True),
        ("system.slice", "system.slice/x.service", True),
        ("system.slice", "system.slice2", False),
        ("system.slice/postgresql*", "system.slice/postgresql@15.service", True),
        ("system.slice/postgresql*", "system.slice/a/postgresql", False),
        ("kubepods.slice/*besteffort*", "kubepods.slice/k-besteffort.slice/pod1/c", True),
        ("*", "a/b/c", True),
        ("*/b", "a/b", True),
        ("*/b", "a/x/b", False),
        ("**/b", "a/x/b", True),
        ("**/b", "b", True),
        ("**", "", True),
        ("a?", "ab", True),
        ("a?", "a/", False),
        ("a.b", "axb", False),
        ("/a/b/", "a/b", True),
    ],
)
def test_class_globs(glob: str, path: str, matches: bool) -> None:
    assert bool(class_pattern(glob).match(path)) is matches


def test_owner_table() -> None:
    cgroups = (
        Cgroup(40, "", frozenset({0, 1})),
        Cgroup(7, "a", frozenset({1})),
        Cgroup(9, "a/b", frozenset({1})),
    )
    table = OwnerTable.build(cgroups, (Class(match="a/*"), Class(match="a")))
    inodes = np.array([9, 7, 40, 0, 8], np.uint64)
    assert table.classes(inodes).tolist() == [0, 1, -1, -1, -1]
    assert table.known(inodes).tolist() == [True, True, True, False, False]
    assert table.allows(inodes, 0).tolist() == [False, False, True, True, False]
    assert table.allows(inodes, 1).tolist() == [True, True, True, True, False]
    assert table.allows(inodes, 5).tolist() == [False, False, False, True, False]


def test_without_cgroups_everything_is_allowed() -> None:
    table = OwnerTable.build((), (Class(match="**"),))
    inodes = np.array([0, 3], np.uint64)
    assert table.allows(inodes, 1).tolist() == [True, True]
    assert table.classes(inodes).tolist() == [-1, -1]
    assert not table.known(inodes).any()
