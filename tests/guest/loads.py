# SPDX-License-Identifier: Apache-2.0
"""Programs that run in the guest, and where their pages are; tierd has no part in the answers."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rig import Guest

PAGE = 4096
MIB = 2**20
_PROGRAMS = Path(__file__).parent / "programs"


@functools.cache
def binary(name: str) -> bytes:
    """The named program of `programs/`, linked statically so that it runs in any guest."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, name)
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(out)]
        subprocess.run([*command, str(_PROGRAMS / f"{name}.c")], check=True)
        return out.read_bytes()


def install(guest: Guest) -> None:
    """Put the programs into the guest, and on its disk: a program that moves to CXL memory takes
    the page cache of its own file along, and QEMU's disk cannot read what is dirty there."""
    for name in ("access", "hotset", "placement"):
        guest.put(f"/usr/local/bin/{name}", binary(name), 0o755)
    guest.run("sync", timeout=120, check=True)


@dataclass
class Placed:
    """A program that runs as a service, and where its memory is. Sizes in bytes."""

    guest: Guest
    unit: str
    pid: int
    address: int
    size: int

    def placement(self, offset: int = 0, length: int | None = None) -> Mapping[int, int]:
        """Pages per node in that part of its memory; negative keys are errno values."""
        length = self.size - offset if length is None else length
        command = f"placement {self.pid} {self.address + offset:#x} {length}"
        lines = self.guest.run(command, timeout=60, check=True).stdout.split("\n")
        return {int(line.split()[0]): int(line.split()[1]) for line in lines if line.strip()}

    def output(self) -> list[str]:
        return self.guest.run(f"cat /run/{self.unit}.out", check=True).stdout.splitlines()

    def stop(self) -> None:
        self.guest.run(f"systemctl stop {self.unit}.service", timeout=60, check=False)


@dataclass
class Load(Placed):
    """A running hotset program; `hot_start` follows its shifts."""

    hot: int
    hot_start: int = 0

    def share(self, node: int, *, hot: bool = False) -> float:
        """Share of its pages (or of its hot pages) on that node."""
        counts = self.placement(self.hot_start, self.hot) if hot else self.placement()
        return counts.get(node, 0) / sum(counts.values())

    def mapped_on(self, node: int) -> int:
        """Base pages on that node in all that the process maps (/proc/PID/numa_maps)."""
        command = f"grep -o ' N{node}=[0-9]*' /proc/{self.pid}/numa_maps || true"
        words = self.guest.run(command, check=True).stdout.split()
        return sum(int(word.split("=")[1]) for word in words)

    def shift(self) -> None:
        """Move the hot window on by its own length."""
        said = len(self.output())
        self.guest.run(f"kill -USR1 {self.pid}", check=True)
        wait(lambda: len(self.output()) > said, 60, f"{self.unit} did not shift")
        self.hot_start = (self.hot_start + self.hot) % self.size

    def passes(self) -> int:
        """Passes over the hot window so far, after checking that no page lost its content."""
        said = len(self.output())
        self.guest.run(f"kill -USR2 {self.pid}", check=True)
        wait(lambda: len(self.output()) > said, 120, f"{self.unit} did not report")
        words = self.output()[-1].split()
        assert words[0] == "passes", words
        assert int(words[3]) == 0, f"{self.unit}: {words[3]} pages lost their content"
        return int(words[1])

    def migrate(self, source: int, target: int) -> None:
        """Put its pages from one node on another with migratepages(8)."""
        self.guest.run(f"migratepages {self.pid} {source} {target}", timeout=180, check=True)


@dataclass
class Access(Placed):
    """A running access program; `hot` are the offsets of the pieces that are hot now."""

    hot: list[int]
    piece: int

    def share(self, node: int) -> float:
        """Share of its pages on that node."""
        counts = self.placement()
        return counts.get(node, 0) / sum(counts.values())

    def hot_share(self, node: int) -> float:
        """Share of its hot pages on that node."""
        parts = [self.placement(at, self.piece) for at in self.hot]
        return sum(each.get(node, 0) for each in parts) * PAGE / (self.piece * len(self.hot))

    def shift(self) -> None:
        """Replace the piece that has been hot longest."""
        said = self._lines("hot")
        self.guest.run(f"kill -USR1 {self.pid}", check=True)
        wait(lambda: len(self._lines("hot")) > len(said), 60, f"{self.unit} did not shift")
        self.hot = [int(word) for word in self._lines("hot")[-1].split()[1:]]

    def bad_pages(self) -> int:
        """Pages that have lost their content."""
        said = self._lines("pages")
        self.guest.run(f"kill -USR2 {self.pid}", check=True)
        wait(lambda: len(self._lines("pages")) > len(said), 240, f"{self.unit} did not report")
        return int(self._lines("pages")[-1].split()[2])

    def speed(self, lines: int) -> float:
        """Accesses per second over its next `lines` reports."""
        first = len(self._lines("did"))
        wait(lambda: len(self._lines("did")) > first + lines, 240, f"{self.unit} stands still")
        part = [[int(word) for word in line.split()[1:3]] for line in self._lines("did")[first:]]
        return (part[-1][1] - part[0][1]) / (part[-1][0] - part[0][0]) * 1000

    def _lines(self, word: str) -> list[str]:
        return [line for line in self.output() if line.startswith(word)]


def access(guest: Guest, unit: str, pattern: str, size_mib: int, options: str = "") -> Access:
    """Start access.c as a transient service and wait until it runs."""
    _launch(guest, unit, f"/usr/local/bin/access {pattern} {size_mib} {options}")
    lines = guest.run(f"head -2 /run/{unit}.out", check=True).stdout.splitlines()
    ready, hot = lines[0].split(), [int(word) for word in lines[1].split()[1:]]
    found = re.search(r"--hot (\d+)", options)
    piece = int(found[1]) * MIB // len(hot) // PAGE * PAGE if found else 0
    return Access(guest, unit, int(ready[1]), int(ready[2], 0), int(ready[3]), hot, piece)


def start(
    guest: Guest, unit: str, size_mib: int, hot_mib: int, *options: str, properties: str = ""
) -> Load:
    """Start hotset as a transient service (so in a cgroup of its own) and wait until it runs."""
    command = f"/usr/local/bin/hotset {size_mib} {hot_mib} {' '.join(options)}"
    _launch(guest, unit, command, properties)
    ready = guest.run(f"head -1 /run/{unit}.out", check=True).stdout.split()
    return Load(guest, unit, int(ready[1]), int(ready[2], 0), int(ready[3]), hot_mib * MIB)


def _launch(guest: Guest, unit: str, command: str, properties: str = "") -> None:
    """Start a program as a transient service and wait until it says that it is ready."""
    path = f"/run/{unit}.out"
    guest.run(
        f"rm -f {path}; systemd-run --quiet --collect --unit={unit} "
        f"-p StandardOutput=file:{path} -p LimitMEMLOCK=infinity {properties} {command}",
        timeout=60,
        check=True,
    )
    wait(
        lambda: "ready" in guest.run(f"cat {path} 2>/dev/null", check=False).stdout,
        240,
        f"{unit} did not become ready",
    )


def wait(condition: Callable[[], bool], seconds: float, what: str, every: float = 0.2) -> None:
    """Poll until the condition holds; `what` is the failure's message. The limit is generous:
    it ends a test that is stuck, it measures nothing."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(what)
        time.sleep(every)
