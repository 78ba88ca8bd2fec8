# SPDX-License-Identifier: Apache-2.0
"""For all tests: what they do when something that they need is not there."""

from __future__ import annotations

import os
import re
from typing import NoReturn

import pytest
from hypothesis import settings

# How long an example takes says something of the host, and nothing of the code.
settings.register_profile("tierd", deadline=None)
settings.load_profile("tierd")


def require(name: str, reason: str) -> NoReturn:
    """Call it when `name` is needed and missing: skips the test, saying why.

    Where TIERD_REQUIRE (names, with commas or blanks; or `all`) has the name, as in CI, a missing
    one is a failure: a test that nobody ran proves nothing."""
    required = re.split(r"[,\s]+", os.environ.get("TIERD_REQUIRE", ""))
    if name in required or "all" in required:
        pytest.fail(f"{name} is required by TIERD_REQUIRE, and {reason}", pytrace=False)
    pytest.skip(reason)
