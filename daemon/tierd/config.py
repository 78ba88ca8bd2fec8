# SPDX-License-Identifier: Apache-2.0
"""The policy file: frozen models, units, and what each key means.

The descriptions here are the source of the JSON schema and of the reference manual.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

_BYTES: Final = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SECONDS: Final = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}

_SIZE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)$"
_RATE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)/s$"
_DURATION_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(ms|s|min|h)$"
_RATIO_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?%$"


def parse_size(value: object) -> int:
    """Bytes of "4GiB". Only binary units: a size says its unit, always."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(B|KiB|MiB|GiB|TiB)", str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError("expected a size with its unit, such as 512MiB or 4GiB")
    return round(float(match[1]) * _BYTES[match[2]])


def parse_rate(value: object) -> int:
    """Bytes per second of "200MiB/s"."""
    text = str(value).strip()
    if not text.endswith("/s"):
        raise ValueError("expected a rate with its unit, such as 200MiB/s")
    try:
        return parse_size(text[:-2])
    except ValueError:
        raise ValueError("expected a rate with its unit, such as 200MiB/s") from None


def parse_duration(value: object) -> float:
    """Seconds of "1s", "200ms", "5min" or "2h"."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|min|h)", str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError("expected a duration with its unit, such as 1s, 200ms or 5min")
    return float(match[1]) * _SECONDS[match[2]]


def parse_ratio(value: object) -> float:
    """Ratio 0..1 of "3%"."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError("expected a share in percent, such as 3%")
    ratio = float(match[1]) / 100
    if ratio > 1:
        raise ValueError("expected a share of at most 100%")
    return ratio


def _unit(parse: Any, pattern: str, example: str) -> tuple[Any, ...]:
    schema = {"type": "string", "pattern": pattern, "examples": [example]}
    return BeforeValidator(parse), WithJsonSchema(schema)


Size = Annotated[int, *_unit(parse_size, _SIZE_PATTERN, "4GiB")]
Rate = Annotated[int, *_unit(parse_rate, _RATE_PATTERN, "200MiB/s")]
Duration = Annotated[float, *_unit(parse_duration, _DURATION_PATTERN, "1s")]
Ratio = Annotated[float, *_unit(parse_ratio, _RATIO_PATTERN, "3%")]


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


class Tier(Model):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the tier in metrics and reports, such as dram or cxl."""
    nodes: tuple[int, ...] = Field(min_length=1)
    """NUMA nodes of this tier."""
    target: bool = True
    """Whether pages may be moved to this tier. False leaves it a source only."""


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


class Sampling(Model):
    sources: Sources = Sources()
    """Where hotness comes from: auto, required or off for each source."""
    cpu: Ratio = 0.03
    """CPU share of sampling, of one core, kernel time included."""
    window: Window = Window()
    """Bounds of the idle window."""
    threads: int = Field(default=1, ge=1, le=16)
    """Threads that scan side by side."""


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


class Migration(Model):
    movers: Movers = Movers()
    """How pages are moved: auto, required or off for each way."""
    promote: Rate = 200 * 2**20
    """Most bytes per second into the fast tier."""
    demote: Rate = 200 * 2**20
    """Most bytes per second out of the fast tier."""
    headroom: Headroom = Headroom()
    """Free room kept on fast nodes so that new allocations land there."""
    min_residency: Duration = 10.0
    """A page that was moved stays at least this long before it is moved back."""
    respect_mempolicy: bool = True
    """Leave pages where a memory policy (mbind, set_mempolicy) forbids the target."""
    precheck: bool = True
    """Drop candidates whose cpuset forbids the target before the kernel is asked. The kernel
    checks in either case; switch this off only to see it do so."""
    unmapped_page_cache: bool = True
    """Also move page cache that no process maps, where the mover can."""


class Class(Model):
    match: str = Field(min_length=1)
    """Glob over cgroup paths, relative to the root: * stays within one level, ** crosses levels.
    A cgroup matches with everything below it. The first class that matches counts."""
    floor: Size | None = None
    """Fast memory that is never demoted below while the class has that much."""
    cap: Size | None = None
    """Most fast memory; above it pages are demoted, promotions stop."""
    weight: int = Field(default=100, ge=1, le=10000)
    """Share in a contended fast tier relative to other classes."""
    never: tuple[Literal["promote", "demote"], ...] = ()
    """Directions in which pages of this class are never moved."""
    excluded: bool = False
    """Leave the pages of this class alone altogether."""


class Metrics(Model):
    listen: str | None = "127.0.0.1:9709"
    """Address and port of /metrics, null for none."""


class Conflicts(Model):
    numa_balancing: OnConflict = OnConflict.WARN
    """What to do when automatic NUMA balancing is on."""
    demotion: OnConflict = OnConflict.WARN
    """What to do when reclaim demotes (/sys/kernel/mm/numa/demotion_enabled)."""
    damon: OnConflict = OnConflict.WARN
    """What to do when DAMON schemes that move pages are at work."""
    other: OnConflict = OnConflict.WARN
    """What to do when another tiering daemon is found."""


class Workload(Model):
    """One simulated program."""

    kind: Literal["zipf", "phase", "hotset", "scan", "uniform"]
    """How it accesses its memory."""
    size: Size
    """How much memory it has."""
    hot: Size | None = None
    """Size of its hot part (phase, hotset)."""
    skew: float = Field(default=0.99, gt=0, le=3)
    """Exponent (zipf)."""
    period: Duration = 60.0
    """Seconds between phase changes (phase)."""
    accesses: float = Field(default=50e6, gt=0)
    """Accesses per second."""
    cgroup: str = ""
    """Path of its cgroup."""


class SimulatedNode(Model):
    id: int = Field(ge=0)
    """NUMA node number."""
    size: Size
    """Memory on the node."""
    cpus: int = Field(default=0, ge=0)
    """CPUs on the node."""
    latency: Duration = 1e-7
    """Access latency."""


class Simulation(Model):
    """The machine that `tierd simulate` runs on."""

    nodes: tuple[SimulatedNode, ...] = Field(min_length=1)
    """Nodes of the simulated host."""
    workloads: tuple[Workload, ...] = ()
    """Programs that run on it."""
    seed: int = 1
    """Seed of everything random."""


class Config(Model):
    """A whole policy."""

    version: Literal[1]
    """Version of this format."""
    mode: Mode = Mode.OBSERVE
    """tier moves pages; observe does everything but the move."""
    interval: Duration = 1.0
    """Time between cycles."""
    tiers: tuple[Tier, ...] | None = None
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
    simulation: Simulation | None = None
    """The simulated host; only for tierd simulate."""
