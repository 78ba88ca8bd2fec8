# SPDX-License-Identifier: Apache-2.0
"""The policy file: frozen models, and what each key means.

The descriptions here are the source of the JSON schema and of the reference manual.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from tierd.config.simulation import Simulation
from tierd.config.units import (
    Count,
    Duration,
    Flag,
    Limit,
    Model,
    Number,
    Rate,
    Ratio,
    Size,
    format_duration,
    format_ratio,
    format_size,
    parse_listen,
    problem,
)


class Mode(StrEnum):
    OBSERVE = "observe"
    TIER = "tier"


class Use(StrEnum):
    """How much a policy wants an optional kernel feature."""

    AUTO = "auto"
    REQUIRED = "required"
    OFF = "off"


class OnConflict(StrEnum):
    WARN = "warn"
    REFUSE = "refuse"


NodeId = Annotated[int, Strict(), Field(ge=0)]


class Tier(Model):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the tier in metrics and reports, such as dram or cxl."""
    nodes: tuple[NodeId, ...] = Field(min_length=1)
    """NUMA nodes of this tier."""
    target: Flag = True
    """Whether pages may be moved to this tier. False leaves it a source only."""
    avoid: tuple[NodeId, ...] = ()
    """Nodes of this tier that pages are never moved to, but may be moved from."""

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        for index, node in enumerate(self.avoid):
            if node not in self.nodes:
                right = "one of " + ", ".join(map(str, self.nodes))
                raise problem(("avoid", index), f"node {node} is not in this tier", right)
        if self.target and set(self.avoid) == set(self.nodes):
            raise problem(("avoid",), "leaves no node of the tier", "target: false")
        return self


class Sources(Model):
    page_idle: Use = Use.AUTO
    """Idle page tracking: hot and cold evidence for every page."""
    damon: Use = Use.AUTO
    """DAMON on physical addresses: hot and cold evidence for regions, without page_idle."""
    perf: Use = Use.AUTO
    """PEBS or IBS with physical addresses: hot evidence beside page_idle or damon."""
    device: Use = Use.OFF
    """Hotness units of CXL devices: hot evidence beside page_idle or damon."""


class Window(Model):
    min: Duration = 0.2
    """Shortest time between marking frames idle and reading them again."""
    max: Duration = 30.0
    """Longest such time; the sampler tunes itself between the two."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min <= 0:
            raise problem(("min",), "a window of no length sees nothing", "more than 0ms")
        if self.min >= self.max:
            raise problem(("min",), "not below max", f"less than {format_duration(self.max)}")
        return self


class Sampling(Model):
    sources: Sources = Sources()
    """Where hotness comes from: auto, required or off for each source."""
    cpu: Ratio = 0.03
    """CPU share of sampling, of one core, kernel time included."""
    window: Window = Window()
    """Bounds of the idle window."""
    threads: Count = Field(default=1, ge=1, le=16)
    """Threads that scan side by side."""

    @model_validator(mode="after")
    def _can_see(self) -> Self:
        if self.cpu <= 0:
            raise problem(("cpu",), "no CPU time, nothing to learn from", "a share such as 3%")
        uses = self.sources
        if {uses.page_idle, uses.damon, uses.perf, uses.device} == {Use.OFF}:
            raise problem(("sources",), "all sources are off", "at least one auto or required")
        return self


class Movers(Model):
    move_phys_pages: Use = Use.AUTO
    """Move by physical address, the call of tierd's own kernel series."""
    move_pages: Use = Use.AUTO
    """Move by process and virtual address, on any kernel."""


