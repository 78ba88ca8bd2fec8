# SPDX-License-Identifier: Apache-2.0
"""The real host, over fake trees and a recorded system call."""

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakehost import BLOCK_BYTES, make_tree, node_files, two_nodes
from tierd.host import NO_PFN, Capability, Feature, KernelError, MoveOption, Span, sysfs
from tierd.host.kpage import BITMAP_BYTES, FrameFile, IdleBitmap
from tierd.host.linux import NOT_WRITTEN, LinuxHost

PAGE = os.sysconf("SC_PAGE_SIZE")
BLOCK_FRAMES = BLOCK_BYTES // PAGE


class Kernel:
    """Stands for syscall(2): remembers each number, answers count 0 with `probe`."""

    def __init__(self, answer: Callable[..., int] | None = None, probe: int = 0) -> None:
        self.numbers: list[int] = []
        self.answer = answer
        self.probe = probe

    def __call__(self, number: int, *arguments: object) -> int:
        self.numbers.append(number)
        count = arguments[0]
        assert isinstance(count, (ctypes.c_ulong, ctypes.c_int))
        if self.answer is None or count.value == 0:
            ctypes.set_errno(self.probe)
            return -1 if self.probe else 0
        return self.answer(*arguments)


def array(pointer: object, count: int, kind: type) -> np.ndarray:
    """The caller's array behind a pointer argument."""
    assert isinstance(pointer, ctypes.c_void_p)
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(kind)), (count,))


def host(root: Path, kernel: Kernel | None = None) -> LinuxHost:
    return LinuxHost(root / "proc", root / "sys", root / "cgroup", kernel or Kernel())


def named(root: Path, features: str = "mempolicy nonblock unmapped source report", **files: str):
    base = {"number": "548\n", "abi_version": "1\n", "features": features + "\n"} | files
    make_tree(root / "sys/kernel/mm/move_phys_pages", base)


def capability(found: LinuxHost, name: Feature) -> Capability:
    (entry,) = [entry for entry in found.capabilities() if entry.name == name]
    return entry


# -- nodes -------------------------------------------------------------------------------------


def test_nodes_from_memory_blocks(tmp_path: Path) -> None:
    two_nodes(tmp_path / "sys")
    first, second = host(tmp_path).nodes()
    assert first.spans == (
        Span(0, 0, 2 * BLOCK_FRAMES),
        Span(0, 4 * BLOCK_FRAMES, 5 * BLOCK_FRAMES),
    )
    assert second.spans == (Span(1, 8 * BLOCK_FRAMES, 10 * BLOCK_FRAMES),)
    assert (first.cpus, second.cpus) == (frozenset({0, 1}), frozenset())
    assert first.distances == {0: 10, 1: 20}
    assert (first.memory_tier, second.memory_tier) == (4, 22)
    assert second.read_latency == pytest.approx(300e-9)
    assert second.read_bandwidth == 20480 * 2**20


def test_an_offline_block_and_a_node_without_memory_do_not_count(tmp_path: Path) -> None:
    two_nodes(tmp_path / "sys")
    memory = tmp_path / "sys/devices/system/memory"
    (memory / "memory9/state").write_text("offline\n")
    (memory / "memory0/state").write_text("going-offline\n")
    first, second = host(tmp_path).nodes()
    assert first.spans[0].start == BLOCK_FRAMES
    assert second.spans == (Span(1, 8 * BLOCK_FRAMES, 9 * BLOCK_FRAMES),)
    (memory / "memory8/state").write_text("offline\n")
    assert [node.id for node in host(tmp_path).nodes()] == [0]


ZONEINFO = """Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 1
  pages free     100
        boost    0
        min      2
        low      3
        high     40
        spanned  1000
        present  900
        managed  800
  pagesets
    cpu: 0
              count:    0
              high:     999
  start_pfn:           0
Node 0, zone   Normal
  pages free     7
        high     60
        spanned  0
        present  0
Node 1, zone  Movable
  pages free     7
        high     5
        spanned  3000
        present  3000
        managed  3000
  start_pfn:           1000
"""


def test_without_blocks_the_zones_say_where_memory_is(tmp_path: Path) -> None:
    make_tree(tmp_path, {"proc/zoneinfo": ZONEINFO, "sys/devices/system/node/online": "0-1\n"})
    spans = [node.spans for node in host(tmp_path).nodes()]
    assert spans == [(Span(0, 0, 1000),), (Span(1, 1000, 4000),)]


