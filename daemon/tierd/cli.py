# SPDX-License-Identifier: Apache-2.0
"""The commands: `tierd` (the daemon and its tools) and `tierctl` (talks to a running daemon).

Only the standard library is imported here; what the daemon needs is in `tierd.commands`, which
is imported when one of its commands runs. So `tierctl` starts at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tierd import __version__, control, render
from tierd.control import Client, ControlError, NotRunning, Verb

OK: Final = 0
FAILURE: Final = 1
PRIVILEGE: Final = 4
CONFIG: Final = 6
NOT_RUNNING: Final = 7

_EXITS: Final = """\
exit status:
  0 ok, 1 failure, 2 usage, 3 the kernel lacks a required feature,
  4 not privileged, 6 invalid policy, 7 the daemon is not running"""


class _Parser(argparse.ArgumentParser):
    """argparse without abbreviated options: an abbreviation may mean something else tomorrow."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)


def _number(least: float, most: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(least - 1)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return value

    return parse


# -- tierd -------------------------------------------------------------------------------------


def _tierd_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tierd",
        description="System-wide memory tiering for Linux hosts with CXL memory.",
        epilog=_EXITS,
    )
    parser.add_argument("--version", action="version", version=f"tierd {__version__}")
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(verbs)
    _add_check(verbs)
    probe = verbs.add_parser("probe", help="say what this host can do and what tierd would use")
    _config_option(probe)
    probe.add_argument("--json", action="store_true", help="print JSON")
    _add_simulate(verbs)
    _add_record(verbs)
    _add_replay(verbs)
    verbs.add_parser("schema", help="print the JSON schema of policies")
    verbs.add_parser("version", help="print the version")
    return parser


def _config_option(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        required=required,
        metavar="FILE",
        help="this policy alone" + ("" if required else ", instead of /etc/tierd and its drop-ins"),
    )


def _add_run(verbs: Any) -> None:
    run = verbs.add_parser("run", help="run the daemon in the foreground (as systemd does)")
    _config_option(run)
    _runtime_option(run, "/run/tierd")
    run.add_argument("--verbose", action="store_true", help="print one line per cycle")
    run.add_argument("--debug", action="store_true", help="log every detail")


def _runtime_option(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--runtime-directory",
        type=Path,
        metavar="DIR",
        help=f"where the lock and the control socket are (default: {default})",
    )


def _add_check(verbs: Any) -> None:
    check = verbs.add_parser("check-config", help="check a policy and say what is wrong with it")
    check.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="default: /etc/tierd and its drop-ins"
    )
    check.add_argument(
        "--print", action="store_true", help="print the policy in force, with the place of each key"
    )
    check.add_argument(
        "--no-host", action="store_true", help="do not compare with the memory of this host"
    )


def _add_simulate(verbs: Any) -> None:
    simulate = verbs.add_parser("simulate", help="run the daemon on a simulated host")
    _config_option(simulate, required=True)
    _runtime_option(simulate, "a private one")
    simulate.add_argument(
        "--cycles", type=_number(1, 10**9, int), metavar="N", help="end after N cycles"
    )
    simulate.add_argument(
        "--clock",
        choices=("real", "virtual"),
        default="real",
        help="virtual does not wait between cycles (default: real)",
    )
    simulate.add_argument(
        "--listen", metavar="ADDRESS:PORT", help="serve /metrics there; none for nowhere"
    )
    simulate.add_argument("--verbose", action="store_true", help="print what goes to the journal")


def _seconds(text: str) -> float:
    """Seconds of a duration written as in a policy."""
    number, unit = text.rstrip("mshin"), text.lstrip("0123456789.")
    factor = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}.get(unit)
    try:
        value = float(number) * (factor or 0.0)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 30s, 5min or 2h")
    return value


def _add_record(verbs: Any) -> None:
    record = verbs.add_parser(
        "record", help="observe, move nothing, and write what is seen into a trace"
    )
    _config_option(record)
    record.add_argument(
        "--out",
        type=Path,
        default=Path("tierd.trace"),
        metavar="FILE",
        help="a new file, which its owner alone may read (default: tierd.trace)",
    )
    length = record.add_mutually_exclusive_group()
    length.add_argument(
        "--cycles", type=_number(1, 10**9, int), metavar="N", help="end after N cycles"
    )
    length.add_argument(
        "--duration", type=_seconds, metavar="TIME", help="end after so long, such as 5min"
    )
    record.add_argument(
        "--clock",
        choices=("real", "virtual"),
        default="real",
        help="of a simulated host: virtual does not wait between cycles (default: real)",
    )
    record.add_argument(
        "--runtime-directory",
        type=Path,
        metavar="DIR",
        help="where the daemon's lock is (default: /run/tierd)",
    )
    record.add_argument("--verbose", action="store_true", help="print what goes to the journal")


