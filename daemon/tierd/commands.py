# SPDX-License-Identifier: Apache-2.0
"""What the commands of `tierd` do, with all that the daemon needs imported."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tierd import (
    __version__,
    assembly,
    config,
    journal,
    ladder,
    render,
    replay,
    service,
    topology,
)
from tierd.config import ConfigError, Loaded, Simulation
from tierd.host import CapabilitySet, Host
from tierd.host.linux import LinuxHost
from tierd.host.machine import Failures
from tierd.host.simulated import Clock, RealClock, SimulatedHost, VirtualClock
from tierd.ladder import Ladder, RequiredMissing
from tierd.pace import HostPace, Pace, RealPace
from tierd.service import CONFIG, FAILURE, KERNEL, OK, Daemon, Fatal, Options
from tierd.state import State, status
from tierd.topology import Topology, TopologyError
from tierd.trace import TraceError
from tierd.trace.file import Reader

USAGE: Final = 2


def dispatch(options: argparse.Namespace) -> int:
    """Run the command that was parsed. Returns the exit status."""
    try:
        return _dispatch(options)
    except ConfigError as error:
        return _invalid(error)
    except Fatal as error:
        return _fatal(error)
    except (TraceError, TopologyError) as error:
        print(f"tierd: {error}", file=sys.stderr)
        return FAILURE


def _dispatch(options: argparse.Namespace) -> int:
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "run": run,
        "check-config": check_config,
        "probe": probe,
        "simulate": simulate,
        "schema": schema,
        "record": record,
        "replay": replay_,
    }
    return commands[options.command](options)


def _load(options: argparse.Namespace) -> Loaded:
    """The policy of a daemon: the file that was named, or what is installed."""
    loaded = config.load(None if options.config is None else [options.config])
    if loaded.config.simulation is not None:
        right = "remove it, or run tierd simulate --config FILE"
        wrong = "a simulated host in the policy of a real one"
        raise ConfigError([loaded.problem(("simulation",), wrong, right)])
    return loaded


def _fatal(error: Fatal) -> int:
    """Say why there is no daemon, where it can be read."""
    for line in () if error.recorded else str(error).splitlines():
        logging.getLogger(journal.ROOT).critical("%s", line)
    return error.code


# -- run ---------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """The daemon on this host, until SIGTERM."""
    level = logging.DEBUG if options.debug else logging.INFO
    journal.install(journal.choose(os.environ), level)
    try:
        service.check_privileges()
        runtime = options.runtime_directory or service.RUNTIME
        watch = _printer() if options.verbose else _nothing
        daemon = Daemon(
            LinuxHost(), lambda: _load(options), RealPace(), Options(runtime=runtime, watch=watch)
        )
        daemon.run()
    except Fatal as error:
        return _fatal(error)
    return OK


def _nothing(state: State) -> None:
    """Print nothing."""


def _printer() -> Callable[[State], None]:
    """Prints one line per cycle."""
    # A terminal shows its width; a file or a pipe takes all there is to say.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 500
    table = render.CycleTable(render.Style(sys.stdout), width)

    def show(state: State) -> None:
        try:
            for line in table.lines(status(state)):
                print(line, flush=True)
        except BrokenPipeError:
            # Who reads this has gone, so nobody is left to press Ctrl-C.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            os.kill(os.getpid(), signal.SIGTERM)

    return show


# -- simulate ----------------------------------------------------------------------------------


def _load_simulation(options: argparse.Namespace) -> tuple[Loaded, Simulation]:
    loaded = config.load([options.config])
    machine = loaded.config.simulation
    if machine is None:
        wrong = "missing, there is no host to simulate"
        right = "write simulation: {nodes: [...], workloads: [...]}"
        raise ConfigError([loaded.problem(("simulation",), wrong, right)])
    if options.listen is not None:
        listen = None if options.listen == "none" else options.listen
        metrics = config.Metrics.model_validate({"listen": listen})
        loaded = loaded.with_config(loaded.config.model_copy(update={"metrics": metrics}))
    return loaded, machine


def simulate(options: argparse.Namespace) -> int:
    """The daemon on a host in arrays, until Ctrl-C or for a number of cycles."""
    level = logging.INFO if options.verbose else logging.WARNING
    journal.install(journal.StderrHandler(prefix=False), level)
    try:
        loaded, machine = _load_simulation(options)
    except ConfigError as error:
        return _invalid(error)
    except ValueError:
        print(f"tierd: --listen {options.listen}: expected ADDRESS:PORT or none", file=sys.stderr)
        return 2
    with _runtime(options.runtime_directory) as runtime:
        print(f"tierd {__version__} on a simulated host, {_sizes(machine)}; Ctrl-C ends it")
        print(f"  tierctl --socket {runtime / service.SOCKET_NAME} status")
        if loaded.config.metrics.listen:
            print(f"  http://{loaded.config.metrics.listen}/metrics")
        sys.stdout.flush()
        host, pace = _simulated(machine, options.clock)
        settings = Options(runtime=runtime, limit=options.cycles, watch=_printer())
        try:
            Daemon(host, lambda: _load_simulation(options)[0], pace, settings).run()
        except Fatal as error:
            return _fatal(error)
    return OK


def _simulated(machine: Simulation, clock: str) -> tuple[Host, Pace]:
    refuse = machine.failures
    failures = Failures(
        pinned=refuse.EBUSY,
        again=refuse.EAGAIN,
        shared=refuse.EPERM,
        mempolicy=refuse.EXDEV,
        vma=refuse.EFAULT,
        mappings=refuse.EMLINK,
        unmapped=refuse.ENODATA,
        kind=refuse.EOPNOTSUPP,
    )
    time: Clock = RealClock() if clock == "real" else VirtualClock()
    host = SimulatedHost(machine, time, failures=failures)
    return host, RealPace() if clock == "real" else HostPace(host)


def _sizes(machine: Simulation) -> str:
    return ", ".join(f"node {node.id} {config.format_size(node.size)}" for node in machine.nodes)


@contextlib.contextmanager
def _runtime(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="tierd-") as private:
        yield Path(private)


# -- record, replay ------------------------------------------------------------------------------


def record(options: argparse.Namespace) -> int:
    """Observe this host, or a simulated one, and write what is seen into a trace."""
    level = logging.INFO if options.verbose else logging.WARNING
    journal.install(journal.StderrHandler(prefix=False), level)
    loaded, machine = _observing(options)
    if machine is None:
        host, pace = _real(options)
    else:
        host, pace = _simulated(machine, options.clock)
    limit = options.cycles
    if options.duration is not None:
        limit = max(math.ceil(options.duration / loaded.config.interval), 1)
    with contextlib.ExitStack() as stack:
        if machine is None:
            _keep_others_out(stack, options.runtime_directory or service.RUNTIME)
        # A socket of its own: the daemon's belongs to systemd and has to outlive this.
        runtime = stack.enter_context(_runtime(None))
        settings = Options(runtime=runtime, limit=limit, trace=options.out, watch=_announce)
        Daemon(host, lambda: _observing(options)[0], pace, settings).run()
    return _recorded(options.out)


def _keep_others_out(stack: contextlib.ExitStack, directory: Path) -> None:
    """Hold the daemon's lock. Raises Fatal, and says what to do, where a daemon has it."""
    try:
        stack.enter_context(service.lock(directory))
    except Fatal as error:
        if "running already" not in str(error):
            raise
        more = "to record what it sees, set trace.directory in its policy and reload it"
        raise Fatal(error.code, f"{error}\n{more}") from None


