# SPDX-License-Identifier: Apache-2.0
"""A daemon on a small simulated host, in a process of its own, as systemd would start it.

Arguments: policy file, runtime directory, path of a socket that stands in for journald's, and
optionally names of features that the host shall lack.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tierd import config, journal
from tierd.config import SimulatedNode, Simulation, Workload
from tierd.host import Feature
from tierd.host.simulated import RealClock, SimulatedHost
from tierd.journal import JournalHandler, NativeTransport
from tierd.pace import RealPace
from tierd.service import Daemon, Fatal, Options

MACHINE = Simulation(
    nodes=(
        SimulatedNode(id=0, size="32MiB", cpus=1, latency="0.0001ms"),
        SimulatedNode(id=1, size="64MiB", latency="0.0003ms"),
    ),
    workloads=(Workload(kind="hotset", size="40MiB", hot="8MiB", cgroup="a"),),
)


def main() -> int:
    policy, runtime, journald, *absent = sys.argv[1:]
    if "PASSED_FD" in os.environ:
        os.dup2(int(os.environ["PASSED_FD"]), 3)
        os.environ["LISTEN_PID"] = str(os.getpid())
    journal.install(JournalHandler(NativeTransport(Path(journald))))
    lacks = {Feature(name): "this test takes it away" for name in absent}
    host = SimulatedHost(MACHINE, RealClock(), absent=lacks)
    options = Options(runtime=Path(runtime))
    try:
        Daemon(host, lambda: config.load([Path(policy)]), RealPace(), options).run()
    except Fatal as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
