# SPDX-License-Identifier: Apache-2.0
"""Stress for move_phys_pages(): storms in the guest, a flood of calls, and what must hold after.

The storms are a C program, tests/guest/programs/stress; its stress.h says how it is made.
"""

from stress.checks import baseline, come_to_rest, cycle_offline, measure, prepare, wrong
from stress.suite import STRESSORS, Result, Stressor, run

__all__ = [
    "STRESSORS",
    "Result",
    "Stressor",
    "baseline",
    "come_to_rest",
    "cycle_offline",
    "measure",
    "prepare",
    "run",
    "wrong",
]
