# SPDX-License-Identifier: Apache-2.0
"""What the build scripts made, or why they cannot."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

FLAVOURS: Mapping[str, float] = {"release": 1.0, "off": 1.0, "debug": 6.0, "stock": 2.0}
"""The kernels there are, and how many times slower than release each may be."""


class Unavailable(Exception):
    """The rig cannot be used on this host; the message says why."""


@dataclass(frozen=True, slots=True)
class Artefacts:
    qemu: Path
    """Root of the system that QEMU is installed in."""
    image: Path
    kernels: Mapping[str, Path]
    """Per flavour the directory with bzImage and config. Of ours also vmlinux, System.map and the
    series' selftest (move_phys_pages, statically linked); of `stock` an initrd."""


def why_unavailable() -> str | None:
    """Why no guest can be built and run here; None when nothing is known to be in the way."""
    if platform.machine() != "x86_64":
        return "the rig builds x86-64 guests on x86-64 only"
    if shutil.which("apt-get") is None:
        return "the rig's scripts need Debian 12 or 13 (no apt-get here)"
    if os.geteuid() != 0:
        return "the rig's scripts make root file systems, which needs root"
    return None


def build(flavours: Sequence[str] = ("release",)) -> Artefacts:
    """Build what is not cached. Progress goes to stderr."""
    reason = why_unavailable()
    if reason is not None:
        raise Unavailable(reason)
    command = ["setpriv", "--pdeathsig", "TERM", "--", str(HERE / "build"), *flavours]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Unavailable(
            f"{HERE / 'build'} ended with status {done.returncode}; its messages say why"
        )
    made = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return Artefacts(
        qemu=Path(made["qemu"]),
        image=Path(made["image"]),
        kernels={flavour: Path(made[f"kernel-{flavour}"]) for flavour in flavours},
    )
