# SPDX-License-Identifier: Apache-2.0
"""The service manager's side of a service: sd_notify(3), the watchdog, passed sockets.

Spoken directly, a few datagrams of text: libsystemd would add nothing but a dependency.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

FEEDS: Final = 10
"""More often than this in a period the watchdog is told nothing: on an emulated host to say so
after every cycle took a tenth of one in which nothing happens. By as much its patience with a
cycle that hangs is the shorter."""

_FIRST_FD: Final = 3
_SEND_TIMEOUT: Final = 1.0
"""Seconds to wait for a service manager that does not read."""


class Notifier:
    """Tells the service manager how the service is; does nothing where there is none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A name in the abstract namespace is written with @ where the kernel wants a NUL.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_period = _watchdog(environ) if self._address else None
        """Seconds within which `watchdog` must be called, None when nobody watches."""
        self._fed = float("-inf")

    @property
    def present(self) -> bool:
        """Whether a service manager listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Up, or through with a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        # systemd 253 and newer wait for this stamp to be later than their own; without it
        # `systemctl reload` hangs until its timeout.
        stamp = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={stamp}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def watchdog(self) -> None:
        """A cycle, or a wait between cycles, has made progress. Said `FEEDS` times in a period at
        most."""
        if self.watchdog_period is None:
            return
        now = time.monotonic()
        if now - self._fed >= self.watchdog_period / FEEDS:
            self._fed = now
            self._send("WATCHDOG=1")

    def failed(self, errno: int, status: str) -> None:
        self._send(f"STATUS={status}", f"ERRNO={errno}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        text = "\n".join(line.replace("\n", " ") for line in lines)
        # A service manager that is away is no reason to stop tiering.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
        ):
            channel.settimeout(_SEND_TIMEOUT)
            channel.sendto(text.encode("utf-8", "replace"), self._address)


def _watchdog(environ: Mapping[str, str]) -> float | None:
    try:
        period = int(environ["WATCHDOG_USEC"]) / 1e6
        owner = int(environ.get("WATCHDOG_PID", os.getpid()))
    except (KeyError, ValueError):
        return None
    return period if owner == os.getpid() and period > 0 else None


def passed_socket(environ: Mapping[str, str], name: str) -> socket.socket | None:
    """The listening stream socket that systemd passed under `name` (FileDescriptorName=), or
    the only one it passed; None when it passed none. All passed sockets are closed on exec."""
    try:
        if int(environ.get("LISTEN_PID", "0")) != os.getpid():
            return None
        count = int(environ.get("LISTEN_FDS", "0"))
    except ValueError:
        return None
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: socket.socket | None = None
    for index in range(count):
        fd = _FIRST_FD + index
        os.set_inheritable(fd, False)
        if found is None and (count == 1 or (index < len(names) and names[index] == name)):
            found = socket.socket(fileno=fd)
    return found
