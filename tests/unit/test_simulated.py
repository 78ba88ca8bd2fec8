# SPDX-License-Identifier: Apache-2.0
"""The simulated host does what the kernel does, as far as that shows through the waist."""

import errno
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakehost import hot_only, machine, pages_of, topology_of
from tierd.config import Config, Mode, Sampling, SimulatedNode, Simulation, Workload
from tierd.engine import Engine
from tierd.host import KPF, NO_PFN, Feature, Host, KernelError, MoveOption
from tierd.host.frames import BLOCK, FREE, HOLE, KERNEL, FrameStore, Span
from tierd.host.machine import Failures
from tierd.host.simulated import RealClock, SimulatedHost, VirtualClock
from tierd.host.workload import HotSet, Permutation, Scan, Zipf, pattern
from tierd.movers.move_phys_pages import MovePhysPages
from tierd.samplers.page_idle import PageIdleSampler

ALL = np.uint64(2**64 - 1)

MIXED = {"8KiB": "10%", "16KiB": "20%", "64KiB": "30%", "1MiB": "10%", "2MiB": "20%"}
FOLIOS: list[dict[str, str]] = [{}, {"2MiB": "100%"}, {"64KiB": "100%"}, MIXED]


def idle_bits(host: SimulatedHost, start: int, words: int) -> np.ndarray:
    """bool per frame: read the idle bitmap."""
    out = np.empty(words, np.uint64)
    host.read_idle(start, out)
    return np.unpackbits(out.view(np.uint8), bitorder="little").astype(bool)


def test_it_is_a_host_with_every_feature_named() -> None:
    host: Host = machine(absent={Feature.PAGE_IDLE: "switched off for this test"})
    found = {entry.name: entry for entry in host.capabilities()}
    assert set(found) == set(Feature)
    assert found[Feature.PAGE_IDLE].reason == "switched off for this test"
    assert not found[Feature.PAGE_IDLE].available
    assert found[Feature.MOVE_PHYS_PAGES].available
    assert host.page_size == 4096


def folios_of(host: SimulatedHost) -> dict[int, list[int]]:
    """Frames of each folio by its first page's id, in the order of the pages."""
    store = host.machine.frames
    frames = np.concatenate([pages_of(host, index) for index in range(len(host.programs))])
    ids = store.ids(frames)
    order = np.argsort(ids)
    ids, frames = ids[order], frames[order]
    found: dict[int, list[int]] = {}
    for first, frame in zip((ids - store.within(ids)).tolist(), frames.tolist(), strict=True):
        found.setdefault(first, []).append(frame)
    return found


def test_memory_is_counted_and_a_program_that_does_not_fit_is_an_error() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="300MiB"),), kernel_share=0.0)
    rooms = {room.node: room for room in host.node_memory()}
    used = sum(room.total - room.free for room in rooms.values())
    assert used == 300 * 2**20
    assert rooms[0].free >= rooms[0].high_watermark  # first touch stops there
    assert rooms[0].free < rooms[0].high_watermark + 2 * 2**20
    with pytest.raises(ValueError, match="does not fit"):
        machine(workloads=(Workload(kind="uniform", size="511MiB"),))


def test_idle_bits_of_tails_free_frames_and_the_kernel_read_as_accessed() -> None:
    host = machine(
        workloads=(Workload(kind="uniform", size="100MiB", accesses=1e-9),), folios={"2MiB": "50%"}
    )
    span = host.nodes()[0].spans[0]
    words = span.frames // 64
    host.set_idle(span.start, np.full(words, ALL))
    idle = idle_bits(host, span.start, words)
    frames = np.arange(span.start, span.end, dtype=np.uint64)
    flags = host.flags(frames)
    heads = (flags & (KPF.LRU | KPF.COMPOUND_TAIL)) == KPF.LRU
    assert heads.any()
    assert (flags & KPF.COMPOUND_TAIL).any()
    assert (flags & KPF.BUDDY).any()
    assert (flags & KPF.SLAB).any()
    assert (idle == heads).all()


def test_only_bits_that_are_set_are_marked() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="64MiB", accesses=1e-9),), folios={})
    start = int(pages_of(host, 0)[0])
    host.set_idle(start, np.array([0b1010, 0], np.uint64))
    assert np.flatnonzero(idle_bits(host, start, 2)).tolist() == [1, 3]


