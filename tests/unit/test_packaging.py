# SPDX-License-Identifier: Apache-2.0
"""`make install`: what lands where, and that it runs from there."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import require
from tierd import __version__, config

TOP = Path(__file__).resolve().parents[2]
SAMPLES = sorted((TOP / "config").glob("*.yaml")) + sorted((TOP / "config/policies").glob("*.yaml"))


def make(*arguments: str) -> None:
    program = shutil.which("make")
    if program is None:
        require("make", "make is not installed")
    # Without the variables of a make that may have started this test.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = [program, "-C", str(TOP), f"PYTHON={sys.executable}", "BUNDLE=no", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory with tierd installed in it."""
    directory = tmp_path_factory.mktemp("root")
    make("install", f"DESTDIR={directory}", "PREFIX=/usr")
    return directory


def test_files_are_where_a_distribution_puts_them(root: Path) -> None:
    for path in (
        "etc/tierd/tierd.yaml",
        "etc/tierd/tierd.d",
        "usr/bin/tierd",
        "usr/bin/tierctl",
        "usr/lib/systemd/catalog/tierd.catalog",
        "usr/lib/systemd/system/tierd.service",
        "usr/lib/systemd/system/tierd.socket",
        "usr/lib/sysusers.d/tierd.conf",
        "usr/lib/tierd/tierd/__init__.py",
        "usr/share/doc/tierd/operations.md",
        "usr/share/man/man5/tierd.yaml.5",
        "usr/share/man/man8/tierctl.8",
        "usr/share/man/man8/tierd.8",
        "usr/share/tierd/grafana/tierd.json",
        "usr/share/tierd/policies/kubernetes.yaml",
        "usr/share/tierd/prometheus/alerts.yaml",
        "usr/share/tierd/tierd.schema.json",
    ):
        assert (root / path).exists(), path


def test_nothing_is_writable_for_others(root: Path) -> None:
    """Whatever root runs must not be in the hands of anybody else."""
    for path in (root / "usr").rglob("*"):
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path


def test_the_package_is_compiled(root: Path) -> None:
    """The daemon cannot write there and would compile itself at every start."""
    package = root / "usr/lib/tierd/tierd"
    sources = {path.relative_to(package).with_suffix("") for path in package.rglob("*.py")}
    compiled = {
        (path.parent.parent / path.name.split(".")[0]).relative_to(package)
        for path in package.rglob("*.pyc")
    }
    assert sources == compiled


def test_the_commands_run_from_there(tmp_path: Path) -> None:
    """Not from the checkout: a module of that name in the way is not looked at."""
    make("install", f"PREFIX={tmp_path}/usr", f"SYSCONFDIR={tmp_path}/etc",
         f"SYSTEMD_LIB={tmp_path}/usr/lib", "ACTIVATE=no")  # fmt: skip
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "tierd.py").write_text("raise SystemExit('the wrong tierd')\n")
    (trap / "numpy.py").write_text("raise SystemExit('the wrong numpy')\n")
    done = subprocess.run(
        [tmp_path / "usr/bin/tierd", "--version"],
        cwd=trap,
        env={"PYTHONPATH": str(trap)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert __version__ in done.stdout
    unit = (tmp_path / "usr/lib/systemd/system/tierd.service").read_text()
    assert f"ExecStart={tmp_path}/usr/bin/tierd run" in unit


def test_a_policy_is_never_overwritten(root: Path) -> None:
    policy = root / "etc/tierd/tierd.yaml"
    policy.write_text("version: 1\n")
    make("install", f"DESTDIR={root}", "PREFIX=/usr")
    assert policy.read_text() == "version: 1\n"


def test_uninstall_leaves_the_policy(tmp_path: Path) -> None:
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    make("uninstall", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"etc/tierd/tierd.yaml"}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_samples_are_valid_policies(path: Path) -> None:
    assert config.load([path]).config.mode is config.Mode.TIER


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_samples_satisfy_the_schema(path: Path) -> None:
    import check_jsonschema

    schema = TOP / "config" / "tierd.schema.json"
    assert check_jsonschema.main(
        ["--schemafile", str(schema), str(path)], standalone_mode=False
    ) in (None, 0)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_samples_name_the_schema(path: Path) -> None:
    """So that editors complete and check them."""
    line = next(line for line in path.read_text().splitlines() if "yaml-language-server" in line)
    assert (path.parent / line.split("$schema=")[1]).resolve() == TOP / "config/tierd.schema.json"