def test_a_block_of_two_nodes_is_cut_along_the_zones(tmp_path: Path) -> None:
    make_tree(tmp_path, {"proc/zoneinfo": ZONEINFO})
    files = {
        "devices/system/node/online": "0-1\n",
        "devices/system/memory/block_size_bytes": f"{BLOCK_BYTES:x}\n",
    }
    files |= node_files(0, [0], cpus="0", distance="10 20")
    files |= node_files(1, [0], cpus="", distance="20 10")
    make_tree(tmp_path / "sys", files)
    spans = [node.spans for node in host(tmp_path).nodes()]
    assert spans == [(Span(0, 0, 1000),), (Span(1, 1000, 4000),)]


def test_a_kernel_without_numa_is_one_node(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "sys/devices/system/memory/block_size_bytes": f"{BLOCK_BYTES:x}\n",
            "sys/devices/system/memory/memory3/state": "online\n",
            "sys/devices/system/cpu/online": "0-3\n",
        },
    )
    (only,) = host(tmp_path).nodes()
    assert only.id == 0
    assert only.spans == (Span(0, 3 * BLOCK_FRAMES, 4 * BLOCK_FRAMES),)
    assert len(only.cpus) == 4
    entry = capability(host(tmp_path), Feature.NUMA)
    assert (entry.available, entry.reason) == (False, "one node only has memory")


def test_node_memory_has_the_zones_watermarks(tmp_path: Path) -> None:
    two_nodes(tmp_path / "sys")
    make_tree(tmp_path, {"proc/zoneinfo": ZONEINFO})
    first, second = host(tmp_path).node_memory()
    assert (first.total, first.free) == (3 * BLOCK_BYTES, 4096 * 1024)
    assert first.high_watermark == 40 * PAGE  # not the per-CPU lists' "high:", no empty zone
    assert second.high_watermark == 5 * PAGE


# -- frames --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.sets(st.integers(0, 3000), min_size=1), st.sets(st.integers(60_000, 140_000)))
def test_frames_are_read_one_by_one_or_in_runs_alike(
    tmp_path_factory: pytest.TempPathFactory, near: set[int], far: set[int]
) -> None:
    path = tmp_path_factory.mktemp("kpage") / "kpageflags"
    path.write_bytes((np.arange(100_000, dtype=np.uint64) * np.uint64(3)).tobytes())
    pfn = np.array(sorted(near | far), np.uint64)
    expected = np.where(pfn < 100_000, pfn * np.uint64(3), 0)
    assert FrameFile(path).read(pfn).tolist() == expected.tolist()


def test_a_missing_frame_file_is_a_kernel_error(tmp_path: Path) -> None:
    with pytest.raises(KernelError) as caught:
        host(tmp_path).flags(np.zeros(1, np.uint64))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "proc/kpageflags")


def test_idle_bitmap_positions_and_chunks(tmp_path: Path) -> None:
    path = tmp_path / "bitmap"
    path.write_bytes(bytes(3 * BITMAP_BYTES))
    bitmap = IdleBitmap(path)
    words = np.arange(1, 601, dtype=np.uint64)  # more than one chunk
    bitmap.write(64 * 100, words)
    assert np.fromfile(path, np.uint64)[99:700].tolist() == [0, *range(1, 601)]
    back = np.full(600, 7, np.uint64)
    bitmap.read(64 * 100, back)
    assert back.tolist() == words.tolist()
    past = np.full(100, 7, np.uint64)
    bitmap.read(3 * BITMAP_BYTES * 8 - 64, past)
    assert past.tolist() == [0] * 100  # the last word is 0, the rest past the end
    with pytest.raises(ValueError, match="does not begin a word"):
        bitmap.read(32, back)
    bitmap.close()


def test_single_words_of_the_idle_bitmap(tmp_path: Path) -> None:
    path = tmp_path / "bitmap"
    path.write_bytes(bytes(3 * BITMAP_BYTES))
    bitmap = IdleBitmap(path)
    first = np.array([0, 64 * 7, 64 * 900], np.uint64)
    bitmap.write_words(first, np.array([5, 6, 2**64 - 1], np.uint64))
    words = np.frombuffer(path.read_bytes(), np.uint64)
    assert {at: int(words[at]) for at in np.flatnonzero(words)} == {0: 5, 7: 6, 900: 2**64 - 1}
    past = np.append(first, np.array([3 * BITMAP_BYTES * 8], np.uint64))
    back = np.full(4, 9, np.uint64)
    bitmap.read_words(past, back)
    assert back.tolist() == [5, 6, 2**64 - 1, 0]
    with pytest.raises(ValueError, match="does not begin a word"):
        bitmap.read_words(np.array([32], np.uint64), back)
    bitmap.close()


