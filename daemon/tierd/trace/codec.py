# SPDX-License-Identifier: Apache-2.0
"""Header and cycles as bytes and back. Nothing here opens a file.

A cycle is a JSON head, which says how long each array is, and the arrays one after another. A set
of frames is kept by 2 MiB block: a bitmap of 512 bits, or one word of it where all its frames lie
in one. What was seen accessed is one bit for each of those frames, in their order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import Cgroup, Node, NodeMemory, Pfns, Span
from tierd.trace import Cycle, Gauge, Header, Layout, Look, Moved

BLOCK: Final = 512
"""Frames of one bitmap."""
_WORD: Final = 64
_LENGTH: Final = struct.Struct("<I")


class Malformed(ValueError):
    """Bytes that no writer of this format makes."""


# -- header --------------------------------------------------------------------------------------


def encode_header(header: Header) -> bytes:
    """JSON of a header."""
    nodes = [
        {
            "id": node.id,
            "cpus": sorted(node.cpus),
            "spans": [[span.start, span.end] for span in node.spans],
            "distances": [[other, far] for other, far in sorted(node.distances.items())],
            "memory_tier": node.memory_tier,
            "read_latency": node.read_latency,
            "read_bandwidth": node.read_bandwidth,
        }
        for node in header.nodes
    ]
    document = {
        "tierd": header.tierd,
        "host": header.host,
        "page_size": header.page_size,
        "started": header.started,
        "interval": header.interval,
        "nodes": nodes,
    }
    return json.dumps(document).encode()


def decode_header(data: bytes) -> Header:
    """The header again. Raises Malformed."""
    try:
        document = json.loads(data)
        nodes = tuple(
            Node(
                id=int(node["id"]),
                cpus=frozenset(map(int, node["cpus"])),
                spans=tuple(
                    Span(int(node["id"]), int(start), int(end)) for start, end in node["spans"]
                ),
                distances={int(other): int(far) for other, far in node["distances"]},
                memory_tier=node["memory_tier"],
                read_latency=node["read_latency"],
                read_bandwidth=node["read_bandwidth"],
            )
            for node in document["nodes"]
        )
        return Header(
            tierd=str(document["tierd"]),
            host=str(document["host"]),
            page_size=int(document["page_size"]),
            started=float(document["started"]),
            interval=float(document["interval"]),
            nodes=nodes,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise Malformed(f"header: {error}") from None


# -- arrays ----------------------------------------------------------------------------------------


class _Body:
    """Arrays one after another: appended by a writer, taken in the same order by a reader."""

    def __init__(self, data: bytes = b"") -> None:
        self._parts: list[bytes] = []
        self._data = data
        self._at = 0

    def put(self, array: NDArray[Any]) -> None:
        self._parts.append(
            np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        )

    def take(self, kind: Any, count: int) -> NDArray[Any]:
        size = np.dtype(kind).itemsize * count
        if count < 0 or self._at + size > len(self._data):
            raise Malformed("an array is longer than its record")
        array = np.frombuffer(self._data, np.dtype(kind).newbyteorder("<"), count, self._at)
        self._at += size
        return array.astype(kind)

    def bytes(self) -> bytes:
        return b"".join(self._parts)

    @property
    def empty(self) -> bool:
        return self._at == len(self._data)


def _put_frames(body: _Body, pfn: Pfns) -> list[int]:
    """A sorted set of frames; returns [blocks as bitmaps, blocks as words] for the head."""
    block = pfn // np.uint64(BLOCK)
    within = (pfn % np.uint64(BLOCK)).astype(np.int64)
    blocks, first = np.unique(block, return_index=True)
    end = np.append(first[1:], len(pfn))
    one = np.zeros(len(blocks), np.bool_)
    if len(blocks):
        one = within[first] // _WORD == within[end - 1] // _WORD
    row = np.repeat(np.arange(len(blocks)), end - first)
    full = ~one[row]
    rank = np.cumsum(~one) - 1
    bits = np.zeros((int((~one).sum()), BLOCK), np.uint8)
    bits[rank[row[full]], within[full]] = 1
    body.put(_deltas(blocks[~one]))
    body.put(np.packbits(bits, axis=1, bitorder="little"))
    words = np.zeros((int(one.sum()), _WORD), np.uint8)
    rank = np.cumsum(one) - 1
    words[rank[row[~full]], within[~full] % _WORD] = 1
    body.put(_deltas(blocks[one]))
    body.put((within[first[one]] // _WORD).astype(np.uint8))
    body.put(np.packbits(words, axis=1, bitorder="little"))
    return [int((~one).sum()), int(one.sum())]


def _take_frames(body: _Body, counts: Sequence[int]) -> Pfns:
    """The same set again."""
    many, few = counts
    blocks = _sums(body.take(np.uint64, many))
    bits = np.unpackbits(
        body.take(np.uint8, many * BLOCK // 8).reshape(many, BLOCK // 8), axis=1, bitorder="little"
    )
    row, within = np.nonzero(bits)
    full = blocks[row] * np.uint64(BLOCK) + within.astype(np.uint64)
    blocks = _sums(body.take(np.uint64, few))
    word = body.take(np.uint8, few).astype(np.uint64)
    bits = np.unpackbits(
        body.take(np.uint8, few * _WORD // 8).reshape(few, _WORD // 8), axis=1, bitorder="little"
    )
    row, within = np.nonzero(bits)
    start = blocks * np.uint64(BLOCK) + word * np.uint64(_WORD)
    single = start[row] + within.astype(np.uint64)
    pfn: Pfns = np.sort(np.concatenate([full, single]))
    return pfn


def _deltas(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sorted numbers as steps: small ones, which compress well."""
    return np.diff(numbers, prepend=np.uint64(0)).astype(np.uint64)