def test_accesses_clear_idle_bits_at_the_true_rate() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="64MiB", accesses=16384),), folios={})
    start = int(pages_of(host, 0)[0])
    words = 16384 // 64
    host.set_idle(start, np.full(words, ALL))
    host.sleep(1.0)  # one access per page and second
    first = idle_bits(host, start, words)
    assert first.mean() == pytest.approx(np.exp(-1), abs=0.02)
    host.sleep(1.0)
    second = idle_bits(host, start, words)
    assert second.mean() == pytest.approx(np.exp(-2), abs=0.02)
    assert not (second & ~first).any()  # nothing becomes idle by itself


@pytest.mark.parametrize(("size", "pages"), [("16KiB", 4), ("64KiB", 16), ("2MiB", 512)])
def test_a_folio_is_accessed_when_any_of_its_pages_is(size: str, pages: int) -> None:
    host = machine(workloads=(Workload(kind="uniform", size="64MiB"),), folios={size: "100%"})
    hot_only(host, 0, hot=pages + 1, accesses=100.0 * pages)
    frames = pages_of(host, 0)
    start = int(frames[0])
    host.set_idle(start, np.full(len(frames) // 64, ALL))
    host.sleep(10.0)
    idle = idle_bits(host, start, len(frames) // 64)
    assert not idle[: 2 * pages].any()
    assert idle[2 * pages :: pages].all()
    assert idle.sum() == len(frames) // pages - 2


def test_bits_that_are_not_a_word_s_are_refused_and_holes_are_ignored() -> None:
    host = machine()
    with pytest.raises(KernelError):
        host.set_idle(32, np.zeros(1, np.uint64))
    end = host.nodes()[0].spans[0].end
    host.set_idle(end - 64, np.full(3, ALL))
    assert not idle_bits(host, end - 64, 3).any()


@pytest.mark.parametrize("folios", FOLIOS, ids=str)
def test_flags_run_and_flags_agree(folios: dict[str, str]) -> None:
    host = machine(workloads=(Workload(kind="uniform", size="96MiB"),), folios=folios)
    _, frames = split_by_node(host, 0)
    assert not frames.size
    move(host, pages_of(host, 0)[100:9000:7], target=1, source=0)
    span = host.nodes()[0].spans[0]
    for start, count in ((span.start, 8), (span.start + 500, 40), (span.end - 100, 1000)):
        out = np.empty(count, np.uint64)
        host.flags_run(start, out)
        frames = np.arange(start, start + count, dtype=np.uint64)
        assert out.tolist() == host.flags(frames).tolist()


def move(
    host: SimulatedHost,
    pfn: np.ndarray,
    target: int = 0,
    source: int = 1,
    options: MoveOption = MoveOption.SHARED,
) -> tuple[np.ndarray, np.ndarray]:
    result = host.move_phys_pages(
        pfn.astype(np.uint64),
        np.full(len(pfn), target, np.int32),
        np.full(len(pfn), source, np.int32),
        options,
    )
    assert result.attempted == len(pfn)
    return result.status, result.new_pfn


def split_by_node(host: SimulatedHost, program: int) -> tuple[np.ndarray, np.ndarray]:
    frames = pages_of(host, program)
    node = host.machine.frames.node[host.machine.frames.locate(frames)]
    return frames[node == 0], frames[node == 1]


def test_a_moved_page_has_a_new_frame_and_its_old_one_is_free() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="300MiB"),), folios={})
    fast, slow = split_by_node(host, 0)
    status, new = move(host, fast[:1000], target=1, source=0)
    assert (status == 1).all()
    assert (host.flags(fast[:1000]) & KPF.BUDDY).all()
    assert (host.machine.frames.node[host.machine.frames.locate(new)] == 1).all()
    status, back = move(host, slow[:1000], target=0, source=1)
    assert (status == 0).all()
    assert not set(back.tolist()) & set(new.tolist())
    again, _ = move(host, fast[:1000], target=1, source=0)
    assert set(again.tolist()) <= {1, -errno.ENOENT}  # free, or the page that came instead


