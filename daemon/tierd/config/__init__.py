# SPDX-License-Identifier: Apache-2.0
"""The policy file: models, units, drop-ins and errors that name their line.

The only package that imports pydantic and yaml.
"""

from __future__ import annotations

from tierd.config.document import ConfigError, Problem
from tierd.config.load import DEFAULTS, DIRECTORIES, Loaded, load, search
from tierd.config.models import (
    Class,
    Config,
    Conflicts,
    Headroom,
    Metrics,
    Migration,
    Mode,
    Movers,
    OnConflict,
    Sampling,
    Sources,
    Tier,
    Trace,
    Use,
    Window,
)
from tierd.config.schema import schema_text
from tierd.config.show import show
from tierd.config.simulation import (
    SimulatedFailures,
    SimulatedNode,
    Simulation,
    Workload,
    format_folios,
)
from tierd.config.units import (
    format_duration,
    format_limit,
    format_rate,
    format_ratio,
    format_size,
    parse_duration,
    parse_listen,
    parse_rate,
    parse_ratio,
    parse_size,
)

__all__ = [
    "DEFAULTS",
    "DIRECTORIES",
    "Class",
    "Config",
    "ConfigError",
    "Conflicts",
    "Headroom",
    "Loaded",
    "Metrics",
    "Migration",
    "Mode",
    "Movers",
    "OnConflict",
    "Problem",
    "Sampling",
    "SimulatedFailures",
    "SimulatedNode",
    "Simulation",
    "Sources",
    "Tier",
    "Trace",
    "Use",
    "Window",
    "Workload",
    "format_duration",
    "format_folios",
    "format_limit",
    "format_rate",
    "format_ratio",
    "format_size",
    "load",
    "parse_duration",
    "parse_listen",
    "parse_rate",
    "parse_ratio",
    "parse_size",
    "schema_text",
    "search",
    "show",
]
