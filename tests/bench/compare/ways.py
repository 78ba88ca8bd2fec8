# SPDX-License-Identifier: Apache-2.0
"""The ways of tiering that are compared: how each is switched on, held still and let go on.

Each gets what its own authors recommend where Linux 6.12 has it, and free memory enough in DRAM
that nothing needs to be demoted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guest.service import Service
from rig import Guest

DAMO: Final = "3.4.3"
"""The release of damo that the settings below were written for."""

_KDAMONDS: Final = "/sys/kernel/mm/damon/admin/kdamonds"


@dataclass(frozen=True, slots=True)
class Way:
    """One way of tiering.

    start: switch it on; hold: nothing of it runs any more; go: let it go on after `hold`.
    tasks: a shell command that prints the process numbers of what works for it.
    colour: of its line in the plot. append: more for the kernel's command line.
    """

    name: str
    about: str
    start: Callable[[Guest], None]
    hold: Callable[[Guest], None]
    go: Callable[[Guest], None]
    tasks: str
    colour: str
    append: str = ""


def nothing(guest: Guest) -> None:
    """What no tiering does."""


def _command(text: str) -> Callable[[Guest], None]:
    def run(guest: Guest) -> None:
        guest.run(text, timeout=120, check=True)

    return run


_NUMA = "echo {} > /proc/sys/kernel/numa_balancing"

NONE: Final = Way("none", "no tiering", nothing, nothing, nothing, "true", "#8d99ae")

NUMA_BALANCING: Final = Way(
    "numa_balancing",
    "numa_balancing=2 with demotion enabled, all else as the kernel has it",
    _command("echo 1 > /sys/kernel/mm/numa/demotion_enabled; " + _NUMA.format(2)),
    _command(_NUMA.format(0)),
    _command(_NUMA.format(2)),
    "true",  # it works in the program's own time
    "#457b9d",
)

_DAMON_SCHEMES: Final = (
    # As damo's scripts/mem_tier.sh, but for the goals (node_mem_used_bp and node_mem_free_bp are
    # of 6.16): without one migrate_cold would empty DRAM of all that rests, so it waits for 30 s
    # of rest, as HMSDK's does. "allow" filters are of 6.14: all but the young are rejected.
    "--numa_node 0 {intervals} --damos_action migrate_cold 1 --damos_access_rate 0% 0% "
    "--damos_age 30s max --damos_apply_interval 1s --damos_quota_interval 1s "
    "--damos_quota_space 200MB --damos_filter reject young "
    "--numa_node 1 {intervals} --damos_action migrate_hot 0 --damos_access_rate 5% max "
    "--damos_apply_interval 1s --damos_quota_interval 1s --damos_quota_space 200MB "
    "--damos_filter reject none young "
    "--damos_nr_filters 1 1 --nr_targets 1 1 --nr_schemes 1 1 --nr_ctxs 1 1"
)


def _damon(name: str, about: str, intervals: str, colour: str) -> Way:
    schemes = _DAMON_SCHEMES.format(intervals=intervals)

    def start(guest: Guest) -> None:
        guest.put("/run/damo.whl", wheel().read_bytes())
        guest.run(
            "test -d /run/damo || python3 -m zipfile -e /run/damo.whl /run/damo; "
            f"PYTHONPATH=/run/damo python3 -m damo.damo start {schemes}",
            timeout=240,
            check=True,
        )

    def turn(state: str) -> Callable[[Guest], None]:
        return _command(f"for k in {_KDAMONDS}/[0-9]*; do echo {state} > $k/state; done")

    return Way(name, about, start, turn("off"), turn("on"), "pgrep kdamond", colour)


DAMON: Final = _damon(
    "damon",
    "DAMON's migrate_hot and migrate_cold, 5 ms samples and 100 ms aggregation (damo's default)",
    "--monitoring_intervals 5ms 100ms 1s",
    "#b08968",
)

DAMON_SLOW: Final = _damon(
    "damon-hmsdk",
    "the same with HMSDK's monitoring: 100 ms samples, 2 s aggregation, 100 to 10,000 regions",
    "--monitoring_intervals 100ms 2s 20s --monitoring_nr_regions_range 100 10000",
    "#e9c46a",
)

POLICY: Final = """\
version: 1
mode: tier
tiers:
  - {name: dram, nodes: [0]}
  - {name: cxl, nodes: [1]}
"""


def tierd(cpu: str, more: str = "", *, also: bool = False) -> Way:
    """tierd with that share of a core for sampling, e.g. "5%"; `more`: lines of its policy.
    `also`: beside another tierd, which has the plain name."""

    def start(guest: Guest) -> None:
        service = Service(guest)
        service.policy(POLICY + f"sampling: {{cpu: {cpu}}}\n" + more)
        service.start()
        service.wait_cycles(5)

    def kill(signal: str) -> Callable[[Guest], None]:
        return _command(f"systemctl kill --kill-whom=main --signal={signal} tierd.service")

    return Way(
        f"tierd-{cpu}" if also else "tierd",
        f"tierd, defaults but for sampling: {{cpu: {cpu}}}",
        start,
        kill("STOP"),
        kill("CONT"),
        "systemctl show --property=MainPID --value tierd.service",
        "#f4845f" if also else "#c1121f",
    )


def wheel() -> Path:
    """The wheel of damo, fetched with pip once."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tierd"
    cache = Path(os.environ.get("TIERD_CACHE") or default) / "damo"
    found = list(cache.glob(f"damo-{DAMO}-*.whl"))
    if not found:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(cache), f"damo=={DAMO}"], check=True)
        found = list(cache.glob(f"damo-{DAMO}-*.whl"))
    return found[0]