def test_a_huge_page_moves_whole_by_any_of_its_frames() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="300MiB"),), folios={"2MiB": "100%"})
    _, slow = split_by_node(host, 0)
    fast, _ = split_by_node(host, 0)
    move(host, fast[::BLOCK][:4], target=1, source=0)
    status, new = move(host, np.array([slow[3], slow[0], slow[BLOCK]]))
    assert status.tolist() == [0, 0, 0]
    assert int(new[0]) == int(new[1]) + 3
    head = host.flags(new[1:2])[0]
    assert head & KPF.COMPOUND_HEAD
    assert host.programs[0].resident[0] == len(fast) - 4 * BLOCK + 2 * BLOCK


def test_folios_are_of_the_sizes_asked_for_and_show_as_the_kernel_s_do() -> None:
    """As stable_page_flags() of Linux 6.12 has it: of the flags of a large folio only
    COMPOUND_HEAD is its head's alone, and THP says that it is large, not how large."""
    host = machine(workloads=(Workload(kind="uniform", size="400MiB"),), folios=MIXED)
    move(host, split_by_node(host, 0)[1][::50], target=0, source=1)
    folios = folios_of(host)
    sizes = np.array([len(frames) for frames in folios.values()])
    for pages, share in ((2, 0.1), (4, 0.2), (16, 0.3), (256, 0.1), (512, 0.2), (1, 0.1)):
        assert pages * (sizes == pages).sum() / sizes.sum() == pytest.approx(share, abs=0.1)
    user = int(KPF.UPTODATE | KPF.LRU | KPF.MMAP | KPF.ANON | KPF.SWAPBACKED)
    head, tail = (int(bit | KPF.THP) | user for bit in (KPF.COMPOUND_HEAD, KPF.COMPOUND_TAIL))
    for frames in folios.values():
        assert frames == list(range(frames[0], frames[0] + len(frames)))
        assert frames[0] % len(frames) == 0
        flags = host.machine.flags(np.array(frames, np.uint64)).tolist()
        assert flags == ([head, *[tail] * (len(frames) - 1)] if len(frames) > 1 else [user])


