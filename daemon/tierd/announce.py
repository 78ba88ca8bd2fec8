# SPDX-License-Identifier: Apache-2.0
"""What the journal is told of a policy that was loaded, or refused."""

from __future__ import annotations

import logging

from tierd.config import Loaded, Problem
from tierd.journal import Event, record


def say_loaded(loaded: Loaded) -> None:
    """Record which policy is in force."""
    mode = loaded.config.mode.value
    message = "policy loaded from %s, mode %s"
    if not loaded.files:
        message = "no policy file, %s are in force: mode %s, nothing is moved"
    record(
        Event.CONFIG_LOADED,
        logging.INFO,
        message,
        loaded.source,
        mode,
        config=loaded.source,
        mode=mode,
    )


def say_rejected(problems: tuple[Problem, ...], otherwise: str, consequence: str) -> None:
    """Record each problem of a policy, or the one that has no place in a file."""
    for problem in problems:
        record(
            Event.CONFIG_REJECTED,
            logging.ERROR,
            "%s (%s)",
            problem,
            consequence,
            file=problem.file,
            line=problem.line or "",
            key=problem.key,
            reason=f"{problem.wrong}; {problem.right}",
        )
    if not problems:
        message = "%s (%s)"
        record(
            Event.CONFIG_REJECTED, logging.ERROR, message, otherwise, consequence, reason=otherwise
        )