def _announce(state: State) -> None:
    """Say once that it has begun."""
    if state.cycles == 1 and state.recording is not None:
        print(f"recording to {state.recording.file}; Ctrl-C ends it", flush=True)


def _real(options: argparse.Namespace) -> tuple[Host, Pace]:
    if options.clock == "virtual":
        raise Fatal(USAGE, "--clock virtual is for a policy with simulation:")
    service.check_privileges()
    return LinuxHost(), RealPace()


def _observing(options: argparse.Namespace) -> tuple[Loaded, Simulation | None]:
    """The policy, with nothing moved, served or recorded elsewhere."""
    loaded = config.load(None if options.config is None else [options.config])
    changes = {"mode": config.Mode.OBSERVE, "metrics": config.Metrics(listen=None)}
    changed = loaded.config.model_copy(update={**changes, "trace": config.Trace()})
    return loaded.with_config(changed), loaded.config.simulation


def _recorded(path: Path) -> int:
    """Say what is in the file; a recording that broke off has said why already."""
    with Reader(path) as trace:
        count = sum(1 for _ in trace.cycles())
        print(f"{path}: {count} cycles, {render.size(path.stat().st_size)}")
        return OK if trace.complete else FAILURE


def replay_(options: argparse.Namespace) -> int:
    """Run one policy or two over a trace. Needs no privileges."""
    policies: list[Loaded] = []
    for given in (options.config, options.against):
        if given is not None or not policies:
            policies.append(config.load(None if given is None else [given]))
    with Reader(options.trace) as trace:
        for loaded in policies:
            _check_tiers(loaded, trace)
        forecast = replay.replay(trace.header, trace.cycles(), [each.config for each in policies])
        if not forecast.cycles:
            raise TraceError(f"{options.trace}: holds no whole cycle")
        document = replay.document(forecast, [each.source for each in policies], trace)
    if options.json:
        print(json.dumps(document))
    else:
        sys.stdout.write(render.forecast(document, render.Style(sys.stdout)))
    return OK