def test_a_folio_moves_whole_by_any_of_its_frames_and_tails_get_its_result() -> None:
    load = Workload(kind="uniform", size="300MiB", cgroup="a")
    host = machine(workloads=(load,), folios={"64KiB": "100%"})
    fast, slow = split_by_node(host, 0)
    move(host, fast[::16][:10], target=1, source=0)
    assert host.programs[0].resident[0] == len(fast) - 160
    before = host.node_memory()
    asked = np.array([slow[19], slow[3], slow[16], slow[0], slow[3]])
    status, new = move(host, asked)
    assert status.tolist() == [0] * 5
    first = new.astype(np.int64) - [3, 3, 0, 0, 3]
    assert (first % 16 == 0).all()
    assert first[1] == first[3] == first[4] != first[0] == first[2]
    moved = np.concatenate((np.arange(first[0], first[0] + 16), np.arange(first[1], first[1] + 16)))
    assert (host.flags(slow[:32]) == KPF.BUDDY).all()
    assert host.map_counts(moved.astype(np.uint64)).tolist() == [1] * 32
    inode = {group.path: group.inode for group in host.cgroups()}["a"]
    assert (host.cgroup_inodes(moved.astype(np.uint64)) == inode).all()
    after = host.node_memory()
    assert [old.free - new.free for old, new in zip(before, after, strict=True)] == [
        32 * 4096,
        -32 * 4096,
    ]
    assert not idle_bits(host, int(first.min()) // 64 * 64, 1).any()


def test_a_folio_finds_no_room_where_what_is_free_is_in_pieces() -> None:
    host = machine(
        workloads=(
            Workload(kind="uniform", size="250MiB", folios={}),
            Workload(kind="uniform", size="64MiB", folios={"16KiB": "100%"}),
        ),
        kernel_share=0.0,
    )
    fast, _ = split_by_node(host, 0)
    _, slow = split_by_node(host, 1)
    filler = pages_of(host, 0)[: len(fast)]
    host.machine.reserve = lambda node: 0  # type: ignore[method-assign]
    whole = host.machine.frames.free_blocks(0, 100)
    host.machine.frames.reserve(whole)
    move(host, filler[1::4], target=1, source=0)
    move(host, filler[2::4], target=1, source=0)
    free = host.node_memory()[0].free
    assert free == 4096 * (len(filler) // 4 * 2)
    status, new = move(host, slow[:8])
    assert status.tolist() == [-errno.ENOMEM] * 8
    assert (new == NO_PFN).all()
    assert host.node_memory()[0].free == free
    move(host, filler[400:404], target=1, source=0)
    status, new = move(host, slow[:8])
    assert status.tolist() == [0] * 4 + [-errno.ENOMEM] * 4
    assert new[:4].tolist() == filler[400:404].tolist()


def test_a_folio_refuses_as_a_whole() -> None:
    host = machine(
        workloads=(Workload(kind="uniform", size="64MiB"),),
        folios={"64KiB": "100%"},
        failures=Failures(pinned=0.5),
    )
    frames, _ = split_by_node(host, 0)
    status, new = move(host, frames, target=1, source=0)
    by_folio = status.reshape(-1, 16)
    assert (by_folio == by_folio[:, :1]).all()
    assert set(np.unique(status).tolist()) == {1, -errno.EBUSY}
    assert (status == 1).mean() == pytest.approx(0.5, abs=0.1)
    assert ((new != NO_PFN) == (status == 1)).all()


def test_statuses_by_cause() -> None:
    host = machine(
        workloads=(
            Workload(kind="uniform", size="270MiB", cgroup="free"),
            Workload(kind="uniform", size="64MiB", cgroup="bound/inner"),
        ),
        cpusets={"bound": frozenset({1})},
        folios={},
    )
    _, free = split_by_node(host, 0)
    _, bound = split_by_node(host, 1)
    end = host.nodes()[1].spans[0].end
    status, new = move(host, np.array([bound[0], end, end - 1, 10**9]))
    assert status.tolist() == [-errno.EACCES, -errno.ENXIO, -errno.ENOENT, -errno.ENXIO]
    assert (new == NO_PFN).all()
    assert move(host, free[:1], target=7)[0].tolist() == [-errno.ENODEV]
    assert move(host, free[:1], source=0)[0].tolist() == [-errno.ESTALE]
    assert move(host, free[:1], target=1)[0].tolist() == [1]
    mems = {group.path: group.mems for group in host.cgroups()}
    assert mems["bound/inner"] == frozenset({1})
    host.set_cpuset("bound", frozenset({0, 1}))
    fast, _ = split_by_node(host, 0)
    move(host, fast[:10], target=1, source=0)
    assert move(host, bound[:1])[0].tolist() == [0]


@pytest.mark.parametrize(
    ("failures", "options", "code"),
    [
        (Failures(pinned=1.0), MoveOption.SHARED, errno.EBUSY),
        (Failures(busy=1.0), MoveOption.SHARED, errno.EBUSY),
        (Failures(again=1.0), MoveOption.SHARED, errno.EAGAIN),
        (Failures(mappings=1.0), MoveOption.SHARED, errno.EMLINK),
        (Failures(unmapped=1.0), MoveOption.SHARED, errno.ENODATA),
        (Failures(kind=1.0), MoveOption.UNMAPPED, errno.EOPNOTSUPP),
        (Failures(vma=1.0), MoveOption.SHARED, errno.EFAULT),
        (Failures(shared=1.0), MoveOption(0), errno.EPERM),
        (Failures(mempolicy=1.0), MoveOption.MEMPOLICY, errno.EXDEV),
    ],
)
def test_failures_by_cause(failures: Failures, options: MoveOption, code: int) -> None:
    host = machine(workloads=(Workload(kind="uniform", size="300MiB"),), failures=failures)
    _, slow = split_by_node(host, 0)
    status, _ = move(host, slow[:1], options=options)
    assert status.tolist() == [-code]


def test_what_refuses_for_its_errno_is_about_its_share_and_does_so_always() -> None:
    host = machine(
        workloads=(Workload(kind="uniform", size="64MiB"),),
        failures=Failures(vma=0.25, again=0.25),
        folios={},
    )
    fast, _ = split_by_node(host, 0)
    first, _ = move(host, fast[:4000], target=0, source=0)
    tries = [move(host, fast[:4000], target=7, source=0)[0] for _ in range(2)]
    assert (first == 0).all()  # they are there already
    assert all((each == -errno.ENODEV).all() for each in tries)
    status, _ = move(host, fast[:4000], target=1, source=0)
    shares = [float((status == -code).mean()) for code in (errno.EFAULT, errno.EAGAIN)]
    assert shares == pytest.approx([0.25, 0.75 * 0.25], abs=0.03)
    again, _ = move(host, fast[:4000][status < 0], target=1, source=0)
    lasting = status[status < 0] == -errno.EFAULT
    assert (again[lasting] == -errno.EFAULT).all()
    assert (again[~lasting] == 1).mean() == pytest.approx(0.75, abs=0.05)


def test_shared_and_bound_pages_move_where_nobody_asks() -> None:
    host = machine(
        workloads=(Workload(kind="uniform", size="64MiB"),),
        failures=Failures(shared=0.5, mempolicy=0.5),
        folios={},
    )
    fast, _ = split_by_node(host, 0)
    status, _ = move(host, fast[:100], target=1, source=0, options=MoveOption.SHARED)
    assert (status == 1).all()


def test_the_target_stays_above_its_watermark() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="400MiB"),), folios={})
    _, slow = split_by_node(host, 0)
    status, _ = move(host, slow[:2000])
    assert -errno.ENOMEM in status.tolist()
    room = host.node_memory()[0]
    assert room.free >= room.high_watermark


