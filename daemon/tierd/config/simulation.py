# SPDX-License-Identifier: Apache-2.0
"""The simulated host, as a policy describes it for `tierd simulate`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tierd.config.units import Count, Duration, Model, Number, Ratio, Size, format_size, problem


class Workload(Model):
    """One simulated program."""

    kind: Literal["zipf", "phase", "hotset", "shift", "permutation", "scan", "uniform"]
    """How it accesses its memory."""
    size: Size
    """How much memory it has."""
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
    huge: Ratio = 0.25
    """Share of the programs' 2 MiB blocks that are one huge page."""
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
