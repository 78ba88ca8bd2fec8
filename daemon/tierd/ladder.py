# SPDX-License-Identifier: Apache-2.0
"""Which sources and which mover this kernel and this policy give, and why not the others.

Pure: capabilities and policy in, the choice and a reason for every rung out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tierd.config import Config, Mode, Use
from tierd.host import Capability, CapabilitySet, Feature

Kind = Literal["hot", "cold", "mover"]

BUILT: Final = frozenset({Feature.PAGE_IDLE, Feature.MOVE_PHYS_PAGES})
"""Rungs that this version of tierd has code for."""

NEEDS: Final = {
    Feature.PAGE_IDLE: (Feature.KPAGEFLAGS,),
    Feature.MOVE_PHYS_PAGES: (Feature.KPAGEFLAGS,),
}
"""What a rung stands on: without page flags huge pages cannot be folded to their heads."""

_BESIDE: Final = (Feature.DEVICE, Feature.PERF)
_WHOLE: Final = (Feature.PAGE_IDLE, Feature.DAMON)
_MOVERS: Final = (Feature.MOVE_PHYS_PAGES, Feature.MOVE_PAGES)


class RequiredMissing(Exception):
    """The policy requires a rung that is not there. The process ends with exit code 3."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is required by the policy but not available: {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder, taken or not. `reason` is one phrase and never empty."""

    kind: Kind
    name: str
    chosen: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Ladder:
    """The choice. `samplers` are names of sources in use, `mover` None when there is none."""

    rungs: tuple[Rung, ...]
    samplers: tuple[str, ...]
    mover: str | None
    degraded: tuple[str, ...]
    """Why less is done than the policy asks for; empty when all is well."""


def choose(capabilities: CapabilitySet, config: Config) -> Ladder:
    """Take the best rungs that are there, built and not switched off.

    Hot evidence: device and perf beside page_idle or else damon. Cold evidence: page_idle or
    else damon. Mover: move_phys_pages or else move_pages. Raises RequiredMissing.
    """
    sources = config.sampling.sources
    uses = {
        Feature.DEVICE: sources.device,
        Feature.PERF: sources.perf,
        Feature.PAGE_IDLE: sources.page_idle,
        Feature.DAMON: sources.damon,
        Feature.MOVE_PHYS_PAGES: config.migration.movers.move_phys_pages,
        Feature.MOVE_PAGES: config.migration.movers.move_pages,
    }
    beside = [_judge("hot", name, uses[name], capabilities, None) for name in _BESIDE]
    hot = beside + _first("hot", _WHOLE, uses, capabilities)
    cold = _first("cold", _WHOLE, uses, capabilities)
    movers = _first("mover", _MOVERS, uses, capabilities)
    mover = next((rung.name for rung in movers if rung.chosen), None)
    return Ladder(
        rungs=(*hot, *cold, *movers),
        samplers=tuple(rung.name for rung in hot if rung.chosen),
        mover=mover,
        degraded=_degraded(hot, cold, movers, config.mode),
    )


def _first(
    kind: Kind,
    names: tuple[Feature, ...],
    uses: dict[Feature, Use],
    capabilities: CapabilitySet,
) -> list[Rung]:
    """Rungs of which one is taken: the first that can be, or those that are required."""
    rungs: list[Rung] = []
    taken: str | None = None
    for name in names:
        rung = _judge(kind, name, uses[name], capabilities, taken)
        rungs.append(rung)
        if rung.chosen:
            taken = rung.name
    return rungs


def _judge(
    kind: Kind, name: Feature, use: Use, capabilities: CapabilitySet, taken: str | None
) -> Rung:
    obstacle = _obstacle(name, capabilities)
    if use is Use.REQUIRED:
        if obstacle is not None:
            raise RequiredMissing(name.value, obstacle)
        return Rung(kind, name.value, True, "required by the policy")
    if use is Use.OFF:
        return Rung(kind, name.value, False, "switched off in the policy")
    if obstacle is not None:
        return Rung(kind, name.value, False, obstacle)
    if taken is not None:
        return Rung(kind, name.value, False, f"not needed: {taken} is taken")
    return Rung(kind, name.value, True, capabilities[name].reason)


def _obstacle(name: Feature, capabilities: CapabilitySet) -> str | None:
    """Why a rung cannot be taken, None when it can."""
    own: Capability = capabilities[name]
    if not own.available:
        return own.reason
    for need in NEEDS.get(name, ()):
        if not capabilities.has(need):
            return f"needs {need.value}: {capabilities[need].reason}"
    if name not in BUILT:
        return "not built into this version"
    return None


def _degraded(hot: list[Rung], cold: list[Rung], movers: list[Rung], mode: Mode) -> tuple[str, ...]:
    result: list[str] = []
    if not any(rung.chosen for rung in hot):
        result.append(f"no source of hotness, nothing is promoted ({_why(hot)})")
    if not any(rung.chosen for rung in cold):
        result.append(f"no source of cold evidence, nothing is demoted ({_why(cold)})")
    if mode is Mode.TIER and not any(rung.chosen for rung in movers):
        result.append(f"no mover, observing only ({_why(movers)})")
    return tuple(result)


def _why(rungs: list[Rung]) -> str:
    return "; ".join(f"{rung.name}: {rung.reason}" for rung in rungs)