def test_without_the_feature_the_call_is_refused() -> None:
    host = machine(absent={Feature.MOVE_PHYS_PAGES: "not in this kernel"})
    with pytest.raises(KernelError):
        move(host, np.zeros(1, np.uint64))


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from(FOLIOS))
def test_pages_are_conserved(seed: int, folios: dict[str, str]) -> None:
    """Whatever is moved, every page is in exactly one frame and the counts agree."""
    host = machine(
        fast="16MiB",
        slow="24MiB",
        workloads=(
            Workload(kind="uniform", size="12MiB", cgroup="a"),
            Workload(kind="uniform", size="10MiB", cgroup="b"),
        ),
        folios=folios,
    )
    rng = np.random.default_rng(seed)
    spans = [node.spans[0] for node in host.nodes()]
    for _ in range(5):
        chosen = [rng.integers(s.start, s.end, 300) for s in spans]
        pfn = np.concatenate(chosen)
        target = rng.integers(0, 2, len(pfn)).astype(np.int32)
        source = np.repeat(np.array([0, 1], np.int32), 300)
        host.move_phys_pages(pfn.astype(np.uint64), target, source, MoveOption.SHARED)
    store = host.machine.frames
    ids = store.rows(np.arange(store.blocks)).reshape(-1)
    pages = np.sort(ids[ids >= 0])
    assert pages.tolist() == list(range(22 * 256))
    for frames in folios_of(host).values():
        assert frames == list(range(frames[0], frames[0] + len(frames)))
        assert frames[0] % len(frames) == 0
    for index, program in enumerate(host.programs):
        fast, slow = split_by_node(host, index)
        assert program.resident.get(0, 0) == len(fast)
        assert program.resident.get(1, 0) == len(slow)
        assert host.cgroup_memory("ab"[index]) == {
            node: pages * 4096 for node, pages in program.resident.items()
        }


@pytest.mark.parametrize("folios", FOLIOS, ids=str)
def test_exit_frees_and_start_takes_other_frames_of_the_same_program(
    folios: dict[str, str],
) -> None:
    host = machine(workloads=(Workload(kind="uniform", size="300MiB"),), folios=folios)
    free = [room.free for room in host.node_memory()]
    fast, _ = split_by_node(host, 0)
    move(host, fast[5:700], target=1, source=0)
    every = pages_of(host, 0)
    host.exit(0)
    assert host.cgroup_memory("") == {}
    assert not pages_of(host, 0).size
    assert (host.flags(every) == KPF.BUDDY).all()
    host.start(0)
    assert [room.free for room in host.node_memory()] == free


def test_frame_store_codes() -> None:
    store = FrameStore((Span(0, 512, 1536), Span(1, 4096, 4608)), 1024)
    store.reserve(np.array([0]))
    store.fill(np.array([2]), np.array([512]))
    frames = np.array([512, 1024, 4096, 4100, 0, 2000, 4608], np.uint64)
    assert store.ids(frames).tolist() == [KERNEL, FREE, 512, 516, HOLE, HOLE, HOLE]
    with pytest.raises(ValueError, match="multiples of 512"):
        FrameStore((Span(0, 0, 100),), 0)


