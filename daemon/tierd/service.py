# SPDX-License-Identifier: Apache-2.0
"""The daemon's life: start or refuse to, signals, control socket, stop.

The main thread waits in one `selectors` loop for signals, clients and the worker's end. The
worker (`tierd.worker`) runs the cycles. Nothing is left half-started: what was opened before
something failed is closed again in the reverse order.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tierd import __version__, assembly, control, recorder, state
from tierd.announce import say_loaded, say_rejected
from tierd.assembly import Foundation, Refused
from tierd.config import Config, ConfigError, Loaded, Use
from tierd.control import ControlError, Request, Verb
from tierd.host import Host
from tierd.host.linux import Footprint
from tierd.journal import Event, record
from tierd.ladder import RequiredMissing
from tierd.metrics import Exporter, ListenError
from tierd.notify import Notifier, passed_socket
from tierd.pace import Pace
from tierd.recorder import Recorder
from tierd.state import Reload, State
from tierd.topology import TopologyError
from tierd.trace import TraceError
from tierd.worker import Stopping, Worker

OK: Final = 0
FAILURE: Final = 1
KERNEL: Final = 3
PRIVILEGE: Final = 4
CONFIG: Final = 6

RUNTIME: Final = Path("/run/tierd")
SOCKET_NAME: Final = "control.sock"
SWITCH_SECONDS: Final = 0.001
_CAP_SYS_ADMIN: Final = 21
_ANSWER_SECONDS: Final = 60.0
"""How long a client's request may wait for the cycle at work to end."""

_log = logging.getLogger(__name__)


class Fatal(Exception):
    """The daemon cannot start, or not go on. `code` is the exit status."""

    def __init__(self, code: int, message: str, number: int = 0, *, recorded: bool = False) -> None:
        """`number` is the errno behind it, if any. `recorded`: the journal has it already."""
        super().__init__(message)
        self.code = code
        self.errno = number
        self.recorded = recorded


@dataclass(frozen=True, slots=True)
class Options:
    """How the daemon is run, apart from its policy."""

    runtime: Path = RUNTIME
    """Directory of the lock and the control socket; made where it is missing."""
    limit: int | None = None
    """Cycles after which to end, None for never."""
    watch: Callable[[State], None] = field(default=lambda state: None)
    """Called with the state after each cycle."""
    trace: Path | None = None
    """File to record to, whatever the policy says of traces."""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """Where the service manager's variables are."""


def check_privileges(proc: Path = Path("/proc")) -> None:
    """Raise Fatal when this process may not see and move the pages of others."""
    text = (proc / "self/status").read_text()
    effective = next(line for line in text.splitlines() if line.startswith("CapEff:"))
    if not int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1:
        raise Fatal(
            PRIVILEGE,
            "not privileged: page frames are shown to and moved by root (CAP_SYS_ADMIN) only;"
            " run `systemctl start tierd`, or `sudo tierd run`",
        )


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the directory against a second daemon. Raises Fatal."""
    path = directory / "lock"
    try:
        if not directory.is_dir():
            directory.mkdir(parents=True)
            # Members of the group must get to the socket in it, whatever our umask.
            directory.chmod(0o755)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise Fatal(FAILURE, f"{error.filename}: {error.strerror}") from None
    with open(fd, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read().strip() or "unknown"
            raise Fatal(
                FAILURE,
                f"tierd is running already (process {owner} holds {path});"
                " stop that one first: systemctl stop tierd",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def signal_channel(signals: tuple[signal.Signals, ...]) -> Iterator[socket.socket]:
    """A socket on which the numbers of caught signals arrive. Handlers themselves do nothing."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = {number: signal.signal(number, _ignore) for number in signals}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _ignore(number: int, frame: FrameType | None) -> None:
    """The number arrives on the wakeup descriptor."""


