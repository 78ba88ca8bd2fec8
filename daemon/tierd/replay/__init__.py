# SPDX-License-Identifier: Apache-2.0
"""A policy run over a trace: what it would have moved, and where the accesses would have gone."""

from __future__ import annotations

from tierd.replay.forecast import Forecast, Outcome, replay
from tierd.replay.report import document

__all__ = ["Forecast", "Outcome", "document", "replay"]