def test_hot_folios_end_up_in_fast_memory_as_wholes() -> None:
    """The daemon's engine at work on a machine of 64 KiB folios."""
    host = machine(
        fast="128MiB",
        slow="384MiB",
        workloads=(
            # In fast memory at first, and rarely used.
            Workload(kind="uniform", size="120MiB", accesses=100),
            Workload(kind="uniform", size="64MiB", accesses=1e6),
        ),
        folios={"64KiB": "100%"},
    )
    topology = topology_of(host)
    config = Config(version=1, mode=Mode.TIER, sampling=Sampling(cpu="100%"))
    sampler = PageIdleSampler(host, topology, config.sampling)
    engine = Engine(host, config, topology, [sampler], MovePhysPages(host))
    moved = 0
    for _ in range(30):
        report = engine.cycle()
        moved += sum(flow.moved for flow in report.flows)
        host.sleep(1.0)
    rare, hot = host.programs
    assert hot.resident[0] > 0.95 * hot.pages
    assert moved % 16 == 0
    assert moved >= hot.resident[0]
    for program in (rare, hot):
        assert sum(program.resident.values()) == program.pages
    for frames in folios_of(host).values():
        assert len(frames) == 16
        assert frames == list(range(frames[0], frames[0] + 16))


# -- workloads ---------------------------------------------------------------------------------


def test_zipf_ranks_are_a_permutation_and_rates_add_up() -> None:
    load = Zipf(10_000, 5e6, 0.99, seed=3)
    index = np.arange(10_000)
    assert sorted(load.ranks(index).tolist()) == list(range(10_000))
    rates = load.rates(index, 0.0)
    assert rates.sum() == pytest.approx(5e6, rel=1e-3)
    assert rates.max() / rates.min() == pytest.approx(10_000**0.99, rel=1e-6)


@pytest.mark.parametrize("skew", [0.6, 1.0, 1.2])
def test_zipf_s_sum_holds_for_many_pages(skew: float) -> None:
    load = Zipf(400_000, 1.0, skew)
    assert load.rates(np.arange(400_000), 0.0).sum() == pytest.approx(1.0, rel=1e-4)


def test_phase_jumps_and_counts_across_the_jump() -> None:
    load = HotSet(1000, 100.0, hot=100, period=10.0, share=1.0)
    index = np.arange(1000)
    assert np.flatnonzero(load.rates(index, 5.0)).tolist() == list(range(100))
    assert np.flatnonzero(load.rates(index, 15.0)).tolist() == list(range(100, 200))
    expected = load.expected(index, np.full(1000, 8.0), 13.0)
    assert expected[:100] == pytest.approx(2.0)
    assert expected[100:200] == pytest.approx(3.0)
    assert not expected[200:].any()


def test_a_shift_replaces_part_of_the_hot_set() -> None:
    spec = Workload(kind="shift", size="4MiB", hot="400KiB", shift="25%", period="10s")
    load = pattern(spec, 1024, 4096, 1)
    index = np.arange(1024)
    hot = [
        np.flatnonzero(load.rates(index, now) > load.rates(index, now).mean()) for now in (5, 15)
    ]
    assert [len(each) for each in hot] == [100, 100]
    assert len(np.intersect1d(*hot)) == 75


def test_a_permutation_keeps_all_rates_and_gives_them_to_other_regions() -> None:
    load = Permutation(1000, 500.0, region=100, skew=1.0, period=10.0, seed=3)
    index = np.arange(1000)
    before, after = load.rates(index, 5.0), load.rates(index, 15.0)
    assert before.sum() == pytest.approx(500.0)
    assert sorted(before.tolist()) == pytest.approx(sorted(after.tolist()))
    assert before.tolist() != after.tolist()
    assert len(np.unique(before)) == 10
    expected = load.expected(index, np.full(1000, 8.0), 13.0)
    assert expected == pytest.approx(2 * before + 3 * after)