def _check_tiers(loaded: Loaded, trace: Reader) -> None:
    """Raise ConfigError where the recorded host does not have what the policy names."""
    nodes = [node.id for node in trace.header.nodes if node.spans]
    problems = loaded.node_problems(nodes)
    if problems:
        raise ConfigError(problems)


# -- check-config, schema ------------------------------------------------------------------------


def _invalid(error: ConfigError) -> int:
    for problem in error.problems:
        print(problem, file=sys.stderr)
    return CONFIG


def check_config(options: argparse.Namespace) -> int:
    """Check a policy, as far as possible against this host. Needs no privileges."""
    try:
        loaded = config.load(None if options.file is None else [options.file])
        if not options.no_host:
            _check_host(loaded)
    except ConfigError as error:
        return _invalid(error)
    if options.print:
        sys.stdout.write(config.show(loaded))
    elif loaded.files:
        for name in loaded.files:
            print(f"{name}: ok")
    else:
        print(f"no policy file; {loaded.source} would be in force: mode observe")
    return OK


def _check_host(loaded: Loaded) -> None:
    simulation = loaded.config.simulation
    if simulation is not None:
        nodes = [node.id for node in simulation.nodes]
    else:
        try:
            nodes = [node.id for node in LinuxHost().nodes() if node.spans]
        except OSError:
            return  # a system without /proc or /sys: the daemon itself will look again
    problems = loaded.node_problems(nodes)
    if problems:
        raise ConfigError(problems)


def schema(options: argparse.Namespace) -> int:
    """Print the JSON schema of policies."""
    sys.stdout.write(config.schema_text())
    return OK


# -- probe ---------------------------------------------------------------------------------------


def probe(options: argparse.Namespace) -> int:
    """Say what the host can do, what tierd would use and why."""
    try:
        loaded = config.load(None if options.config is None else [options.config])
    except ConfigError as error:
        return _invalid(error)
    machine = loaded.config.simulation
    host = LinuxHost() if machine is None else _simulated(machine, "virtual")[0]
    code, document = _survey(host, loaded)
    if options.json:
        print(json.dumps(document))
    else:
        sys.stdout.write(render.probe(document, render.Style(sys.stdout)))
    return code


def _survey(host: Host, loaded: Loaded) -> tuple[int, dict[str, Any]]:
    """Exit status and document. Unlike a start it goes on after the first obstacle."""
    code, problems = OK, []
    capabilities = CapabilitySet(host.capabilities())
    chosen: Ladder | None = None
    tiers: Topology | None = None
    try:
        chosen = ladder.choose(capabilities, loaded.config)
    except RequiredMissing as error:
        code = KERNEL
        problems.append(str(error))
    try:
        tiers = topology.build(host.nodes(), loaded.config.tiers, 1)
    except TopologyError as error:
        code = code or (KERNEL if loaded.config.tiers is None else CONFIG)
        problems.append(str(error))
    except OSError as error:
        code = code or FAILURE
        problems.append(f"cannot read the nodes: {error}")
    return code, _document(host, loaded, capabilities, chosen, tiers, problems)


def _document(
    host: Host,
    loaded: Loaded,
    capabilities: CapabilitySet,
    chosen: Ladder | None,
    tiers: Topology | None,
    problems: list[str],
) -> dict[str, Any]:
    return {
        "version": __version__,
        "host": host.name,
        "policy": loaded.source,
        "mode": loaded.config.mode.value,
        "capabilities": [
            {"name": each.name.value, "available": each.available, "reason": each.reason}
            for each in capabilities.entries
        ],
        "ladder": assembly.rungs(chosen) if chosen else [],
        "degraded": list(chosen.degraded) if chosen else [],
        "tiers": [
            {"name": tier.name, "nodes": list(tier.nodes), "target": tier.target, "why": tier.why}
            for tier in (tiers.tiers if tiers else ())
        ],
        "problem": problems,
        "foreign": [each.detail for each in host.foreign_tierers()],
    }
