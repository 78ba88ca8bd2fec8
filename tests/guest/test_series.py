# SPDX-License-Identifier: Apache-2.0
"""The kernel patches apply to Debian's source, by git am and by quilt, and checkpatch is content.

The builds in all configurations are `make check-series`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import rig
from conftest import require

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source() -> Path:
    """Debian's tar file."""
    reason = rig.why_unavailable()
    if reason is not None:
        require("guest", reason)
    steps = TOP / "tests/rig"
    subprocess.run([steps / "host-packages"], check=True)
    made = subprocess.run([steps / "kernel-source"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(made.stdout.strip(), "linux-source-6.12.tar.xz")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the check unpacks the source, once for all tests."""
    return tmp_path_factory.mktemp("check") / "work"


def check(source: Path, script: Path, work: Path) -> subprocess.CompletedProcess[str]:
    command = [script, "--quick", source]
    environment = os.environ | {"WORK": str(work)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_series_applies_and_has_style(source: Path, work: Path) -> None:
    done = check(source, TOP / "kernel-patches/check.sh", work)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("== all checks passed\n")


def test_a_fault_is_found(source: Path, work: Path, tmp_path: Path) -> None:
    """The check can fail: a patch with a line that checkpatch dislikes."""
    copy = tmp_path / "kernel-patches"
    shutil.copytree(TOP / "kernel-patches", copy)
    first = copy / "6.12" / (copy / "6.12/series").read_text().split()[0]
    text = first.read_text()
    line = next(line for line in text.splitlines() if line.startswith("+\t"))
    first.write_text(text.replace(line, line.replace("+\t", "+    "), 1))
    done = check(source, copy / "check.sh", work)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "please, no spaces at the start of a line" in done.stdout
