# SPDX-License-Identifier: Apache-2.0
"""The tierd service in the guest, as an operator sees it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from guest import loads
from guest.loads import wait
from rig import Guest

POLICY = "/etc/tierd/tierd.yaml"

# No curl in the guest, and a Python start costs a second of an emulated core: the shell asks.
_SCRAPE = (
    "exec 3<>/dev/tcp/127.0.0.1/9709; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; "
    "sed -e '1,/^\\r*$/d' <&3"
)


@dataclass(frozen=True)
class Scrape:
    """One reading of /metrics."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name whose labels include `labels`."""
        wanted = frozenset(labels.items())
        return sum(
            value for (key, have), value in self.samples.items() if key == name and wanted <= have
        )


@dataclass
class Service:
    """tierd under systemd in one guest."""

    guest: Guest

    def policy(self, text: str) -> None:
        self.guest.put(POLICY, text.encode())

    def systemctl(self, verb: str, *, check: bool = True) -> int:
        command = f"systemctl {verb} tierd.service"
        return self.guest.run(command, timeout=180, check=check).returncode

    def start(self) -> None:
        self.guest.run("systemctl reset-failed tierd.service", check=False)
        self.systemctl("start")

    def stop(self) -> None:
        self.systemctl("stop")

    def text(self) -> str:
        """/metrics as it is. A scrape that fails is said and tried once more: one connection in
        many runs was reset, and the cause is not known."""
        command = f"bash -c '{_quoted(_SCRAPE)}'"
        first = self.guest.run(command, timeout=60, check=False)
        if first.returncode == 0:
            return first.stdout
        print(f"a scrape failed: {first.stderr.strip()}")
        return self.guest.run(command, timeout=60, check=True).stdout

    def scrape(self) -> Scrape:
        return Scrape(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(self.text())
                for sample in family.samples
            }
        )

    def cycles(self) -> int:
        return int(self.scrape().total("tierd_cycles_total"))

    def wait_cycles(self, count: int) -> Scrape:
        """Wait until that many more cycles have ended; the scrape after it."""
        target = self.cycles() + count
        wait(lambda: self.cycles() >= target, 60 + 30 * count, f"no {count} cycles", every=0.5)
        return self.scrape()

    def status(self) -> dict[str, Any]:
        """`tierctl status --json`."""
        result = self.guest.run("tierctl status --json", timeout=60, check=True)
        status: dict[str, Any] = json.loads(result.stdout)
        return status

    def journal(self, since: str | None = None) -> Iterator[dict[str, Any]]:
        """Records of `journalctl -t tierd -o json`, oldest first."""
        after = f"--after-cursor='{since}'" if since else ""
        self.guest.run("journalctl --sync", timeout=60, check=False)
        command = f"journalctl -t tierd -o json --no-pager {after}"
        for line in self.guest.run(command, timeout=60, check=True).stdout.splitlines():
            if line.startswith("{"):
                yield json.loads(line)

    def cursor(self) -> str:
        """Where the journal ends now, for `journal(since=...)`."""
        out = self.guest.run("journalctl -n 0 --show-cursor --no-pager", timeout=60, check=True)
        return out.stdout.rsplit("-- cursor: ", 1)[1].strip()


def _quoted(script: str) -> str:
    return script.replace("'", "'\\''")


_CALL = re.compile(r"^\d+\s+(?:<\.\.\. )?(\w+)")


def traced_calls(guest: Guest, policy: str, cycles: int = 8, until: str = "") -> set[str]:
    """Names of all system calls of a daemon that has something to promote, over so many cycles,
    and until it has made the one that is named by `until`. strace names those it knows; the
    others show as syscall_0x and the number."""
    guest.put("/run/traced.yaml", policy.encode())
    load = loads.start(guest, "load-traced", 32, 16)
    load.migrate(0, 1)
    command = "exec strace -f --seccomp-bpf -o /run/calls tierd run --config /run/traced.yaml"
    with guest.popen(command) as traced:
        wait(lambda: _cycles(guest) >= cycles, 240, f"no {cycles} cycles under strace", every=1)
        if until:
            guest.wait_until(f"grep -q '^[0-9]* *{until}(' /run/calls", timeout=120)
        traced.kill(signal.SIGTERM)
        traced.wait(120)
    load.stop()
    out = guest.run("cut -d'(' -f1 /run/calls | sort -u", timeout=120, check=True).stdout
    return {match[1] for line in out.splitlines() if (match := _CALL.match(line))}


def _cycles(guest: Guest) -> int:
    """Cycles of a daemon that may not be up yet."""
    shown = guest.run(f"bash -c '{_quoted(_SCRAPE)}' 2>/dev/null", check=False).stdout
    match = re.search(r"^tierd_cycles_total ([0-9]+)", shown, re.MULTILINE)
    return int(match[1]) if match else 0
