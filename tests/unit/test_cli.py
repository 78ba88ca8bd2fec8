# SPDX-License-Identifier: Apache-2.0
"""The commands: what they print, where, and how they end."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tierd import __version__, render
from tierd.cli import main, tierctl

ENV = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
SIMULATION = """\
version: 1
mode: tier
interval: 500ms
sampling: {cpu: 50%}
metrics: {listen: null}
simulation:
  nodes:
    - {id: 0, size: 32MiB, cpus: 1, latency: 0.0001ms}
    - {id: 1, size: 64MiB, latency: 0.0003ms}
  workloads: [{kind: hotset, size: 40MiB, hot: 8MiB}]
"""


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """Commands that run in this process set the package's logger up; undo it."""
    log = logging.getLogger("tierd")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from tierd.cli import {command}; sys.exit({command}())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["run", "--conf", "x"], ["simulate"], ["check-config", "a", "b"]]
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: tierd" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"tierd {__version__}\n"


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text("version: 1\nmode: tier\n")
    assert main(["check-config", str(policy)]) == 0
    assert capsys.readouterr().out == f"{policy}: ok\n"
    assert main(["check-config", str(policy), "--print"]) == 0
    out = capsys.readouterr().out
    assert "mode: tier                                  # p.yaml:2" in out

    policy.write_text("version: 1\nmode: teir\ninterval: 5\n")
    assert main(["check-config", str(policy)]) == 6
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"{policy}:2: mode: 'teir' is not known here; expected observe or tier",
        f"{policy}:3: interval: 5 is not valid here; expected a duration with its unit,"
        " such as 1s, 200ms or 5min",
    ]


def test_check_config_against_the_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text("version: 1\ntiers:\n- {name: a, nodes: [0]}\n- {name: b, nodes: [999]}\n")
    assert main(["check-config", str(policy)]) == 6
    assert f"{policy}:4: tiers[1].nodes[0]: node 999 does not exist" in capsys.readouterr().err
    assert main(["check-config", "--no-host", str(policy)]) == 0
    policy.write_text(policy.read_text() + SIMULATION.removeprefix("version: 1\n"))
    assert main(["check-config", str(policy)]) == 6
    assert "nodes with memory: 0, 1" in capsys.readouterr().err


def test_installed_policies_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((Path(__file__).parents[2] / "config").rglob("*.yaml")):
        text = path.read_text()
        if text.startswith("# SPDX") and "\nversion: 1\n" in text:
            assert main(["check-config", "--no-host", str(path)]) == 0, capsys.readouterr().err


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "tierd policy"


