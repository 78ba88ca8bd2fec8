# SPDX-License-Identifier: Apache-2.0
"""What is written for people: made from the code where it can be, and true where it cannot."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tierd import cli

TOP = Path(__file__).resolve().parents[2]
PAGES = [TOP / "README.md", TOP / "CHANGELOG.md", *sorted((TOP / "docs").glob("*.md"))]
GENERATED = {
    "packaging/metrics_page.py": "docs/metrics.md",
    "packaging/policy_page.py": "man/tierd.yaml.5",
}


@pytest.mark.parametrize("program", GENERATED)
def test_generated_pages_are_up_to_date(program: str) -> None:
    made = subprocess.run(
        [sys.executable, str(TOP / program)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(TOP / "daemon")},
    )
    assert made.stdout == (TOP / GENERATED[program]).read_text(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("https://", "http://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_anchors_exist(page: Path) -> None:
    text = page.read_text()
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_make_targets_exist(page: Path) -> None:
    """Every `make TARGET` in an indented block or in backquotes."""
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    used = re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    assert set(used) <= targets


def print_help(*arguments: str) -> None:
    function = cli.main if arguments[0] == "tierd" else cli.tierctl
    with pytest.raises(SystemExit) as ended:
        function([*arguments[1:], "--help"])
    assert ended.value.code == 0


def commands(name: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The commands that the program itself lists."""
    print_help(name)
    listed = capsys.readouterr().out
    return set(re.findall(r"^    ([a-z-]+) {2,}", listed, re.MULTILINE))


@pytest.mark.parametrize("name", ["tierd", "tierctl"])
def test_manual_pages_have_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands(name, capsys)
    assert found
    page = (TOP / "man" / f"{name}.8").read_text().replace(r"\-", "-")
    for command in found:
        assert re.search(rf"^\.BR? .*\b{command}\b", page, re.MULTILINE), command


@pytest.mark.parametrize("name", ["tierd", "tierctl"])
def test_manual_pages_have_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (TOP / "man" / f"{name}.8").read_text().replace(r"\-", "-")
    for command in commands(name, capsys):
        print_help(name, command)
        for option in re.findall(r"--[a-z-]+", capsys.readouterr().out.split("options:")[-1]):
            assert option in page or option == "--help", f"{command} {option}"


def test_the_readme_begins_with_the_two_commands() -> None:
    lines = [line for line in (TOP / "README.md").read_text().splitlines() if line.strip()]
    blocks = [line.split("#")[0].strip() for line in lines if line.startswith("    ")]
    assert blocks[:2] == ["make run", "make test"]
    assert lines[2].startswith("    make run")


def test_the_readme_s_policy_is_valid(tmp_path: Path) -> None:
    from tierd import config

    for number, page in enumerate(PAGES):
        for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
            policy = tmp_path / f"{number}.yaml"
            policy.write_text(text)
            config.load([policy])


def test_only_what_is_in_the_project_is_referred_to() -> None:
    """A path in backquotes that begins with one of our directories exists."""
    made = {"build", "dist", "out"}  # by runs; where there was none they are not there
    ours = {path.name for path in TOP.iterdir() if path.is_dir() and path.name[0] != "."} - made
    for page in PAGES:
        for path in re.findall(r"`([\w.-]+/[\w./-]*)`", page.read_text()):
            if path.split("/")[0] in ours:
                assert (TOP / path).exists(), f"{page.name}: {path}"
