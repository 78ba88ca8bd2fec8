# SPDX-License-Identifier: Apache-2.0
"""Run a command that must not outlive whoever started this.

    supervise.py LIFELINE FDS COMMAND...

LIFELINE is the read end of a pipe whose write end the starter holds: when the starter is gone, by
whatever way, the pipe ends and the command is killed. When this process itself is killed the
kernel kills the command. FDS, separated by commas, are passed on to the command.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: int) -> None:
    """Have the kernel send us a signal when our parent goes; at once if it already went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def main() -> int:
    lifeline = int(sys.argv[1])
    passed = [int(fd) for fd in sys.argv[2].split(",") if fd]
    me = os.getpid()
    command = subprocess.Popen(
        sys.argv[3:],
        pass_fds=passed,
        preexec_fn=lambda: die_with_parent(me, signal.SIGKILL),
    )
    for fd in passed:  # so that the starter sees the end of them when the command ends
        os.close(fd)
    # The starter says when this ends; a Ctrl-C on its terminal is its business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        selector.register(lifeline, selectors.EVENT_READ)
        selector.register(os.pidfd_open(command.pid), selectors.EVENT_READ)
        ready = {key.fd for key, _ in selector.select()}
    if lifeline in ready:
        command.kill()
    status = command.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
