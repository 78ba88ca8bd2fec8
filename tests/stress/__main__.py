# SPDX-License-Identifier: Apache-2.0
"""`make stress`: every stressor on the debug kernel, and a table of what happened."""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import rig
from rig.wire import Frame, Kind
from stress import report
from stress.checks import prepare
from stress.suite import STRESSORS, Result, Stressor, run

OUT = Path(__file__).resolve().parents[2] / "out" / "stress"


class Worker:
    """One guest at a time; a new one where the machine is another or the last one died."""

    def __init__(self, made: rig.Artefacts, options: argparse.Namespace, number: int) -> None:
        self._made = made
        self._options = options
        self._number = number
        self._stack = ExitStack()
        self._guest: rig.Guest | None = None
        self._blocks: list[int] = []

    def close(self) -> None:
        self._guest = None
        self._stack.close()

    def run(self, stressor: Stressor) -> Result:
        kernel = self._options.kernel
        machine = self._options.machine or stressor.machine_for(kernel)
        seconds = self._options.seconds
        try:
            guest = self._on(machine, stressor.name)
            return run(
                guest,
                stressor,
                seconds,
                self._blocks,
                processes=self._options.processes,
                move_pages=self._options.move_pages,
            )
        except (rig.GuestError, rig.CommandFailed) as error:
            self.close()
            return Result(stressor.name, kernel, machine, failures=[str(error)])
        except Exception:
            self.close()
            return Result(stressor.name, kernel, machine, failures=[traceback.format_exc()])

    def _on(self, machine: str, name: str) -> rig.Guest:
        if self._guest is None or self._guest.machine.name != machine or not self._guest.alive:
            self.close()
            console = OUT / f"console.{self._options.kernel}.{machine}.{name}.log"
            self._guest = self._stack.enter_context(
                rig.Guest(self._made, self._options.kernel, rig.MACHINES[machine], console=console)
            )
            self._guest.listener = lambda process, frame: self._tell(process, frame)
            self._blocks = prepare(self._guest)
        return self._guest

    def _tell(self, process: rig.Process, frame: Frame) -> None:
        """Progress lines of the program as they come; all else is told at the end."""
        if frame.kind is Kind.STDERR and process.command.startswith("stress "):
            text = frame.payload.decode(errors="replace").rstrip()
            print(f"[{process.command.split()[-2]}] {text}", file=sys.stderr, flush=True)


def _work(
    worker: Worker, todo: queue.SimpleQueue[Stressor], build: str, results: list[Result]
) -> None:
    try:
        while True:
            try:
                stressor = todo.get_nowait()
            except queue.Empty:
                return
            print(f"[{stressor.name}] begins: {stressor.about}", file=sys.stderr, flush=True)
            result = worker.run(stressor)
            report.save(OUT, result, build)
            results.append(result)
            verdict = "passed" if result.passed else "FAILED\n" + "\n".join(result.failures)
            print(f"[{stressor.name}] {verdict}", file=sys.stderr, flush=True)
    finally:
        worker.close()


def _parser() -> argparse.ArgumentParser:
    env = os.environ.get
    parser = argparse.ArgumentParser(prog="stress", description=__doc__)
    names = " ".join(stressor.name for stressor in STRESSORS)
    parser.add_argument("--seconds", type=int, default=300, help="of guest time, each")
    parser.add_argument("--only", default="", help=f"some of: {names}")
    parser.add_argument("--jobs", type=int, default=1, help="guests side by side")
    parser.add_argument("--kernel", default=env("KERNEL") or "debug", choices=sorted(rig.FLAVOURS))
    parser.add_argument(
        "--machine", default=env("MACHINE", ""), help="all on this one, not each on its own"
    )
    parser.add_argument(
        "--processes", type=int, default=int(env("PROCESSES") or 5000), help="that map one page"
    )
    parser.add_argument(
        "--move-pages",
        action="store_true",
        default=env("WITH") == "move_pages",
        help="flood with move_pages(2) instead, to see what is not of our call",
    )
    return parser


def _chosen(only: str) -> list[Stressor]:
    names = only.replace(",", " ").split()
    known = {stressor.name: stressor for stressor in STRESSORS}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"stress: ONLY={only}: no {unknown[0]}; there are: {' '.join(known)}")
    return [known[name] for name in names] if names else list(STRESSORS)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = _chosen(options.only)
    try:
        made = rig.build([options.kernel])
    except rig.Unavailable as error:
        sys.exit(f"stress: {error}")
    OUT.mkdir(parents=True, exist_ok=True)
    build = made.kernels[options.kernel].name
    todo: queue.SimpleQueue[Stressor] = queue.SimpleQueue()
    for stressor in chosen:
        todo.put(stressor)
    results: list[Result] = []
    threads = [
        threading.Thread(
            target=_work, args=(Worker(made, options, i), todo, build, results), daemon=True
        )
        for i in range(options.jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = report.collect(OUT, options.kernel, build)
    print(report.table(records))
    for record in records:
        print(f"\n{record['name']}: {report.events(record)}")
    (OUT / f"table.{options.kernel}.md").write_text(report.table(records) + "\n")
    return 0 if len(results) == len(chosen) and all(r.passed for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
