# SPDX-License-Identifier: Apache-2.0
"""The one thread that runs cycles, at the policy's cadence, and all that must happen between
two of them: reloads, pauses, hot-plug.

It alone touches the engine. Others read `Worker.state`, an immutable snapshot, or hand over a
function with `call`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final, TypeVar

from tierd import assembly
from tierd.announce import say_loaded, say_rejected
from tierd.assembly import Foundation, Refused
from tierd.config import ConfigError, Loaded, OnConflict, Trace
from tierd.engine import CycleReport, Engine
from tierd.host import ForeignTierer, Host
from tierd.host.linux import Footprint
from tierd.journal import Event, record
from tierd.ladder import RequiredMissing
from tierd.metrics import Exporter
from tierd.notify import Notifier
from tierd.pace import Pace
from tierd.recorder import Recorder, begin_in
from tierd.state import Recording, Reload, State
from tierd.topology import TopologyError
from tierd.trace import TraceError

T = TypeVar("T")

CHECK_CYCLES: Final = 10
"""Cycles between two looks for hot-plugged nodes, and between two STATUS= lines."""

STARTED: Final = 3
"""Cycles after which all that cycles use has been used."""

FOREIGN_CYCLES: Final = 60
"""Cycles between two looks for others who move pages, and at every memory block: on a large host
there are thousands of those, so they are looked at sooner only when the size of a node changed."""

MAX_FAILURES: Final = 20
"""Cycles that may fail in a row. A daemon whose every cycle fails does no good: it ends, and the
service manager decides."""

REPEAT: Final = 10.0
"""Seconds within which the same answer to a reload is not recorded again: systemd 253 and newer
send SIGHUP and run ExecReload= for one `systemctl reload`."""

OVERRUN_QUIET: Final = 300.0
"""Seconds between two journal records of overruns; the metric counts every one."""

_FEED_SHARE: Final = 3
_log = logging.getLogger(__name__)


class Stopping(Exception):
    """The worker takes no more calls."""


class Worker:
    """Runs cycles until told to stop, or until `limit` of them are done."""

    def __init__(
        self,
        host: Host,
        engine: Engine,
        state: State,
        load: Callable[[], Loaded],
        exporter: Exporter,
        notifier: Notifier,
        pace: Pace,
        *,
        limit: int | None = None,
        watch: Callable[[State], None] = lambda state: None,
        ended: Callable[[], None] = lambda: None,
        recorder: Recorder | None = None,
    ) -> None:
        """`load` loads the policy anew; `watch` is called after each cycle, `ended` once;
        `recorder` is one apart from what the policy says."""
        self._host = host
        self._engine = engine
        self.state = state
        self._load = load
        self._exporter = exporter
        self._notifier = notifier
        self._pace = pace
        self._footprint = Footprint()
        self._limit = limit
        self._watch = watch
        self._ended = ended
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._stopping = threading.Event()
        self._closed = False
        self._degraded: frozenset[str] = frozenset()
        self._failures = 0
        self._holds: dict[str, str] = {}
        self._recorder = recorder
        self._recorded: Trace | None = None
        self._overrun_said = float("-inf")
        self._foreign_said: set[ForeignTierer] = set()
        self._sizes: dict[int, int] = {}
        """Bytes of each node when its memory blocks were looked at last."""
        self.failure: BaseException | None = None
        """Why the worker gave up, None when it was told to stop."""
        self._thread = threading.Thread(target=self._main, name="worker")

    # -- for other threads -------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the cycle at work. Does not wait; see `join`."""
        self._stopping.set()
        self._pace.wake()

    def join(self) -> None:
        """Wait for the end: the engine is closed then, and what it changed is put back."""
        if self._thread.ident is not None:
            self._thread.join()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` in the worker, between two cycles. Raises Stopping."""
        future: Future[T] = Future()
        with self._gate:
            if self._closed:
                raise Stopping("the daemon is stopping")
            self._calls.put((function, future))
        self._pace.wake()
        return future

    # -- the thread --------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._run()
        except BaseException as error:
            _log.critical("the worker failed", exc_info=True)
            self.failure = error
        finally:
            self._close()
            self._ended()

    def _run(self) -> None:
        self._record()
        begun = self._pace.now()
        while not self._stopping.is_set():
            self._serve()
            if self._stopping.is_set():
                break
            self._cycle()
            if self._recorded is None and self._recorder and self._recorder.stopped:
                self.failure = RuntimeError(self._recorder.stopped)
                break
            if self._limit is not None and self.state.cycles + self.state.failures >= self._limit:
                break
            begun = self._rest(begun)

    def _rest(self, begun: float) -> float:
        """Wait until the next cycle is due, which is the result. A cycle that was too long is
        not made up for."""
        now = self._pace.now()
        if now > begun + self._interval:
            self._overran(now - begun)
            return now
        period = self._notifier.watchdog_period
        step = float("inf") if period is None else period / _FEED_SHARE
        while not self._stopping.is_set():
            # Computed anew each time: a reload may have changed the interval.
            due = begun + self._interval
            now = self._pace.now()
            if now >= due:
                return due if now - due < self._interval else now
            self._pace.wait(min(due - now, step))
            self._serve()
            # This thread is not stuck: waiting for the next cycle is progress too.
            self._notifier.watchdog()
        return now

    @property
    def _interval(self) -> float:
        return self.state.foundation.config.interval

    def _overran(self, took: float) -> None:
        self.state = replace(self.state, overruns=self.state.overruns + 1)
        self._exporter.count_overrun()
        now = self._pace.now()
        if now - self._overrun_said < OVERRUN_QUIET:
            return
        self._overrun_said = now
        record(
            Event.OVERRUN,
            logging.WARNING,
            "cycle %d took %.2f s, longer than the interval of %.2f s",
            self.state.cycles,
            took,
            self._interval,
            cycle=self.state.cycles,
            duration=f"{took:.3f}",
            interval=f"{self._interval:.3f}",
        )

    def _serve(self) -> None:
        """Run what was handed over."""
        while not self._calls.empty():
            function, future = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except Exception as error:  # the caller's, who gets it from the future
                future.set_exception(error)

    def _close(self) -> None:
        with self._gate:
            self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()[1].set_exception(Stopping("the daemon is stopping"))
        if self._recorder is not None:
            self._recorder.close()
        try:
            self._engine.close()
        except Exception as error:  # the process ends anyway; it must say what it left behind
            _log.exception("the engine did not close")
            self.failure = self.failure or error

    # -- one cycle ---------------------------------------------------------------------------

    def _cycle(self) -> None:
        number = self.state.cycles + self.state.failures + 1
        try:
            self._look_around(number)
            paused = self.state.paused or bool(self.state.held)
            report = replace(self._engine.cycle(paused=paused), number=number)
            report = replace(report, degraded=(*report.degraded, *self.state.held))
            self._exporter.publish(report)
        except Exception as error:  # one cycle must not end the daemon; it is counted
            self._failed(number, error)
            return
        self._succeeded(report)

    def _succeeded(self, report: CycleReport) -> None:
        if self._failures:
            reason = f"cycles failed {self._failures} times"
            record(Event.RECOVERED, logging.INFO, "cycles succeed again", reason=reason)
            self._failures = 0
        self.state = replace(
            self.state,
            report=report,
            cycles=self.state.cycles + 1,
            totals=self.state.totals.plus(report),
            recording=self._recording(),
        )
        self._notifier.watchdog()
        if report.flows or report.skipped or any(each.looked for each in report.samplers):
            # The temporaries of a search are megabytes, and the heap would keep them.
            self._footprint.give_back()
        self._tell_degraded()
        if self.state.cycles == STARTED:
            self._footprint.let_go_of_program()
        if self.state.cycles == 1 or self.state.cycles % CHECK_CYCLES == 0:
            self._notifier.status(self.state.summary())
        self._watch(self.state)

    def _failed(self, number: int, error: Exception) -> None:
        self._failures += 1
        self.state = replace(self.state, failures=self.state.failures + 1)
        self._exporter.count_cycle_failure()
        # The first of a row says all; after that each doubling shows that it goes on.
        if self._failures & (self._failures - 1) == 0:
            _log.debug("cycle %d failed", number, exc_info=error)
            what = f"{type(error).__name__}: {error}"
            record(
                Event.CYCLE_FAILED,
                logging.ERROR,
                "cycle %d failed: %s (%s)",
                number,
                what,
                _origin(error),
                cycle=number,
                reason=what,
                failures=self._failures,
            )
        if self._failures >= MAX_FAILURES:
            raise RuntimeError(f"{self._failures} cycles in a row failed") from error
        # A failed cycle is progress too: the loop lives, and the count above ends it.
        self._notifier.watchdog()

    def _tell_degraded(self) -> None:
        now = frozenset(self.state.degraded)
        for reason in sorted(now - self._degraded):
            record(Event.DEGRADED, logging.WARNING, "degraded: %s", reason, reason=reason)
        for reason in sorted(self._degraded - now):
            record(Event.RECOVERED, logging.INFO, "no longer: %s", reason, reason=reason)
        self._degraded = now

    # -- the host changes ----------------------------------------------------------------------

    def expect_degraded(self, reasons: frozenset[str]) -> None:
        """These have been said already, when the capability behind them was found absent."""
        self._degraded |= reasons

    def _look_around(self, number: int) -> None:
        if number % CHECK_CYCLES == 0:
            sizes = {each.node: each.total for each in self._host.node_memory()}
            if sizes != self._sizes or number % FOREIGN_CYCLES == 0:
                if self._host.nodes() != self.state.foundation.nodes:
                    self._hotplug()
                self._sizes = sizes
        if number % FOREIGN_CYCLES == 0:
            self.look_for_foreign()

    def look_for_foreign(self) -> None:
        """Find out who else moves pages, say what is new, and hold where the policy says so."""
        self._judge(self._host.foreign_tierers())

    def _judge(self, foreign: tuple[ForeignTierer, ...]) -> None:
        foundation = replace(self.state.foundation, foreign=foreign)
        for each in foreign:
            if each not in self._foreign_said:
                self._foreign_said.add(each)
                message = "another moves pages on this host: %s"
                fields = {"name": each.name, "reason": each.detail}
                record(Event.FOREIGN_TIERER, logging.WARNING, message, each.detail, **fields)
        self._foreign_said &= set(foreign)
        refused = [
            each.detail
            for each in foreign
            if assembly.verdict(foundation.config, each) is OnConflict.REFUSE
        ]
        self.state = replace(self.state, foundation=foundation)
        why = f"the policy refuses to run beside another: {refused[0]}" if refused else None
        self._hold("rival", why)

    def _hold(self, cause: str, why: str | None) -> None:
        """Move nothing for this cause, or no longer."""
        self._holds.pop(cause, None)
        if why is not None:
            self._holds[cause] = why
        self.state = replace(self.state, held=tuple(self._holds.values()))

    def _hotplug(self) -> None:
        old = self.state.foundation
        generation = old.topology.generation + 1
        try:
            foundation = assembly.survey(self._host, old.loaded, generation)
            self._use(foundation)
            message, level, why = "the memory nodes changed, now %s", logging.INFO, None
        except (ConfigError, TopologyError, RequiredMissing, Refused, OSError) as error:
            why = f"the nodes changed and no longer fit the policy: {str(error).splitlines()[0]}"
            foundation = replace(old, nodes=self._host.nodes())
            message = "the memory nodes changed and no longer fit the policy, now %s"
            level = logging.WARNING
        self._hold("nodes", why)
        nodes = ",".join(str(node.id) for node in foundation.nodes)
        self.state = replace(self.state, foundation=foundation)
        record(Event.HOTPLUG, level, message, nodes, generation=generation, nodes=nodes)

    def _use(self, foundation: Foundation) -> None:
        """Go on with another foundation, with the heat where that still means the same."""
        old = self.state.foundation
        if foundation.interchangeable(old):
            self._engine.reconfigure(foundation.config)
            foundation = replace(foundation, topology=old.topology)
        else:
            # The old one first: two samplers would take each other's marks.
            self._engine.close()
            try:
                self._engine = assembly.assemble(self._host, foundation)
            except Exception:
                self._engine = assembly.assemble(self._host, old)
                raise
        self._exporter.capabilities(foundation.capabilities)
        rebuilt = foundation.topology is not old.topology
        self.state = replace(self.state, foundation=foundation)
        self._record(anew=rebuilt)

    def _recording(self) -> Recording | None:
        if self._recorder is None:
            return None
        writer = self._recorder.writer
        return Recording(str(writer.path), writer.size, self._recorder.stopped)

    def _record(self, *, anew: bool = False) -> None:
        """Begin, go on with or end the recording that the policy asks for. One that was asked for
        by hand goes on for as long as the nodes stay the same."""
        foundation = self.state.foundation
        wanted = foundation.config.trace
        if self._recorded is None and self._recorder is not None and not anew:
            self._engine.watcher = self._recorder
            return
        if wanted == self._recorded and not anew:
            return
        if self._recorder is not None:
            self._recorder.close()
        try:
            self._recorder = begin_in(self._host, foundation.topology, foundation.config)
        except TraceError as error:
            _log.warning("nothing is recorded: %s", error)
            self._recorder = None
        self._recorded = wanted
        self._engine.watcher = self._recorder
        if self._recorder is not None:
            _log.info("recording to %s", self._recorder.writer.path)

    # -- what operators ask for; run in this thread through `call` -----------------------------

    def pause(self, uid: int, pid: int) -> None:
        """Observe until `resume`."""
        if not self.state.paused:
            message = "paused by user %d, process %d"
            record(Event.PAUSED, logging.WARNING, message, uid, pid, uid=uid, pid=pid)
        self.state = replace(self.state, paused=True)

    def resume(self, uid: int, pid: int) -> None:
        """Move again."""
        if self.state.paused:
            message = "resumed by user %d, process %d"
            record(Event.RESUMED, logging.INFO, message, uid, pid, uid=uid, pid=pid)
        self.state = replace(self.state, paused=False)

    def reload(self) -> Reload:
        """Load the policy anew. One that is not good in every way changes nothing."""
        self._notifier.reloading()
        try:
            result = self._reload()
            self._exporter.config_reload(result.ok, result.when)
            self.state = replace(self.state, reload=result)
            return result
        finally:
            # Whatever happened: systemd waits for this one.
            self._notifier.ready(self.state.summary())

    def _reload(self) -> Reload:
        before, config = self.state.reload, self.state.foundation.config
        try:
            loaded = self._load()
            generation = self.state.foundation.topology.generation + 1
            foundation = assembly.survey(self._host, loaded, generation)
            self._use(foundation)
        except (ConfigError, TopologyError, RequiredMissing, Refused, OSError) as error:
            return self._rejected(error, before)
        except Exception as error:  # a signal has no caller who would hear of it
            _log.exception("the policy could not be loaded")
            return self._rejected(RuntimeError(f"{type(error).__name__}: {error}"), before)
        result = Reload(True, time.time(), loaded.source)
        if loaded.config.metrics != config.metrics:
            _log.warning("metrics.listen has changed, which counts from the next start on")
        if loaded.config != config or not _repeats(result, before):
            say_loaded(loaded)
        self._hold("nodes", None)
        self._judge(foundation.foreign)
        return result

    def _rejected(self, error: Exception, before: Reload) -> Reload:
        problems = error.problems if isinstance(error, ConfigError) else ()
        texts = tuple(map(str, problems)) or (str(error),)
        source = self.state.foundation.loaded.source
        result = Reload(False, time.time(), source, texts)
        if not _repeats(result, before):
            say_rejected(problems, str(error), "the old policy stays in force")
        return result

    def explain(self, pfn: int) -> Any:
        """What the engine knows of a page frame."""
        return self._engine.explain(pfn)


def _repeats(result: Reload, before: Reload) -> bool:
    now, then = ((each.ok, each.source, each.problems) for each in (result, before))
    return now == then and result.when - before.when < REPEAT


def _origin(error: BaseException) -> str:
    """Where an exception was raised, for a one-line record."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "?"
    code = trace.tb_frame.f_code
    return f"{code.co_qualname}, line {trace.tb_lineno}"