def test_idle_bitmap_calls_are_no_longer_than_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernfs cuts what is longer, silently."""
    sizes: list[int] = []

    def pwritev(fd: int, buffers: list[memoryview], position: int) -> int:
        sizes.append(len(buffers[0]))
        return len(buffers[0])

    (tmp_path / "bitmap").write_bytes(b"")
    monkeypatch.setattr(os, "pwritev", pwritev)
    IdleBitmap(tmp_path / "bitmap").write(0, np.zeros(1300, np.uint64))
    assert sizes == [4096, 4096, 1300 * 8 - 8192]


# -- the handshake and the call --------------------------------------------------------------------


def test_without_a_handshake_no_number_is_called(tmp_path: Path) -> None:
    two_nodes(tmp_path / "sys")
    kernel = Kernel()
    found = host(tmp_path, kernel)
    entry = capability(found, Feature.MOVE_PHYS_PAGES)
    assert not entry.available
    assert "does not exist: this kernel has no move_phys_pages" in entry.reason
    one = np.ones(1, np.uint64)
    node = np.zeros(1, np.int32)
    with pytest.raises(KernelError) as caught:
        found.move_phys_pages(one, node, node, MoveOption.SHARED)
    assert caught.value.errno == errno.ENOSYS
    assert set(kernel.numbers) <= {279, 239}  # move_pages(2), probed with count 0


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({"abi_version": "2\n"}, "abi_version says 2, this tierd speaks 1 only"),
        ({"number": "move\n"}, "holds no system call number"),
        ({"number": "-1\n"}, "holds no system call number"),
        ({"number": "0\n"}, "holds no system call number"),
        ({"abi_version": ""}, "abi_version says nothing"),
    ],
)
def test_an_odd_handshake_is_refused(tmp_path: Path, files: dict[str, str], part: str) -> None:
    named(tmp_path, **files)
    kernel = Kernel()
    entry = capability(host(tmp_path, kernel), Feature.MOVE_PHYS_PAGES)
    assert not entry.available
    assert part in entry.reason
    assert 548 not in kernel.numbers


def test_a_handshake_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    named(tmp_path)
    (tmp_path / "sys/kernel/mm/move_phys_pages/features").unlink()
    entry = capability(host(tmp_path), Feature.MOVE_PHYS_PAGES)
    assert "features cannot be read: No such file" in entry.reason


@pytest.mark.parametrize(
    ("code", "part"),
    [
        (errno.ENOSYS, "seccomp filter"),
        (errno.EPERM, "CAP_SYS_ADMIN"),
        (errno.EINVAL, "Invalid argument"),
    ],
)
def test_a_filtered_call_is_absent_with_its_reason(tmp_path: Path, code: int, part: str) -> None:
    named(tmp_path)
    kernel = Kernel(probe=code)
    found = host(tmp_path, kernel)
    entry = capability(found, Feature.MOVE_PHYS_PAGES)
    assert not entry.available
    assert part in entry.reason
    calls = kernel.numbers.count(548)
    node = np.zeros(1, np.int32)
    with pytest.raises(KernelError):
        found.move_phys_pages(np.ones(1, np.uint64), node, node, MoveOption.SHARED)
    assert kernel.numbers.count(548) == calls == 1


def test_the_number_that_the_kernel_names_is_the_one_called(tmp_path: Path) -> None:
    named(tmp_path, number="777\n")
    kernel = Kernel()
    entry = capability(host(tmp_path, kernel), Feature.MOVE_PHYS_PAGES)
    assert entry.available
    assert "system call 777" in entry.reason
    assert 777 in kernel.numbers
    assert 548 not in kernel.numbers


def test_a_call_in_full(tmp_path: Path) -> None:
    """Bytes in, frames out; the last entry is not reached."""
    named(tmp_path)
    seen: dict[str, object] = {}

    def answer(count: ctypes.c_ulong, pages: object, nodes: object, status: object, flags: object):
        addresses, codes = array(pages, 4, ctypes.c_uint64), array(status, 4, ctypes.c_int)
        seen.update(addresses=addresses.tolist(), source=codes.tolist(), flags=flags.value)
        seen["nodes"] = array(nodes, 4, ctypes.c_int).tolist()
        codes[:3] = [0, -errno.EBUSY, 0]
        addresses[0] = 900 * PAGE
        return 1

    found = host(tmp_path, Kernel(answer))
    pfn = np.array([5, 6, 7, 8], np.uint64)
    options = MoveOption.SHARED | MoveOption.MEMPOLICY | MoveOption.NONBLOCK | MoveOption.UNMAPPED
    result = found.move_phys_pages(pfn, np.zeros(4, np.int32), np.ones(4, np.int32), options)
    assert seen["addresses"] == [5 * PAGE, 6 * PAGE, 7 * PAGE, 8 * PAGE]
    assert seen["source"] == [1, 1, 1, 1]
    assert seen["nodes"] == [0, 0, 0, 0]
    assert seen["flags"] == 1 << 2 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20
    assert result.attempted == 3
    assert result.status[:3].tolist() == [0, -errno.EBUSY, 0]
    assert result.new_pfn.tolist() == [900, int(NO_PFN), int(NO_PFN), int(NO_PFN)]
    assert pfn.tolist() == [5, 6, 7, 8]  # the caller's array is left alone


def test_flags_that_the_kernel_does_not_name_are_not_set(tmp_path: Path) -> None:
    named(tmp_path, features="nonblock")
    seen: list[int] = []

    def answer(count: object, pages: object, nodes: object, status: object, flags: object) -> int:
        assert isinstance(flags, ctypes.c_uint)
        seen.append(flags.value)
        assert array(status, 1, ctypes.c_int).tolist() == [int(NOT_WRITTEN)]
        return 0

    found = host(tmp_path, Kernel(answer))
    node = np.zeros(1, np.int32)
    everything = MoveOption.MEMPOLICY | MoveOption.NONBLOCK | MoveOption.UNMAPPED
    found.move_phys_pages(np.ones(1, np.uint64), node, node, everything)
    assert seen == [1 << 1 | 1 << 17]


def test_a_call_that_is_refused_as_a_whole_raises(tmp_path: Path) -> None:
    named(tmp_path)

    def answer(*arguments: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1

    node = np.zeros(1, np.int32)
    with pytest.raises(KernelError) as caught:
        host(tmp_path, Kernel(answer)).move_phys_pages(
            np.ones(1, np.uint64), node, node, MoveOption.SHARED
        )
    assert caught.value.errno == errno.EINVAL


# -- what else a kernel has ------------------------------------------------------------------------


def test_every_feature_is_reported_once_with_a_reason(tmp_path: Path) -> None:
    make_tree(tmp_path, {"proc/zoneinfo": ""})
    entries = host(tmp_path).capabilities()
    assert sorted(entry.name for entry in entries) == sorted(Feature)
    assert all(entry.reason for entry in entries)
    reasons = {entry.name: entry.reason for entry in entries}
    bitmap = tmp_path / "sys/kernel/mm/page_idle/bitmap"
    assert reasons[Feature.PAGE_IDLE] == (
        f"{bitmap} does not exist: kernel built without CONFIG_IDLE_PAGE_TRACKING"
    )


def test_features_that_are_there(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "sys/kernel/mm/page_idle/bitmap": bytes(8),
            "sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds": "0\n",
            "sys/bus/event_source/devices/ibs_op/type": "9\n",
            "sys/bus/event_source/devices/cxl_hmu_mem0.0.0/type": "20\n",
            "proc/kpageflags": bytes(8),
            "proc/kpagecgroup": bytes(8),
            "proc/kpagecount": bytes(8),
            "proc/pressure/memory": "some avg10=12.50 avg60=0.00 avg300=0.00 total=0\n",
            "cgroup/cgroup.controllers": "cpuset cpu memory\n",
        },
    )
    two_nodes(tmp_path / "sys")
    named(tmp_path)
    found = host(tmp_path)
    assert [entry for entry in found.capabilities() if not entry.available] == []
    assert found.pressure() == {"memory": pytest.approx(0.125)}


def test_kpagecgroup_is_of_no_use_when_the_controller_is_elsewhere(tmp_path: Path) -> None:
    make_tree(tmp_path, {"proc/kpagecgroup": bytes(8), "cgroup/cgroup.controllers": "cpuset cpu\n"})
    entry = capability(host(tmp_path), Feature.KPAGECGROUP)
    assert not entry.available
    assert "memory controller is not on cgroup v2" in entry.reason


def test_pressure_of_a_cgroup_by_resource(tmp_path: Path) -> None:
    line = "some avg10=%s avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00\n"
    make_tree(
        tmp_path,
        {
            "proc/pressure/cpu": line % "50.00",
            "cgroup/system.slice/memory.pressure": line % "1.00",
            "cgroup/system.slice/io.pressure": line % "3.25",
        },
    )
    assert host(tmp_path).pressure() == {"cpu": pytest.approx(0.5)}
    assert host(tmp_path).pressure("system.slice") == {
        "memory": pytest.approx(0.01),
        "io": pytest.approx(0.0325),
    }
    assert host(tmp_path).pressure("no.slice") == {}


def test_a_kept_file_is_read_anew_and_opened_anew_when_it_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    kept = sysfs.KeptFiles()
    assert kept.read(str(path)) is None
    path.write_text("1\n")
    assert kept.read(str(path)) == "1"
    path.write_text("22\n")
    assert kept.read(str(path)) == "22"
    path.unlink()
    path.write_text("3\n")
    pread, answers = os.pread, [errno.ENODEV]

    def gone(*args: int) -> bytes:
        if answers:  # what kernfs says of a file that was removed
            raise OSError(answers.pop(), "removed")
        return pread(*args)

    monkeypatch.setattr(os, "pread", gone)
    assert kept.read(str(path)) == "3"
    answers += [errno.EOPNOTSUPP, errno.EOPNOTSUPP]  # psi=0 says so at opening
    assert kept.read(str(path)) is None
    assert kept.read(str(path)) == "3"


def test_what_only_the_start_used_is_let_go_of() -> None:
    program = """