def _sums(deltas: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.cumsum(deltas, dtype=np.uint64)


def _put_bits(body: _Body, bits: NDArray[np.bool_]) -> None:
    body.put(np.packbits(bits, bitorder="little"))


def _take_bits(body: _Body, count: int) -> NDArray[np.bool_]:
    packed = body.take(np.uint8, (count + 7) // 8)
    return np.unpackbits(packed, count=count, bitorder="little").astype(np.bool_)


# -- cycles ----------------------------------------------------------------------------------------


def encode_cycle(cycle: Cycle) -> bytes:
    """Head and arrays of a cycle."""
    body = _Body()
    head: dict[str, Any] = {
        "time": cycle.time,
        "memory": [[m.node, m.total, m.free, m.high_watermark] for m in cycle.memory],
        "pressure": dict(cycle.pressure),
        "gauges": [[g.name, g.window, g.coverage, g.round_time] for g in cycle.gauges],
        "looks": [_encode_look(body, look) for look in cycle.looks],
        "layout": _encode_layout(body, cycle.layout),
        "gone": _put_frames(body, cycle.layout.gone),
        "moved": len(cycle.moved.old),
    }
    for array in (cycle.moved.old, cycle.moved.new, cycle.moved.order):
        body.put(array)
    if cycle.cgroups is not None:
        head["cgroups"] = [[c.inode, c.path, sorted(c.mems)] for c in cycle.cgroups]
    text = json.dumps(head, separators=(",", ":")).encode()
    return _LENGTH.pack(len(text)) + text + body.bytes()


def decode_cycle(data: bytes) -> Cycle:
    """The cycle again. Raises Malformed."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        head = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        body = _Body(data[_LENGTH.size + length :])
        cycle = _decode_cycle(head, body)
    except (ValueError, TypeError, KeyError, OverflowError, struct.error) as error:
        raise Malformed(f"cycle: {error}") from None
    if not body.empty:
        raise Malformed("cycle: longer than its head says")
    return cycle


def _decode_cycle(head: Mapping[str, Any], body: _Body) -> Cycle:
    looks = tuple(_decode_look(body, look) for look in head["looks"])
    pfn, order, cgroup = _decode_layout(body, head["layout"])
    layout = Layout(pfn, order, cgroup, gone=_take_frames(body, head["gone"]))
    moved = Moved(
        body.take(np.uint64, head["moved"]),
        body.take(np.uint64, head["moved"]),
        body.take(np.uint8, head["moved"]),
    )
    cgroups = None
    if "cgroups" in head:
        cgroups = tuple(
            Cgroup(int(inode), str(path), frozenset(map(int, mems)))
            for inode, path, mems in head["cgroups"]
        )
    return Cycle(
        time=float(head["time"]),
        memory=tuple(NodeMemory(*map(int, entry)) for entry in head["memory"]),
        pressure={str(name): float(value) for name, value in head["pressure"].items()},
        looks=looks,
        gauges=tuple(Gauge(str(name), *map(float, rest)) for name, *rest in head["gauges"]),
        layout=layout,
        moved=moved,
        cgroups=cgroups,
    )


def _encode_look(body: _Body, look: Look) -> list[Any]:
    frames = _put_frames(body, look.pfn)
    accessed = look.weight > 0
    if look.cold_evidence:
        _put_bits(body, accessed)
    weighted = bool(np.any(look.weight > 1))
    if weighted:
        body.put(look.weight[accessed])
    return [
        look.source, look.t0, look.t1, look.granularity, look.lost, look.cold_evidence, *frames,
        weighted,
    ]  # fmt: skip


def _decode_look(body: _Body, head: Sequence[Any]) -> Look:
    source, t0, t1, granularity, lost, cold, many, few, weighted = head
    pfn = _take_frames(body, (many, few))
    accessed = _take_bits(body, len(pfn)) if cold else np.ones(len(pfn), np.bool_)
    weight = accessed.astype(np.uint8)
    if weighted:
        weight[accessed] = body.take(np.uint8, int(accessed.sum()))
    return Look(
        str(source), pfn, weight, float(t0), float(t1), int(granularity), int(lost), bool(cold)
    )


def _encode_layout(body: _Body, layout: Layout) -> list[Any]:
    frames = _put_frames(body, layout.pfn)
    inodes, index = np.unique(layout.cgroup, return_inverse=True)
    body.put(layout.order)
    body.put(index.reshape(-1).astype(np.uint16))
    return [*frames, inodes.tolist()]


def _decode_layout(
    body: _Body, head: Sequence[Any]
) -> tuple[Pfns, NDArray[np.uint8], NDArray[np.uint64]]:
    many, few, inodes = head
    pfn = _take_frames(body, (many, few))
    order = body.take(np.uint8, len(pfn))
    index = body.take(np.uint16, len(pfn))
    table = np.array(inodes, np.uint64)
    if len(index) and int(index.max()) >= len(table):
        raise Malformed("a cgroup that the record does not name")
    cgroup = table[index] if len(table) else np.zeros(len(pfn), np.uint64)
    return pfn, order, cgroup
