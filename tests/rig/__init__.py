# SPDX-License-Identifier: Apache-2.0
"""The test rig: builds kernels and a guest with the scripts beside this file, boots it in QEMU
and runs commands there. docs/rig.md has the whole of it."""

from rig.artefacts import FLAVOURS, Artefacts, Unavailable, build, why_unavailable
from rig.machine import MACHINES, Machine
from rig.vm import (
    CommandFailed,
    CommandTimeout,
    Guest,
    GuestDied,
    GuestError,
    GuestHung,
    GuestPanicked,
    Process,
    Result,
)

__all__ = [
    "FLAVOURS",
    "MACHINES",
    "Artefacts",
    "CommandFailed",
    "CommandTimeout",
    "Guest",
    "GuestDied",
    "GuestError",
    "GuestHung",
    "GuestPanicked",
    "Machine",
    "Process",
    "Result",
    "Unavailable",
    "build",
    "why_unavailable",
]