import os, tierd.config, tierd.metrics
from tierd.host.linux import Footprint
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
Footprint().let_go_of_program()
print(before - resident())
tierd.config.Config.model_validate({"version": 1})  # it works as before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(done.stdout) > 2**20


def test_no_pressure_is_none(tmp_path: Path) -> None:
    assert host(tmp_path).pressure() == {}


def test_cgroups_inherit_a_missing_cpuset(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "sys/devices/system/node/has_memory": "0-2\n",
            "cgroup/cgroup.controllers": "cpuset memory\n",
            "cgroup/cpuset.mems.effective": "0-1\n",
            "cgroup/a.slice/cpuset.mems.effective": "1\n",
            "cgroup/a.slice/b.service/cgroup.procs": "",
            "cgroup/c.slice/cpuset.mems.effective": "\n",
        },
    )
    groups = {group.path: group for group in host(tmp_path).cgroups()}
    assert {path: sorted(group.mems) for path, group in groups.items()} == {
        "": [0, 1],
        "a.slice": [1],
        "a.slice/b.service": [1],
        "c.slice": [0, 1],
    }
    inode = (tmp_path / "cgroup/a.slice/b.service").stat().st_ino
    assert groups["a.slice/b.service"].inode == inode


def test_no_cgroup_v2_is_no_cgroups(tmp_path: Path) -> None:
    assert host(tmp_path).cgroups() == ()
    assert host(tmp_path).cgroup_memory("a") == {}


