# SPDX-License-Identifier: Apache-2.0
"""Programs that run in the guest, and where their pages are; tierd has no part in the answers."""

from __future__ import annotations

import functools
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
    """Put the programs into the guest."""
    for name in ("hotset", "placement"):
        guest.put(f"/usr/local/bin/{name}", binary(name), 0o755)


@dataclass
class Load:
    """A running hotset program. Sizes in bytes; `hot_start` follows its shifts."""

    guest: Guest
    unit: str
    pid: int
    address: int
    size: int
    hot: int
    hot_start: int = 0

    def placement(self, offset: int = 0, length: int | None = None) -> Mapping[int, int]:
        """Pages per node in that part of its memory; negative keys are errno values."""
        length = self.size - offset if length is None else length
        command = f"placement {self.pid} {self.address + offset:#x} {length}"
        lines = self.guest.run(command, timeout=60, check=True).stdout.split("\n")
        return {int(line.split()[0]): int(line.split()[1]) for line in lines if line.strip()}

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

    def output(self) -> list[str]:
        return self.guest.run(f"cat /run/{self.unit}.out", check=True).stdout.splitlines()

    def migrate(self, source: int, target: int) -> None:
        """Put its pages from one node on another with migratepages(8)."""
        self.guest.run(f"migratepages {self.pid} {source} {target}", timeout=180, check=True)

    def stop(self) -> None:
        self.guest.run(f"systemctl stop {self.unit}.service", timeout=60, check=False)


def start(
    guest: Guest, unit: str, size_mib: int, hot_mib: int, *options: str, properties: str = ""
) -> Load:
    """Start hotset as a transient service (so in a cgroup of its own) and wait until it runs."""
    command = f"/usr/local/bin/hotset {size_mib} {hot_mib} {' '.join(options)}"
    guest.run(
        f"rm -f /run/{unit}.out; systemd-run --quiet --collect --unit={unit} "
        f"-p StandardOutput=file:/run/{unit}.out "
        f"-p LimitMEMLOCK=infinity {properties} {command}",
        timeout=60,
        check=True,
    )
    path = f"/run/{unit}.out"
    wait(
        lambda: "ready" in guest.run(f"cat {path} 2>/dev/null", check=False).stdout,
        240,
        f"{unit} did not become ready",
    )
    ready = guest.run(f"head -1 {path}", check=True).stdout.split()
    return Load(guest, unit, int(ready[1]), int(ready[2], 0), int(ready[3]), hot_mib * MIB)


def wait(condition: Callable[[], bool], seconds: float, what: str, every: float = 0.2) -> None:
    """Poll until the condition holds; `what` is the failure's message. The limit is generous:
    it ends a test that is stuck, it measures nothing."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(what)
        time.sleep(every)