def test_probe_of_a_simulated_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text(SIMULATION)
    assert main(["probe", "--config", str(policy), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [tier["nodes"] for tier in document["tiers"]] == [[0], [1]]
    assert {rung["name"] for rung in document["ladder"] if rung["chosen"]} == {
        "page_idle",
        "move_phys_pages",
    }
    assert all(rung["reason"] for rung in document["ladder"])
    assert main(["probe", "--config", str(policy)]) == 0
    out = capsys.readouterr().out
    assert "tiers, fastest first" in out
    assert max(map(len, out.splitlines())) <= 80

    policy.write_text(SIMULATION + "migration: {movers: {move_pages: required}}\n")
    assert main(["probe", "--config", str(policy)]) == 3
    assert "move_pages is required by the policy" in " ".join(capsys.readouterr().out.split())


def test_simulate_prints_a_line_per_cycle(tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text(SIMULATION)
    done = run("main", "simulate", "--config", str(policy), "--cycles", "3", "--clock", "virtual")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"tierd {__version__} on a simulated host, node 0 32MiB")
    assert lines[-4].split()[:3] == ["cycle", "tier0", "GiB"]
    assert [line.split()[0] for line in lines[-3:]] == ["1", "2", "3"]


def test_simulate_ends_with_ctrl_c_and_with_its_reader(tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text(SIMULATION)
    command = [sys.executable, "-m", "tierd", "simulate", "--config", str(policy)]
    for gone in (False, True):
        with subprocess.Popen(
            command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            while not process.stdout.readline().lstrip().startswith("2 "):
                assert process.poll() is None, process.stderr.read()
            if gone:
                process.stdout.close()
            else:
                process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
            errors = process.stderr.read().splitlines()
            assert [line for line in errors if "longer than the interval" not in line] == []


def test_simulate_wants_a_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text("version: 1\n")
    assert main(["simulate", "--config", str(policy)]) == 6
    assert f"{policy}:1: simulation: missing" in capsys.readouterr().err
    policy.write_text(SIMULATION)
    assert main(["simulate", "--config", str(policy), "--listen", "here"]) == 2
    assert "expected ADDRESS:PORT" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_run_needs_privileges(tmp_path: Path) -> None:
    code = (
        "import os, sys; from tierd import cli, commands; os.setgroups([]); os.setuid(65534);"
        "sys.exit(cli.main(['run']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENV, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 4
    assert done.stderr.startswith("tierd: not privileged: ")
    assert done.stderr.count("\n") == 1


def test_tierctl_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "none.sock")
    for verb in ("status", "top", "pause", "resume", "reload"):
        assert tierctl(["--socket", path, verb]) == 7
    assert tierctl(["--socket", path, "explain", "0x10"]) == 7
    error = capsys.readouterr().err.splitlines()[0]
    assert error == f"tierctl: no daemon listens at {path}; start it: systemctl start tierd"


def test_tierctl_starts_without_the_daemons_libraries() -> None:
    code = (
        "import sys; import tierd.cli; tierd.cli.tierctl(['--socket', '/nonexistent', 'status']);"
        "heavy = {'numpy', 'pydantic', 'yaml', 'prometheus_client'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENV, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "[]\n"


STATUS: dict[str, Any] = {
    "version": "1",
    "host": "Linux 6.12.1-very-long-name-of-a-kernel x86_64",
    "page_size": 4096,
    "uptime": 90000.0,
    "mode": "observe",
    "config": {
        "mode": "tier",
        "source": "/etc/tierd/tierd.yaml, /etc/tierd/tierd.d/50-one.yaml, /run/tierd/tierd.d/x",
        "last_reload": {"ok": False, "problems": ["/etc/tierd/tierd.yaml:7: a: wrong; right " * 3]},
    },
    "sampler": "page_idle",
    "mover": "none",
    "metrics": "http://127.0.0.1:9709/metrics",
    "trace": {
        "file": "/var/lib/tierd/tierd-20260101T000000.000000Z.trace",
        "size": 1,
        "ended": "x",
    },
    "degraded": ["no mover, observing only (" + "move_phys_pages: not there; " * 5 + ")"],
    "hit_ratio": 0.931,
    "cycle": {
        "number": 123456,
        "duration": 0.21,
        "interval": 1.0,
        "overruns": 10000,
        "failures": 1234,
        "back_off": 0.9375,
        "back_off_causes": ["memory", "cpu", "io"],
    },
    "tiers": [
        {
            "name": "a-very-fast-tier",
            "nodes": [0, 1],
            "total": 16 * 2**40,
            "free": 1023 * 2**30,
            "headroom_low": 1000 * 2**30,
            "headroom_high": 1000 * 2**30,
            "hot": 1000 * 2**30,
        },
        {"name": "cxl", "nodes": [2]},
    ],
    "moves": {
        way: {
            "bytes": 2**44,
            "last_cycle_bytes": 200 * 2**20,
            "rate_limit": 200 * 2**20,
            "last_cycle_skipped_pages": {f"reason_{n}": 1000000 + n for n in range(9)},
        }
        for way in ("promote", "demote")
    },
    "foreign_tierers": [{"detail": "/proc/sys/kernel/numa_balancing is 1, 0 switches it off"}],
}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_status_fits_80_columns_and_has_no_colours_off_a_terminal() -> None:
    text = render.status(STATUS, render.Style(io.StringIO()))
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "93.1 %" in text
    assert "\x1b" in render.status(STATUS, render.Style(_Terminal(), {"TERM": "xterm"}))
    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in render.status(STATUS, render.Style(_Terminal(), environ))


def test_cycle_lines_fit_where_they_must() -> None:
    table = render.CycleTable(render.Style(io.StringIO()), 80)
    lines = list(table.lines(STATUS)) + list(table.lines(STATUS))
    assert len(lines) == 3
    assert lines[1] == lines[2]
    assert max(map(len, lines)) <= 80
    wide = render.CycleTable(render.Style(io.StringIO()), 500)
    assert "reason_0 7812.5" in list(wide.lines(STATUS))[1]


def test_top_fits_80_columns() -> None:
    document = {
        "tiers": ["dram", "cxl", "far"],
        "classes": [
            {
                "match": "kubepods.slice/*besteffort*/" + "x" * 40,
                "resident": {"dram": 2**40},
                "promoted": 0,
                "demoted": 2**30,
                "stopped": True,
            }
        ],
        "heat": {"dram": [0, 5, 2**40]},
    }
    text = render.top(document, render.Style(io.StringIO()))
    assert max(map(len, text.splitlines())) <= 80
    assert "promotion is stopped" in text
