# SPDX-License-Identifier: Apache-2.0
"""`tests/rig/guest`: a root shell in a guest, or one command there."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import termios
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rig import artefacts as build
from rig.machine import MACHINES, Machine
from rig.supervise import die_with_parent
from rig.vm import Guest, GuestError, Process, start_qemu
from rig.wire import Frame, Kind

RIG_FAILED = 125
"""Exit status when the guest could not be built or did not survive the command."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    command = " ".join(options.command) or os.environ.get("CMD", "")
    # `make` may be killed without a chance to tell us.
    die_with_parent(os.getppid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, _leave)
    machine = MACHINES[options.machine]
    try:
        made = build.build([options.kernel])
        extra = ["-s", "-S"] if options.gdb else []
        if options.gdb:
            print(f"gdb {made.kernels[options.kernel]}/vmlinux -ex 'target remote :1234' -ex c")
            options.append += " nokaslr"
        if command:
            return _command(made, machine, options, command, extra)
        return _shell(made, machine, options, extra)
    except (GuestError, build.Unavailable) as error:
        print(f"guest: {error}", file=sys.stderr)
        return RIG_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="guest", description="Boot a guest and open a root shell on its console, or run CMD."
    )
    machines = "; ".join(f"{machine.name}: {machine.about}" for machine in MACHINES.values())
    parser.add_argument(
        "--kernel",
        choices=sorted(build.FLAVOURS),
        default=os.environ.get("KERNEL") or "release",
        help="or KERNEL in the environment",
    )
    parser.add_argument(
        "--machine",
        choices=sorted(MACHINES),
        default=os.environ.get("MACHINE") or "A",
        help=f"or MACHINE in the environment; {machines}",
    )
    parser.add_argument("--append", default="", help="more for the kernel's command line")
    parser.add_argument("--gdb", action="store_true", help="wait for gdb on port 1234")
    parser.add_argument("--stdin", action="store_true", help="feed our stdin to CMD")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that CMD may take")
    parser.add_argument("--console", type=Path, help="where to keep the console's output")
    parser.add_argument(
        "command",
        metavar="CMD",
        nargs="*",
        help="for sh in the guest; its status is ours. Or CMD in the environment",
    )
    return parser


def _leave(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def _command(
    made: build.Artefacts,
    machine: Machine,
    options: argparse.Namespace,
    command: str,
    extra: list[str],
) -> int:
    guest = Guest(
        made,
        options.kernel,
        machine,
        append=options.append,
        console=options.console and options.console.absolute(),
        qemu_options=extra,
    )
    with guest:
        guest.listener = _pass_on
        with guest.popen(command) as process:
            if options.stdin:
                threading.Thread(target=_feed, args=(process,), daemon=True).start()
            else:
                process.close_stdin()
            status = process.wait(options.timeout).returncode
    return status if status >= 0 else 128 - status


def _pass_on(_: Process, frame: Frame) -> None:
    stream = sys.stdout if frame.kind is Kind.STDOUT else sys.stderr
    try:
        stream.buffer.write(frame.payload)
        stream.buffer.flush()
    except BrokenPipeError:
        os._exit(128 + signal.SIGPIPE)


def _feed(process: Process) -> None:
    while data := os.read(0, 1 << 16):
        process.write(data, timeout=1e6)
    process.close_stdin()


def _shell(
    made: build.Artefacts, machine: Machine, options: argparse.Namespace, extra: list[str]
) -> int:
    before = termios.tcgetattr(0) if os.isatty(0) else None
    size = shutil.get_terminal_size()
    terminal = f"{os.environ.get('TERM', 'vt220')}:{size.lines}:{size.columns}"
    logging = f",logfile={options.console.absolute()}" if options.console else ""
    qemu, lifeline = start_qemu(
        made,
        options.kernel,
        machine,
        append=f"rig.shell rig.tty={terminal} {options.append}",
        options=[
            f"-chardev stdio,id=console,mux=on,signal=off{logging}",
            "-serial chardev:console",
            "-mon chardev=console",
            *extra,
        ],
    )
    try:
        return qemu.wait()
    finally:
        os.close(lifeline)
        qemu.wait(30)
        if before is not None:  # QEMU leaves it raw when it is killed
            termios.tcsetattr(0, termios.TCSANOW, before)