class Daemon:
    """One run of the daemon. `run` may be called once, from the main thread."""

    def __init__(
        self,
        host: Host,
        load: Callable[[], Loaded],
        pace: Pace,
        options: Options | None = None,
    ) -> None:
        """`load` gives the policy, at the start and for each reload."""
        self._host = host
        self._load = load
        self._pace = pace
        self._options = options or Options()
        self._notifier = Notifier(self._options.environ)
        self._exporter: Exporter
        self._worker: Worker
        self._reason = "done"

    def run(self) -> None:
        """Run to the end. Raises Fatal for everything that ends it otherwise than by request."""
        Footprint().share_one_arena()
        # A scrape takes the interpreter from the worker a few times, and waits this long for it.
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            with ExitStack() as stack:
                self._serve(stack)
        except Fatal as error:
            self._notifier.failed(error.errno, str(error).splitlines()[0])
            raise

    # -- start -------------------------------------------------------------------------------

    def _serve(self, stack: ExitStack) -> None:
        signals = stack.enter_context(
            signal_channel((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        )
        foundation = self._survey()
        stack.enter_context(lock(self._options.runtime))
        self._exporter = self._export(stack, foundation)
        server = self._listen(stack)
        worker = self._worker = self._build(foundation, self._begin_trace(foundation))
        done = self._end_channel(stack)
        worker.start()
        try:
            self._announce(worker.state)
            self._loop(signals, done, server)
        finally:
            self._notifier.stopping(f"stopping ({self._reason})")
            worker.stop()
            self._wake_host()
            worker.join()
        self._farewell(worker)

    def _survey(self) -> Foundation:
        try:
            loaded = self._load()
            foundation = self._look(loaded)
        except ConfigError as error:
            say_rejected(error.problems, str(error), "not started")
            raise Fatal(CONFIG, str(error), recorded=True) from None
        say_loaded(loaded)
        return foundation

    def _look(self, loaded: Loaded) -> Foundation:
        try:
            return assembly.survey(self._host, loaded, 1)
        except RequiredMissing as error:
            branch = "movers" if hasattr(loaded.config.migration.movers, error.name) else "sources"
            top = "migration" if branch == "movers" else "sampling"
            wrong = f"required, but not available here: {error.reason}"
            where = loaded.problem((top, branch, error.name), wrong, "auto would do without it")
            raise Fatal(KERNEL, str(where)) from None
        except TopologyError as error:
            raise Fatal(KERNEL, str(error)) from None
        except Refused as error:
            raise Fatal(FAILURE, str(error)) from None
        except OSError as error:
            raise Fatal(FAILURE, f"cannot look at this host: {error}", error.errno or 0) from None

    def _export(self, stack: ExitStack, foundation: Foundation) -> Exporter:
        listen = foundation.config.metrics.listen
        exporter = Exporter(listen, page_size=self._host.page_size)
        exporter.config_reload(True, time.time())
        exporter.capabilities(foundation.capabilities)
        try:
            exporter.start()
        except ListenError as error:
            cause = error.__cause__
            number = cause.errno or 0 if isinstance(cause, OSError) else 0
            where = foundation.loaded.problem(
                ("metrics", "listen"),
                str(error).removeprefix("metrics.listen: "),
                "stop what uses that address, set another one, or null for none",
            )
            raise Fatal(FAILURE, str(where), number) from None
        stack.callback(exporter.close)
        return exporter

    def _listen(self, stack: ExitStack) -> control.Server:
        group = control.group_id()
        listener = passed_socket(self._options.environ, "control")
        path = self._options.runtime / SOCKET_NAME
        if listener is None:
            try:
                listener = control.bind(path, group)
            except OSError as error:
                raise Fatal(FAILURE, f"control socket: {error}", error.errno or 0) from None
            stack.callback(path.unlink, missing_ok=True)
        server = control.Server(
            listener,
            self._answer,
            version=__version__,
            group=group,
            failed=self._exporter.count_request_failure,
        )
        stack.callback(server.close)
        return server

    def _begin_trace(self, foundation: Foundation) -> Recorder | None:
        path = self._options.trace
        if path is None:
            return None
        try:
            return recorder.begin(self._host, foundation.topology, path, foundation.config)
        except TraceError as error:
            raise Fatal(FAILURE, str(error)) from None

    def _build(self, foundation: Foundation, recording: Recorder | None) -> Worker:
        try:
            engine = assembly.assemble(self._host, foundation)
        except OSError as error:
            raise Fatal(FAILURE, f"cannot begin: {error}", error.errno or 0) from None
        address = self._exporter.address
        start = State(
            host=self._host.name,
            page_size=self._host.page_size,
            foundation=foundation,
            started=time.time(),
            reload=Reload(True, time.time(), foundation.loaded.source),
            metrics=None if address is None else f"http://{_authority(*address)}/metrics",
        )
        return Worker(
            self._host,
            engine,
            start,
            self._load,
            self._exporter,
            self._notifier,
            self._pace,
            limit=self._options.limit,
            watch=self._options.watch,
            ended=self._end,
            recorder=recording,
        )

    def _end_channel(self, stack: ExitStack) -> socket.socket:
        reader, self._end_writer = socket.socketpair()
        stack.callback(reader.close)
        stack.callback(self._end_writer.close)
        return reader

    def _end(self) -> None:
        self._end_writer.send(b"\0")

    def _announce(self, start: State) -> None:
        foundation = start.foundation
        self._worker.expect_degraded(say_absent(foundation))
        ladder = foundation.ladder
        sampler, mover = "+".join(ladder.samplers) or "none", ladder.mover or "none"
        tiers = " > ".join(
            f"{tier.name} (node {', '.join(map(str, tier.nodes))})"
            for tier in foundation.topology.tiers
        )
        mode = "observe" if assembly.observing(foundation) else foundation.config.mode.value
        record(
            Event.STARTED,
            logging.INFO,
            "tierd %s started: mode %s, sampler %s, mover %s, tiers %s",
            __version__,
            mode,
            sampler,
            mover,
            tiers,
            version=__version__,
            mode=mode,
            sampler=sampler,
            mover=mover,
            tiers=tiers,
            config=foundation.loaded.source,
        )
        if start.metrics:
            _log.info("metrics are at %s", start.metrics)
        self._worker.call(self._worker.look_for_foreign)
        self._notifier.ready(start.summary())

    # -- at work -----------------------------------------------------------------------------

    def _loop(self, signals: socket.socket, done: socket.socket, server: control.Server) -> None:
        with selectors.DefaultSelector() as selector:
            for source in (signals, done, server.listener):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if done in ready:
                    return
                if signals in ready and self._stop_by(signals.recv(64)):
                    return
                if server.listener in ready:
                    server.accept()

    def _stop_by(self, numbers: bytes) -> bool:
        """Act on signals; whether one of them says to stop."""
        stops = [number for number in numbers if number in (signal.SIGTERM, signal.SIGINT)]
        if stops:
            self._reason = signal.Signals(stops[0]).name
            # Who asks a second time does not want to wait.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            return True
        if signal.SIGHUP in numbers:
            with contextlib.suppress(Stopping):
                self._worker.call(self._worker.reload)
        return False

    def _wake_host(self) -> None:
        interrupt = getattr(self._host, "interrupt", None)
        if interrupt is not None:
            interrupt()

    def _farewell(self, worker: Worker) -> None:
        if worker.failure is not None:
            raise Fatal(FAILURE, f"given up: {worker.failure}") from worker.failure
        cycles = worker.state.cycles
        record(
            Event.STOPPED,
            logging.INFO,
            "tierd stopped after %d cycles (%s)",
            cycles,
            self._reason,
            cycles=cycles,
            reason=self._reason,
        )

    # -- requests; each runs in a thread of the control server -----------------------------------

    def _answer(self, request: Request) -> object:
        worker = self._worker
        uid, pid = request.peer.uid, request.peer.pid
        match request.verb:
            case Verb.STATUS:
                return state.status(worker.state)
            case Verb.TOP:
                return state.top(worker.state)
            case Verb.PAUSE:
                self._ask(lambda: worker.pause(uid, pid))
                return {"paused": True}
            case Verb.RESUME:
                self._ask(lambda: worker.resume(uid, pid))
                return {"paused": False}
            case Verb.RELOAD:
                return self._reloaded(self._ask(worker.reload))
            case Verb.EXPLAIN:
                return self._explained(request.args.get("pfn"))

    def _ask(self, function: Callable[[], Any]) -> Any:
        try:
            return self._worker.call(function).result(_ANSWER_SECONDS)
        except Stopping as error:
            raise ControlError("stopping", str(error)) from None
        except FutureTimeout:
            message = f"the cycle at work did not end within {_ANSWER_SECONDS:.0f} s"
            raise ControlError("timeout", message) from None

    def _reloaded(self, result: Reload) -> object:
        if not result.ok:
            raise ControlError("config", "\n".join(result.problems))
        return {"source": result.source}

    def _explained(self, pfn: object) -> object:
        if not isinstance(pfn, int) or isinstance(pfn, bool) or not 0 <= pfn < 2**52:
            raise ControlError("bad_request", "pfn is not a page frame number")
        return state.finite(asdict(self._ask(lambda: self._worker.explain(pfn))))


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def say_absent(foundation: Foundation) -> frozenset[str]:
    """Record each wanted capability that this kernel lacks, once; the reasons for being
    degraded that are explained by them."""
    said: set[str] = set()
    chosen = {rung.kind for rung in foundation.ladder.rungs if rung.chosen}
    for rung in foundation.ladder.rungs:
        wanted = _use(foundation.config, rung.name) is not Use.OFF
        if rung.kind in chosen or not wanted or rung.name in said:
            continue
        said.add(rung.name)
        record(
            Event.CAPABILITY_ABSENT,
            logging.WARNING,
            "%s is not available: %s; %s",
            rung.name,
            rung.reason,
            _CONSEQUENCES[rung.kind],
            capability=rung.name,
            reason=rung.reason,
        )
    return frozenset(
        reason for reason in foundation.ladder.degraded if any(name in reason for name in said)
    )


_CONSEQUENCES: Final = {
    "hot": "nothing is promoted without a source of hotness",
    "cold": "nothing is demoted without a source of cold evidence",
    "mover": "tierd observes and moves nothing",
}


def _use(config: Config, name: str) -> Use:
    found = getattr(config.sampling.sources, name, None)
    found = getattr(config.migration.movers, name, None) if found is None else found
    return found if isinstance(found, Use) else Use.OFF