def test_many_tenants_have_cgroups_of_their_own_and_end_one_after_the_other() -> None:
    tenants = Workload(
        kind="uniform", size="8MiB", programs=10, lifetime="100s", cgroup="kubepods.slice"
    )
    host = machine(workloads=(tenants,), folios={})
    assert len(host.programs) == 10
    paths = {cgroup.path for cgroup in host.cgroups()}
    assert {f"kubepods.slice/{number}" for number in range(10)} <= paths
    start = int(pages_of(host, 0)[0])
    host.set_idle(start, np.full(8, ALL))
    host.sleep(99.0)
    used = sum(room.total - room.free for room in host.node_memory())
    for number in range(1, 10):
        host.machine.exit(number)
    host.sleep(2.0)  # the first one's time is over
    assert not idle_bits(host, start, 8).any()  # the frames hold another's pages now
    assert host.programs[0].alive
    assert [program.alive for program in host.programs[1:]] == [False] * 9
    host.sleep(200.0)  # all others' too
    host.flags(np.array([start], np.uint64))
    assert all(program.alive for program in host.programs)
    assert sum(room.total - room.free for room in host.node_memory()) == used


def test_a_scan_touches_the_pages_it_passed_and_no_others() -> None:
    load = Scan(1000, 64.0 * 10)  # 10 pages a second
    index = np.arange(1000)
    touched = np.flatnonzero(load.expected(index, np.full(1000, 3.0), 5.0))
    assert len(touched) == 20
    assert touched.max() - touched.min() == 19
    wrapped = np.flatnonzero(load.expected(index, np.full(1000, 99.5), 100.5))
    assert len(wrapped) == 10


def test_patterns_of_the_policy_file() -> None:
    for kind in ("zipf", "phase", "hotset", "shift", "permutation", "scan", "uniform"):
        found = pattern(Workload(kind=kind, size="1GiB"), 262_144, 4096, 5)  # type: ignore[arg-type]
        assert found.rates(np.arange(100), 0.0).shape == (100,)


# -- clocks and costs ----------------------------------------------------------------------------


def test_runs_on_a_virtual_clock_repeat_exactly() -> None:
    def run() -> tuple[list[int], float, float]:
        host = machine(workloads=(Workload(kind="zipf", size="64MiB", accesses=1e4),))
        start = int(pages_of(host, 0)[0])
        host.set_idle(start, np.full(64, ALL))
        host.sleep(1.0)
        words = np.empty(64, np.uint64)
        host.read_idle(start, words)
        return words.tolist(), host.monotonic(), host.cpu_times().total

    assert run() == run()


def test_the_kernel_s_work_costs_modelled_time_and_the_simulator_s_none() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="64MiB"),), folios={})
    before, now = host.cpu_times(), host.monotonic()
    host.set_idle(int(pages_of(host, 0)[0]), np.full(256, ALL))
    cost = host.cpu_times() - before
    assert cost.user == 0.0
    assert cost.system == pytest.approx(16384 * 0.15e-6, rel=0.01)
    assert host.monotonic() - now == pytest.approx(cost.system)


def test_a_real_clock_can_be_woken() -> None:
    spec = Simulation(nodes=(SimulatedNode(id=0, size="4MiB", cpus=1),))
    host = SimulatedHost(spec, RealClock())
    host.interrupt()
    began = time.monotonic()
    host.sleep(30)
    assert time.monotonic() - began < 5
    assert host.cpu_times().user >= 0


def test_true_shares_of_accesses() -> None:
    host = machine(workloads=(Workload(kind="uniform", size="400MiB"),), folios={})
    fast, slow = split_by_node(host, 0)
    shares = host.access_shares()
    assert shares[0] == pytest.approx(len(fast) / (len(fast) + len(slow)))
    assert sum(shares.values()) == pytest.approx(1.0)
    expected = shares[0] * 1e-7 + shares[1] * 3e-7
    assert host.access_latency() == pytest.approx(expected)
    assert host.rates(np.array([slow[0], 10**9], np.uint64))[1] == 0


def test_a_large_machine_is_built_at_once() -> None:
    """256 GiB: placement is kept by block, so building it is no work."""
    began = time.monotonic()
    host = machine(fast="64GiB", slow="192GiB", workloads=(Workload(kind="zipf", size="200GiB"),))
    assert time.monotonic() - began < 60
    frames = host.nodes()[1].spans[0].start + np.arange(1000, dtype=np.uint64)
    assert (host.rates(frames) > 0).all()
    assert isinstance(host._clock, VirtualClock)
