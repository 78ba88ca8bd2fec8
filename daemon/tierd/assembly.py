# SPDX-License-Identifier: Apache-2.0
"""Host + policy -> an engine that is ready to run: probe, ladder, topology, samplers, mover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tierd import ladder, topology
from tierd.config import Config, ConfigError, Loaded, Mode, OnConflict, Problem
from tierd.engine import Engine
from tierd.host import CapabilitySet, Feature, ForeignTierer, Host, Node
from tierd.ladder import Ladder
from tierd.movers import Mover
from tierd.movers.move_phys_pages import MovePhysPages
from tierd.samplers import Sampler
from tierd.samplers.page_idle import PageIdleSampler
from tierd.topology import Topology, TopologyError


class Refused(Exception):
    """The policy says not to run beside another that moves pages."""


@dataclass(frozen=True, slots=True)
class Foundation:
    """What the host and the policy together give, before anything is opened."""

    loaded: Loaded
    nodes: tuple[Node, ...]
    capabilities: CapabilitySet
    ladder: Ladder
    topology: Topology
    foreign: tuple[ForeignTierer, ...]

    @property
    def config(self) -> Config:
        return self.loaded.config

    def interchangeable(self, other: Foundation) -> bool:
        """Whether an engine built on one can go on under the other's policy with its heat."""
        return (
            self.topology.tiers == other.topology.tiers
            and self.topology.spans == other.topology.spans
            and self.ladder.samplers == other.ladder.samplers
            and self.ladder.mover == other.ladder.mover
            and self.ladder.degraded == other.ladder.degraded
            and self.config.sampling == other.config.sampling
            and _mover_options(self.config) == _mover_options(other.config)
        )


def _mover_options(config: Config) -> tuple[bool, bool]:
    return config.migration.respect_mempolicy, config.migration.unmapped_page_cache


def survey(host: Host, loaded: Loaded, generation: int) -> Foundation:
    """Look at the host through the policy. Changes nothing and opens nothing.

    Raises ConfigError (with the line) for tiers that this host does not have, TopologyError
    when the host has no tiers of its own accord, RequiredMissing and Refused.
    """
    config = loaded.config
    nodes = host.nodes()
    capabilities = CapabilitySet(host.capabilities())
    chosen = ladder.choose(capabilities, config)
    try:
        tiers = topology.build(nodes, config.tiers, generation)
    except TopologyError as error:
        known = [node.id for node in nodes if node.spans]
        if config.tiers is None:
            raise
        raise ConfigError(loaded.node_problems(known) or [_tier_problem(loaded, error)]) from None
    foreign = host.foreign_tierers()
    refused = [each for each in foreign if verdict(config, each) is OnConflict.REFUSE]
    if refused:
        what = "; ".join(each.detail for each in refused)
        key = f"conflicts.{refused[0].name}"
        raise Refused(f"{key} is refuse, and {what}; switch it off there or set {key}: warn")
    return Foundation(loaded, nodes, capabilities, chosen, tiers, foreign)


def _tier_problem(loaded: Loaded, error: TopologyError) -> Problem:
    path: tuple[str | int, ...] = ("tiers",) if error.tier is None else ("tiers", error.tier)
    return loaded.problem(path, str(error), "`tierd probe` shows the nodes of this host")


def verdict(config: Config, foreign: ForeignTierer) -> OnConflict:
    """What the policy says about one who moves pages beside tierd."""
    verdict = getattr(config.conflicts, foreign.name, config.conflicts.other)
    return OnConflict(verdict)


def assemble(host: Host, foundation: Foundation) -> Engine:
    """Open the samplers and the mover of a foundation. Raises KernelError."""
    samplers = [_SAMPLERS[Feature(name)](host, foundation) for name in foundation.ladder.samplers]
    return Engine(
        host,
        foundation.config,
        foundation.topology,
        samplers,
        _mover(host, foundation),
        degraded=foundation.ladder.degraded,
    )


def _page_idle(host: Host, foundation: Foundation) -> Sampler:
    return PageIdleSampler(host, foundation.topology, foundation.config.sampling)


_SAMPLERS: Final[dict[Feature, Callable[[Host, Foundation], Sampler]]] = {
    Feature.PAGE_IDLE: _page_idle,
}


def _mover(host: Host, foundation: Foundation) -> Mover | None:
    if foundation.ladder.mover is None:
        return None
    respect, unmapped = _mover_options(foundation.config)
    if foundation.ladder.mover != Feature.MOVE_PHYS_PAGES:
        raise NotImplementedError(foundation.ladder.mover)
    return MovePhysPages(host, respect_mempolicy=respect, unmapped_page_cache=unmapped)


def observing(foundation: Foundation) -> bool:
    """Whether nothing will be moved, by the policy or for want of a mover."""
    return foundation.config.mode is Mode.OBSERVE or foundation.ladder.mover is None


def rungs(chosen: Ladder) -> list[dict[str, Any]]:
    """Every rung, taken or not, and why; for JSON."""
    return [
        {"kind": rung.kind, "name": rung.name, "chosen": rung.chosen, "reason": rung.reason}
        for rung in chosen.rungs
    ]
