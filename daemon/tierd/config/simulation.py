# SPDX-License-Identifier: Apache-2.0
"""The simulated host, as a policy describes it for `tierd simulate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from tierd.config.units import (
    RATIO_SCHEMA,
    SIZE_SCHEMA,
    Count,
    Duration,
    Model,
    Number,
    Ratio,
    Size,
    Unit,
    format_ratio,
    format_size,
    parse_ratio,
    parse_size,
    problem,
)

_SMALLEST: Final = 8 * 2**10
_LARGEST: Final = 2 * 2**20
"""Bytes: folios of two pages of 4 KiB, and of as many as one entry of a PMD maps."""


def parse_folios(value: object) -> dict[int, float]:
    """Share of the memory by folio size in bytes, of {"64KiB": "50%", "2MiB": "25%"}."""
    if not isinstance(value, Mapping):
        right = "a share for each size, such as {64KiB: 50%, 2MiB: 25%}"
        raise problem((), "not a mapping", right)
    folios: dict[int, float] = {}
    for name, share in value.items():
        size = _parsed(parse_size, name, name)
        if not _SMALLEST <= size <= _LARGEST or size & (size - 1):
            right = f"a power of two from {format_size(_SMALLEST)} to {format_size(_LARGEST)}"
            raise problem((name,), "not the size of a folio", right)
        if size in folios:
            raise problem((name,), f"{format_size(size)} is given twice", "each size once")
        folios[size] = _parsed(parse_ratio, name, share)
    if sum(folios.values()) > 1 + 1e-9:  # thirds do not add up exactly
        raise problem((), "more than all of the memory", "at most 100% in all")
    return folios


def _parsed(parse: Any, name: str, value: object) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        right = str(error).removeprefix("expected ")
        raise problem((name,), f"{value!r} is not valid here", right) from None


def format_folios(value: Mapping[int, float]) -> str:
    """ "{64KiB: 50%, 2MiB: 25%}" of shares by size."""
    shares = (f"{format_size(size)}: {format_ratio(value[size])}" for size in sorted(value))
    return "{" + ", ".join(shares) + "}"


_FOLIOS_SCHEMA: Final = {
    "type": "object",
    "propertyNames": {"pattern": SIZE_SCHEMA["pattern"]},
    "additionalProperties": RATIO_SCHEMA,
    "examples": [{"64KiB": "50%", "2MiB": "25%"}],
}

Folios = Annotated[
    Mapping[int, float],
    BeforeValidator(parse_folios),
    WithJsonSchema(_FOLIOS_SCHEMA),
    Unit(format_folios),
]


class Workload(Model):
    """One simulated program."""

    kind: Literal["zipf", "phase", "hotset", "shift", "permutation", "scan", "uniform"]
    """How it accesses its memory."""
    size: Size
    """How much memory it has."""
    folios: Folios = Field(default={_LARGEST: 0.25})
    """Share of its memory by the size of the folios that it is in, from 8KiB to 2MiB; the rest is
    in single pages of 4KiB."""
    hot: Size | None = None
    """Size of its hot part (hotset, phase, shift), or of each region (permutation)."""
    skew: Number = Field(default=0.99, gt=0, le=3)
    """Exponent (zipf, permutation)."""
    period: Duration = 60.0
    """Seconds between phase changes (phase, shift, permutation)."""
    shift: Ratio = 0.25
    """Part of the hot part that is replaced at each change (shift)."""
    programs: Count = Field(default=1, ge=1, le=1000)
    """So many programs alike, each of that size and in a cgroup of its own below `cgroup`."""
    lifetime: Duration | None = None
    """How long a program runs before another like it takes its memory; by default for ever."""
    accesses: Number = Field(default=50e6, gt=0)
    """Accesses per second."""
    cgroup: str = ""
    """Path of its cgroup."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hot is not None and self.hot > self.size:
            raise problem(("hot",), "above size", f"at most {format_size(self.size)}")
        return self


class SimulatedNode(Model):
    id: Count = Field(ge=0, le=1023)
    """NUMA node number."""
    size: Size
    """Memory on the node."""
    cpus: Count = Field(default=0, ge=0)
    """CPUs on the node."""
    latency: Duration = 1e-7
    """Access latency."""


class SimulatedFailures(Model):
    """Shares of the pages that refuse to move, by the errno that the kernel gives; always the
    same pages, but for EAGAIN."""

    EBUSY: Ratio = 0.0
    """Pinned."""
    EAGAIN: Ratio = 0.0
    """Busy just now; other pages each time."""
    EPERM: Ratio = 0.0
    """Mapped by several processes, where the caller does not ask for such."""
    EXDEV: Ratio = 0.0
    """Forbidden by a memory policy, where the caller asks for that."""
    EFAULT: Ratio = 0.0
    """In memory that must not move, such as a device's."""
    EMLINK: Ratio = 0.0
    """Mapped too often to be judged."""
    ENODATA: Ratio = 0.0
    """Page cache that nobody maps, where the caller does not ask for such."""
    EOPNOTSUPP: Ratio = 0.0
    """Of a kind that cannot be migrated."""

    @model_validator(mode="after")
    def _in_all(self) -> Self:
        if sum(float(share) for _, share in self) - self.EAGAIN > 1:
            raise problem((), "more than all pages", "at most 100% in all, EAGAIN apart")
        return self


class Simulation(Model):
    """The machine that `tierd simulate` runs on."""

    nodes: tuple[SimulatedNode, ...] = Field(min_length=1)
    """Nodes of the simulated host."""
    workloads: tuple[Workload, ...] = ()
    """Programs that run on it."""
    failures: SimulatedFailures = SimulatedFailures()
    """Pages that refuse to move."""
    seed: Count = 1
    """Seed of everything random."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        seen: set[int] = set()
        for index, node in enumerate(self.nodes):
            if node.id in seen:
                raise problem(("nodes", index, "id"), "given twice", "each node once")
            seen.add(node.id)
        room = sum(node.size for node in self.nodes)
        if sum(work.size * work.programs for work in self.workloads) > room:
            right = f"at most {format_size(room)} in all, the size of the nodes"
            raise problem(("workloads",), "larger than the machine", right)
        return self
