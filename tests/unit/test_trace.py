# SPDX-License-Identifier: Apache-2.0
"""Traces: what was written is read again, whole; what is not whole is told from what is broken."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierd.host import Cgroup, Node, NodeMemory, Span
from tierd.trace import Cycle, Gauge, Header, Layout, Look, Moved, TraceError
from tierd.trace.codec import decode_cycle, decode_header, encode_cycle, encode_header
from tierd.trace.file import VERSION, Reader, Writer

HEADER = Header(
    tierd="1.2.3",
    host="Linux 6.12 x86_64",
    page_size=4096,
    started=1.75e9,
    interval=1.0,
    nodes=(
        Node(0, frozenset({0, 1}), (Span(0, 0, 512), Span(0, 4096, 8192)), {0: 10, 3: 24}, 4, 1e-7),
        Node(3, frozenset(), (Span(3, 1 << 20, 1 << 21),), {0: 24, 3: 10}, None, 3e-7, 2.0e10),
    ),
)


def frames(draw: st.DrawFn, most: int = 200) -> np.ndarray:
    """Runs, lone frames and far ones, sorted and unique."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    parts = [
        np.arange(base, base + draw(st.integers(0, most)))
        for base in draw(st.lists(st.sampled_from([0, 500, 1 << 20, 1 << 40]), max_size=3))
    ]
    parts.append(rng.integers(0, 1 << 45, draw(st.integers(0, 20))))
    return np.unique(np.concatenate(parts)).astype(np.uint64)


@st.composite
def looks(draw: st.DrawFn) -> Look:
    pfn = frames(draw, 1500)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    most = draw(st.sampled_from([1, 255]))
    cold = draw(st.booleans())
    weight = rng.integers(0 if cold else 1, most + 1, len(pfn)).astype(np.uint8)
    return Look(
        draw(st.sampled_from(["page_idle", "perf"])),
        pfn,
        weight,
        draw(st.floats(0, 1e9)),
        draw(st.floats(0, 1e9)),
        draw(st.sampled_from([1, 512])),
        draw(st.integers(0, 1 << 40)),
        cold,
    )


@st.composite
def cycles(draw: st.DrawFn) -> Cycle:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pfn, moved = frames(draw), frames(draw)
    inodes = draw(st.lists(st.integers(0, 2**63), min_size=1, max_size=4))
    groups = draw(
        st.none() | st.just((Cgroup(7, "a/b", frozenset({0, 3})), Cgroup(1, "", frozenset())))
    )
    return Cycle(
        time=draw(st.floats(0, 1e9)),
        memory=(NodeMemory(0, 1 << 40, 5, 6), NodeMemory(3, 1, 0, 0)),
        pressure=draw(st.dictionaries(st.sampled_from(["memory", "cpu"]), st.floats(0, 1))),
        looks=tuple(draw(st.lists(looks(), max_size=3))),
        gauges=(Gauge("page_idle", 0.5, 1.0, float("inf")),),
        layout=Layout(
            pfn,
            rng.integers(0, 10, len(pfn)).astype(np.uint8),
            rng.choice(np.array(inodes, np.uint64), len(pfn)),
            gone=frames(draw),
        ),
        moved=Moved(moved, moved[::-1].copy(), rng.integers(0, 10, len(moved)).astype(np.uint8)),
        cgroups=groups,
    )


