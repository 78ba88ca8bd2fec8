# SPDX-License-Identifier: Apache-2.0
"""The policy file: frozen models, units, and what each key means.

The descriptions here are the source of the JSON schema and of the reference manual.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

_BYTES: Final = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
MOST_BYTES: Final = 2**60
"""More than any machine has (x86-64 addresses 2**52), and far from what 64 bits can count."""

_SECONDS: Final = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}

_SIZE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)$"
_RATE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)/s$"
_DURATION_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(ms|s|min|h)$"
_RATIO_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?%$"
_LIMIT_PATTERN: Final = r"^(off|[0-9]+(\.[0-9]+)?%)$"


class _TooLarge(ValueError):
    """A size that no machine has."""


def parse_size(value: object) -> int:
    """Bytes of "4GiB". Only binary units: a size says its unit, always."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(B|KiB|MiB|GiB|TiB)", str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError("expected a size with its unit, such as 512MiB or 4GiB")
    size = float(match[1]) * _BYTES[match[2]]
    if size > MOST_BYTES:
        raise _TooLarge(f"expected at most {format_size(MOST_BYTES)}")
    return round(size)


def parse_rate(value: object) -> int:
    """Bytes per second of "200MiB/s"."""
    text = str(value).strip()
    try:
        if text.endswith("/s"):
            return parse_size(text[:-2])
    except _TooLarge as error:
        raise ValueError(f"{error}/s") from None
    except ValueError:
        pass
    raise ValueError("expected a rate with its unit, such as 200MiB/s")


def parse_duration(value: object) -> float:
    """Seconds of "1s", "200ms", "5min" or "2h"."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|min|h)", str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError("expected a duration with its unit, such as 1s, 200ms or 5min")
    return float(match[1]) * _SECONDS[match[2]]


def parse_limit(value: object) -> float:
    """Ratio of "10%", infinity of "off"."""
    if str(value).strip() == "off":
        return math.inf
    try:
        return parse_ratio(value)
    except ValueError as error:
        raise ValueError(f"{error}, or off") from None


def parse_ratio(value: object) -> float:
    """Ratio 0..1 of "3%"."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError("expected a share in percent, such as 3%")
    ratio = float(match[1]) / 100
    if ratio > 1:
        raise ValueError("expected a share of at most 100%")
    return ratio


def format_size(value: float) -> str:
    """The shortest exact "4GiB" of bytes."""
    for unit, factor in reversed(_BYTES.items()):
        if value and value % factor == 0:
            return f"{round(value / factor)}{unit}"
    return f"{round(value)}B"


def format_rate(value: float) -> str:
    """The shortest exact "200MiB/s" of bytes per second."""
    return format_size(value) + "/s"


def format_duration(value: float) -> str:
    """ "200ms", "1s" or "1.5s" of seconds."""
    for unit, factor in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if value and value % factor == 0:
            return f"{round(value / factor)}{unit}"
    return f"{value * 1000:g}ms" if value < 1 else f"{value:g}s"


def format_ratio(value: float) -> str:
    """ "3%" of a ratio 0..1."""
    return f"{value * 100:g}%"


def format_limit(value: float) -> str:
    """ "10%" of a ratio, "off" of infinity."""
    return "off" if math.isinf(value) else format_ratio(value)


@dataclass(frozen=True, slots=True)
class Unit:
    """Marks a field whose text carries a unit; how its value is written back."""

    format: Callable[[float], str]


def _unit(parse: Any, unit: Callable[[float], str], pattern: str, example: str) -> tuple[Any, ...]:
    schema = {"type": "string", "pattern": pattern, "examples": [example]}
    return BeforeValidator(parse), WithJsonSchema(schema), Unit(unit)


Size = Annotated[int, *_unit(parse_size, format_size, _SIZE_PATTERN, "4GiB")]
Rate = Annotated[int, *_unit(parse_rate, format_rate, _RATE_PATTERN, "200MiB/s")]
Duration = Annotated[float, *_unit(parse_duration, format_duration, _DURATION_PATTERN, "1s")]
Ratio = Annotated[float, *_unit(parse_ratio, format_ratio, _RATIO_PATTERN, "3%")]
Limit = Annotated[float, *_unit(parse_limit, format_limit, _LIMIT_PATTERN, "10%")]

# Not lax: pydantic would take the text "off" for false and "010" for 10.
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict()]
Number = Annotated[float, Strict()]


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9709" or "[::1]:9709". Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bare_v6 = ":" in host and not text.startswith("[")
    if not colon or not host or bare_v6 or not port.isascii() or not port.isdigit():
        raise ValueError("expected an address and a port, such as 127.0.0.1:9709 or [::1]:9709")
    if int(port) > 65535:
        raise ValueError("expected a port of at most 65535")
    return host, int(port)


def problem(keys: tuple[str | int, ...], wrong: str, right: str) -> PydanticCustomError:
    """An error of meaning, at `keys` below the model that raises it."""
    context = {"keys": keys, "wrong": wrong, "right": right}
    return PydanticCustomError("tierd", "{wrong}; {right}", context)


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


class Model(BaseModel):
    """Base of all models: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