def test_cgroup_memory_adds_anonymous_and_file_pages(tmp_path: Path) -> None:
    text = "anon N0=4096 N1=8192\nfile N0=1000 N1=0\nkernel_stack N0=5 N1=5\nanon_thp N0=9 N1=9\n"
    make_tree(tmp_path, {"cgroup/a/b/memory.numa_stat": text})
    assert host(tmp_path).cgroup_memory("a/b") == {0: 5096, 1: 8192}


def test_foreign_tierers(tmp_path: Path) -> None:
    kdamond = "sys/kernel/mm/damon/admin/kdamonds"
    make_tree(
        tmp_path,
        {
            "proc/sys/kernel/numa_balancing": "2\n",
            "proc/123/comm": "memtierd\n",
            "proc/124/comm": "bash\n",
            "sys/kernel/mm/numa/demotion_enabled": "true\n",
            f"{kdamond}/0/state": "on\n",
            f"{kdamond}/0/contexts/0/schemes/0/action": "migrate_cold\n",
            f"{kdamond}/0/contexts/0/schemes/1/action": "stat\n",
            f"{kdamond}/1/state": "off\n",
            f"{kdamond}/1/contexts/0/schemes/0/action": "migrate_hot\n",
        },
    )
    found = host(tmp_path).foreign_tierers()
    assert [entry.name for entry in found] == ["numa_balancing", "demotion", "damon", "other"]
    assert "migrate_cold" in found[2].detail
    assert "memtierd (pid 123)" in found[3].detail


def test_nobody_else(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "proc/sys/kernel/numa_balancing": "0\n",
            "sys/kernel/mm/numa/demotion_enabled": "false\n",
            f"proc/{os.getpid()}/comm": "tierd\n",
        },
    )
    assert host(tmp_path).foreign_tierers() == ()


def test_sleep_ends_when_told_to_stop(tmp_path: Path) -> None:
    found = host(tmp_path)
    began = found.monotonic()
    found.interrupt()
    found.sleep(30)
    assert found.monotonic() - began < 5
    times = found.cpu_times()
    assert times.total >= times.user > 0