def alike(a: object, b: object) -> bool:
    """Equality that looks into arrays, and minds their types."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if hasattr(a, "__slots__") and not isinstance(a, Path):
        return type(a) is type(b) and all(alike(getattr(a, n), getattr(b, n)) for n in a.__slots__)
    return a == b


@given(cycles())
@settings(max_examples=150)
def test_a_cycle_is_read_as_it_was_written(cycle: Cycle) -> None:
    assert alike(decode_cycle(encode_cycle(cycle)), cycle)


def test_a_header_is_read_as_it_was_written() -> None:
    assert decode_header(encode_header(HEADER)) == HEADER


CYCLE = Cycle(
    1.0,
    (NodeMemory(0, 1 << 30, 1 << 20, 0),),
    {"memory": 0.1},
    (Look("page_idle", np.arange(512, dtype=np.uint64), np.ones(512, np.uint8), 0.0, 1.0),),
)


def written(path: Path, count: int = 5) -> list[int]:
    """A trace of some cycles; the size of the file after each record."""
    writer = Writer(path, HEADER)
    sizes = [writer.size]
    for _ in range(count):
        writer.write(CYCLE)
        sizes.append(writer.size)
    writer.close()
    return sizes


def test_only_its_owner_may_read_a_new_trace_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Writer(tmp_path / "a", HEADER).close()
        os.umask(0o777)
        Writer(tmp_path / "b", HEADER).close()
    finally:
        os.umask(before)
    for name in "ab":
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_nothing_that_is_there_is_written_to(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "t", tmp_path / "other"
    if kind != "dangling":
        other.write_bytes(b"precious")
    if kind == "file":
        path.write_bytes(b"precious")
    else:
        path.symlink_to(other)
    with pytest.raises(TraceError, match=r"^[^\n]*t: exists already; remove it or name another"):
        Writer(path, HEADER)
    assert kind == "dangling" or other.read_bytes() == b"precious"
    assert not (kind == "dangling" and other.exists())


def test_a_trace_that_was_cut_off_anywhere_is_read_up_to_its_last_whole_record(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t"
    sizes = written(path)
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        if end < sizes[0]:
            with pytest.raises(TraceError, match=r"not a trace|nothing was recorded"):
                Reader(path)
            continue
        with Reader(path) as trace:
            assert len(list(trace.cycles())) == sum(size <= end for size in sizes[1:])
            assert not trace.complete
    path.write_bytes(data)
    with Reader(path) as trace:
        assert len(list(trace.cycles())) == 5
        assert trace.complete


def test_zeros_that_a_power_failure_leaves_are_an_end_too(tmp_path: Path) -> None:
    path = tmp_path / "t"
    sizes = written(path)
    data = path.read_bytes()
    path.write_bytes(data[: sizes[2]] + bytes(4096))
    with Reader(path) as trace:
        assert len(list(trace.cycles())) == 2


def test_every_damaged_byte_is_noticed_and_said_in_one_line(tmp_path: Path) -> None:
    """Flips one bit of each byte of a record in turn."""
    path = tmp_path / "t"
    sizes = written(path, 2)
    data = path.read_bytes()
    for at in range(sizes[0], sizes[1]):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        found, error = attempt(path)
        if error is not None:
            assert str(error).startswith(f"{path}: damaged at byte {sizes[0]}: ")
            assert "\n" not in str(error)
            continue
        # A length beyond the end looks like a record that is not whole; the kind of a record
        # that nobody knows is passed over; the rest of its head is reserved.
        assert at - sizes[0] in range(8, 16) or (at - sizes[0] < 8 and found == 0)


def attempt(path: Path) -> tuple[int, TraceError | None]:
    try:
        with Reader(path) as trace:
            return len(list(trace.cycles())), None
    except TraceError as error:
        return 0, error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "not a trace of tierd"),
        (lambda data: b"#!/bin/sh\n", "not a trace of tierd"),
        (lambda data: data[:12], "ends before its header: nothing was recorded"),
        (
            lambda data: data[:8] + struct.pack("<H", VERSION + 1) + data[10:],
            f"written in format {VERSION + 1}, this tierd reads up to {VERSION};"
            " replay it with the version of tierd that wrote it",
        ),
    ],
)
def test_what_is_no_trace_is_said_in_one_line(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "t"
    written(path, 1)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TraceError) as error:
        Reader(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_pipe_a_directory_and_nothing_are_no_traces(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ""):
        with pytest.raises(TraceError, match="not a regular file"):
            Reader(tmp_path / name)
    with pytest.raises(TraceError, match=r"none: cannot be read: No such file"):
        Reader(tmp_path / "none")
    with pytest.raises(TraceError, match=r"no/t: cannot be created: No such file"):
        Writer(tmp_path / "no" / "t", HEADER)


class Full:
    """A file on a disk that fills up after some bytes."""

    def __init__(self, file: object, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        return self.file.write(part)

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


def test_a_full_disk_leaves_whole_records(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "t", HEADER)
    writer.write(CYCLE)
    writer._file = Full(writer._file, 20)  # type: ignore[assignment]
    with pytest.raises(TraceError, match="t: cannot be written: No space left on device"):
        writer.write(CYCLE)
    writer.close()
    with Reader(tmp_path / "t") as trace:
        assert len(list(trace.cycles())) == 1
        assert not trace.complete


def test_a_block_that_is_looked_at_in_full_takes_a_bit_or_two_per_frame() -> None:
    """The worst case, of accesses without any order, and 2 MiB in each block."""
    rng = np.random.default_rng(1)
    pfn = np.arange(1 << 18, dtype=np.uint64)
    weight = (rng.random(len(pfn)) < 0.5).astype(np.uint8)
    look = Look("page_idle", pfn, weight, 0.0, 1.0)
    raw = encode_cycle(Cycle(0.0, (), {}, (look,)))
    assert len(raw) * 8 < 2.2 * len(pfn)