class Headroom(Model):
    low: Ratio = 0.02
    """Start to demote when less than this share of a fast node is free."""
    high: Ratio = 0.04
    """Demote until this share of it is free."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise problem(("low",), "not below high", f"less than {format_ratio(self.high)}")
        return self


class BackOff(Model):
    memory: Limit = 0.10
    """Share of time in which some task waits for memory (PSI, 10 seconds) above which moves slow
    down: each cycle halves the rates, down to a sixteenth, until it is over. Or off."""
    cpu: Limit = math.inf
    """The same for waiting for a CPU, which is the ordinary state of a busy host."""
    io: Limit = math.inf
    """The same for waiting for input and output."""
    cgroup: str = ""
    """Path of the cgroup whose pressure counts, such as system.slice; empty for the whole host."""

    @model_validator(mode="after")
    def _relative(self) -> Self:
        if self.cgroup.startswith("/") or ".." in self.cgroup.split("/"):
            right = "a path relative to the cgroup root, without the leading / and without .."
            raise problem(("cgroup",), f"{self.cgroup!r} is no path of a cgroup", right)
        return self

    @property
    def limits(self) -> dict[str, float]:
        """What is borne of each resource that matters."""
        every = {"memory": self.memory, "cpu": self.cpu, "io": self.io}
        return {name: limit for name, limit in every.items() if math.isfinite(limit)}


class Migration(Model):
    movers: Movers = Movers()
    """How pages are moved: auto, required or off for each way."""
    promote: Rate = 200 * 2**20
    """Most bytes per second into the fast tier."""
    demote: Rate = 200 * 2**20
    """Most bytes per second out of the fast tier."""
    headroom: Headroom = Headroom()
    """Free room kept on fast nodes so that new allocations land there."""
    benefit: Number = Field(default=1.0, ge=0, le=1000)
    """Times that a promotion must be expected to save what it costs, for as long as it is expected
    to last; 0 does not ask."""
    back_off: BackOff = BackOff()
    """Pressure under which moves slow down."""
    min_residency: Duration = 10.0
    """A page that was moved stays at least this long before it is moved back."""
    respect_mempolicy: Flag = True
    """Leave pages where a memory policy (mbind, set_mempolicy) forbids the target."""
    precheck: Flag = True
    """Drop candidates whose cpuset forbids the target before the kernel is asked. The kernel
    checks in either case; switch this off only to see it do so."""
    unmapped_page_cache: Flag = True
    """Also move page cache that no process maps, where the mover can."""

    @model_validator(mode="after")
    def _isolated(self) -> Self:
        # Only move_phys_pages has the kernel check each mapping. With move_pages the planner's
        # check is the one that keeps a page inside its cpuset, so it cannot be done without.
        movers = self.movers
        alone = movers.move_phys_pages is Use.OFF and movers.move_pages is not Use.OFF
        if not self.precheck and (alone or movers.move_pages is Use.REQUIRED):
            wrong = "nothing else checks the pages that move_pages moves"
            raise problem(("precheck",), wrong, "true, or movers: {move_pages: off}")
        return self


class Class(Model):
    match: str = Field(min_length=1)
    """Glob over cgroup paths, relative to the root: * stays within one level, ** crosses levels.
    A cgroup matches with everything below it. The first class that matches counts."""
    floor: Size | None = None
    """Fast memory that is never demoted below while the class has that much."""
    cap: Size | None = None
    """Most fast memory; above it pages are demoted, promotions stop."""
    weight: Count = Field(default=100, ge=1, le=10000)
    """Share in a contended fast tier relative to other classes."""
    never: tuple[Literal["promote", "demote"], ...] = ()
    """Directions in which pages of this class are never moved."""
    excluded: Flag = False
    """Leave the pages of this class alone altogether."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.match.startswith("/"):
            right = "a path relative to the cgroup root, without the leading /"
            raise problem(("match",), "starts with /", right)
        if self.floor is not None and self.cap is not None and self.floor > self.cap:
            raise problem(("floor",), "above cap", f"at most {format_size(self.cap)}")
        return self


class Metrics(Model):
    listen: str | None = "127.0.0.1:9709"
    """Address and port of /metrics, null for none."""

    @model_validator(mode="after")
    def _address(self) -> Self:
        if self.listen is not None:
            try:
                parse_listen(self.listen)
            except ValueError as error:
                right = str(error).removeprefix("expected ")
                raise problem(("listen",), f"{self.listen!r} is no address", right) from None
        return self


class Conflicts(Model):
    numa_balancing: OnConflict = OnConflict.WARN
    """What to do when automatic NUMA balancing is on."""
    demotion: OnConflict = OnConflict.WARN
    """What to do when reclaim demotes (/sys/kernel/mm/numa/demotion_enabled)."""
    damon: OnConflict = OnConflict.WARN
    """What to do when DAMON schemes that move pages are at work."""
    other: OnConflict = OnConflict.WARN
    """What to do when another tiering daemon is found."""


class Trace(Model):
    directory: str | None = None
    """Where the daemon writes a trace of what it sees, a new file at each start and each change
    here; null for nowhere. See tierd replay."""
    size: Size = 2**30
    """Size of a file from which on no more is written to it."""

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        if self.directory is not None and not self.directory.startswith("/"):
            raise problem(("directory",), "not an absolute path", "such as /var/lib/tierd")
        return self


class Config(Model):
    """A whole policy."""

    version: Literal[1]
    """Version of this format."""
    mode: Mode = Mode.OBSERVE
    """tier moves pages; observe does everything but the move."""
    interval: Duration = 1.0
    """Time between cycles."""
    tiers: Annotated[tuple[Tier, ...], Field(min_length=2)] | None = None
    """Tiers, fastest first; by default from measured or reported latency and bandwidth."""
    sampling: Sampling = Sampling()
    """How hotness is found out."""
    migration: Migration = Migration()
    """How pages are moved."""
    classes: tuple[Class, ...] = ()
    """Rules by cgroup; the first match wins."""
    metrics: Metrics = Metrics()
    """The Prometheus endpoint."""
    conflicts: Conflicts = Conflicts()
    """What to do about others who move pages on this host."""
    trace: Trace = Trace()
    """The recording of what the daemon sees; by default there is none."""
    simulation: Simulation | None = None
    """The simulated host; only for tierd simulate."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not 0.05 <= self.interval <= 3600:
            raise problem(("interval",), "out of range", "from 50ms to 1h")
        movers = self.migration.movers
        if self.mode is Mode.TIER and {movers.move_phys_pages, movers.move_pages} == {Use.OFF}:
            right = "at least one auto or required, or mode: observe"
            raise problem(("migration", "movers"), "mode is tier and all movers are off", right)
        self._check_tiers()
        return self

    def _check_tiers(self) -> None:
        names: set[str] = set()
        nodes: set[int] = set()
        if self.tiers and not any(tier.target for tier in self.tiers):
            raise problem(("tiers",), "no tier is a target", "one at least without target: false")
        for index, tier in enumerate(self.tiers or ()):
            if tier.name in names:
                at = ("tiers", index, "name")
                raise problem(at, f"a second tier {tier.name!r}", "each name once")
            names.add(tier.name)
            for position, node in enumerate(tier.nodes):
                if node in nodes:
                    where = ("tiers", index, "nodes", position)
                    raise problem(where, f"node {node} is given twice", "each node in one tier")
                nodes.add(node)