def _add_replay(verbs: Any) -> None:
    replay = verbs.add_parser(
        "replay", help="say what a policy would have done with what a trace recorded"
    )
    replay.add_argument("trace", type=Path, metavar="TRACE", help="a file that tierd record wrote")
    _config_option(replay)
    replay.add_argument(
        "--against", type=Path, metavar="FILE", help="compare with this other policy"
    )
    replay.add_argument("--json", action="store_true", help="print JSON, with every cycle")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `tierd`. Returns the exit status."""
    options = _tierd_parser().parse_args(arguments)
    if options.command == "version":
        print(f"tierd {__version__}")
        return OK
    from tierd import commands

    return _with_output(lambda: commands.dispatch(options))


def _with_output(function: Callable[[], int]) -> int:
    """Run a command; a reader of its output that goes away, as `head` does, is no failure."""
    try:
        code = function()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, which would complain again.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code


# -- tierctl -----------------------------------------------------------------------------------


def _tierctl_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tierctl", description="Talk to the running tierd.", epilog=_EXITS)
    parser.add_argument("--version", action="version", version=f"tierctl {__version__}")
    default = os.environ.get("TIERD_SOCKET", str(control.PATH))
    parser.add_argument(
        "--socket", type=Path, default=Path(default), metavar="PATH", help=f"default: {default}"
    )
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    json_option = _Parser(add_help=False)
    json_option.add_argument("--json", action="store_true", help="print JSON")
    watch_option = _Parser(add_help=False)
    watch_option.add_argument(
        "--watch",
        nargs="?",
        type=_number(0.1, 3600, float),
        const=2.0,
        metavar="SECONDS",
        help="print again every so often, until Ctrl-C (default: 2)",
    )
    readers = [json_option, watch_option]
    verbs.add_parser("status", parents=readers, help="how the daemon is and what it does")
    verbs.add_parser("top", parents=readers, help="classes and heat")
    verbs.add_parser("pause", help="move nothing until resume")
    verbs.add_parser("resume", help="move again")
    verbs.add_parser("reload", help="load the policy anew and say what is wrong with it")
    explain = verbs.add_parser("explain", parents=[json_option], help="why a page is where it is")
    explain.add_argument(
        "pfn", type=lambda text: int(text, 0), metavar="PFN", help="page frame number, such as 0x1f"
    )
    return parser


def tierctl(arguments: Sequence[str] | None = None) -> int:
    """The command `tierctl`. Returns the exit status."""
    options = _tierctl_parser().parse_args(arguments)
    try:
        return _with_output(lambda: _ask(options))
    except KeyboardInterrupt:
        return OK
    except NotRunning as error:
        return _fail(NOT_RUNNING, f"{error}; start it: systemctl start tierd")
    except PermissionError:
        who = f"root and members of group {control.GROUP} may"
        return _fail(PRIVILEGE, f"not allowed to use {options.socket}; {who}")
    except ControlError as error:
        codes = {"denied": PRIVILEGE, "config": CONFIG}
        return _fail(codes.get(error.code, FAILURE), str(error))
    except TimeoutError:
        return _fail(FAILURE, "the daemon does not answer")
    except (OSError, ValueError) as error:
        return _fail(FAILURE, f"{options.socket}: {error}")


def _fail(code: int, message: str) -> int:
    for line in message.splitlines():
        print(f"tierctl: {line}", file=sys.stderr)
    return code


def _ask(options: argparse.Namespace) -> int:
    verb = Verb(options.command)
    watch = getattr(options, "watch", None)
    args = {"pfn": options.pfn} if verb is Verb.EXPLAIN else {}
    # A reload or a pause waits for the cycle at work, which may be long on a large host.
    timeout = control.CLIENT_TIMEOUT if verb in (Verb.STATUS, Verb.TOP) else 90.0
    with Client(options.socket, timeout) as client:
        if watch is None:
            _show(verb, client.request(verb, **args), options)
            return OK
    clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() and not options.json else ""
    while True:
        # A connection each time: a daemon that was restarted meanwhile is found again.
        with Client(options.socket, timeout) as client:
            data = client.request(verb, **args)
        sys.stdout.write(clear)
        _show(verb, data, options)
        sys.stdout.flush()
        time.sleep(watch)


def _show(verb: Verb, data: Any, options: argparse.Namespace) -> None:
    if getattr(options, "json", False):
        print(json.dumps(data))
        return
    style = render.Style(sys.stdout)
    match verb:
        case Verb.STATUS:
            sys.stdout.write(render.status(data, style))
        case Verb.TOP:
            sys.stdout.write(render.top(data, style))
        case Verb.EXPLAIN:
            sys.stdout.write(render.explain(data, style))
        case Verb.RELOAD:
            print(f"policy loaded from {data['source']}")
        case Verb.PAUSE:
            print("paused: tierd observes and moves nothing until tierctl resume")
        case Verb.RESUME:
            print("resumed")
