# SPDX-License-Identifier: Apache-2.0
"""The linters, as tests: one way to run them, here and in CI."""

from __future__ import annotations

import ast
import fnmatch
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import require

TOP = Path(__file__).resolve().parents[2]
PACKAGE = TOP / "daemon" / "tierd"
MODULES = sorted(PACKAGE.rglob("*.py"))


def tool(name: str, package: str) -> str:
    """Path of a linter: beside this interpreter first, then wherever."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        require(name, f"{name} is not installed ({package})")
    return found


def run(*command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        command, cwd=TOP, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files of the project, relative to its top."""
    git = tool("git", "Debian: git")
    if not (TOP / ".git").exists():
        require("git", "this is no git checkout")
    listing = subprocess.run(
        [git, "-c", f"safe.directory={TOP}", "ls-files", "-z"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [Path(name) for name in listing.split("\0") if name and (TOP / name).is_file()]


def test_ruff_finds_nothing() -> None:
    run(tool("ruff", "pip: ruff"), "check", "--quiet", ".")


def test_ruff_would_format_nothing() -> None:
    run(tool("ruff", "pip: ruff"), "format", "--check", "--quiet", ".")


@pytest.mark.timeout(300)
def test_mypy_finds_nothing() -> None:
    run(tool("mypy", "pip: mypy"), "--python-executable", sys.executable)


def test_imports_keep_to_the_layers() -> None:
    run(tool("lint-imports", "pip: import-linter"), "--no-cache")


def test_codespell_finds_nothing(tracked: list[Path]) -> None:
    texts = [str(path) for path in tracked if path.suffix not in {".patch", ".json"}]
    run(tool("codespell", "pip: codespell"), *texts)


def test_shellcheck_finds_nothing(tracked: list[Path]) -> None:
    scripts = [
        str(path)
        for path in tracked
        if (TOP / path).read_bytes()[:64].split(b"\n")[0] in {b"#!/bin/sh", b"#!/bin/bash"}
        or path.suffix == ".sh"
    ]
    run(tool("shellcheck", "Debian: shellcheck"), "--external-sources", *scripts)


@pytest.mark.parametrize("page", sorted((TOP / "man").iterdir()), ids=lambda path: path.name)
def test_man_pages_have_no_mistakes(page: Path) -> None:
    command = [tool("groff", "Debian: groff-base"), "-man", "-ww", "-z", "-Tutf8", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def annotated() -> Iterator[tuple[str, str]]:
    for entry in tomllib.loads((TOP / "REUSE.toml").read_text())["annotations"]:
        for pattern in entry["path"]:
            yield pattern, entry["SPDX-License-Identifier"]


def licence(path: Path) -> str | None:
    """What a file says of its licence, or what REUSE.toml says for it."""
    for pattern, name in annotated():
        if fnmatch.fnmatch(str(path), pattern.replace("**/", "*").replace("**", "*")):
            return name
    for line in (TOP / path).read_text(errors="replace").splitlines()[:5]:
        if "SPDX-License-Identifier:" in line:
            return line.split("SPDX-License-Identifier:")[1].strip(" */->\\\"'")
    return None


def test_every_file_says_its_licence(tracked: list[Path]) -> None:
    wrong = {}
    for path in tracked:
        if path.parts[0] == "LICENSES":
            continue
        expected = "GPL-2.0-only" if path.parts[0] == "kernel-patches" else "Apache-2.0"
        if licence(path) != expected:
            wrong[str(path)] = licence(path)
    assert wrong == {}


def test_annotations_are_for_files_that_exist(tracked: list[Path]) -> None:
    for pattern, _ in annotated():
        plain = pattern.replace("**/", "*").replace("**", "*")
        assert any(fnmatch.fnmatch(str(path), plain) for path in tracked), pattern


def test_no_stray_whitespace(tracked: list[Path]) -> None:
    """A patch may have it: there it is content."""
    wrong = []
    for path in tracked:
        if path.suffix == ".patch" or path.parts[0] == "LICENSES":
            continue
        text = (TOP / path).read_text(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            tab = "\t" in line and path.suffix in {".yaml", ".yml", ".py", ".json", ".toml", ".md"}
            if tab or line != line.rstrip(" \t"):
                wrong.append(f"{path}:{number}")
        if text and not text.endswith("\n"):
            wrong.append(f"{path}: no newline at its end")
    assert wrong == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_small_enough_to_read(module: Path) -> None:
    source = module.read_text()
    assert len(source.splitlines()) <= 600
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 80, f"{node.name} has {lines} lines"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: except without a type"
