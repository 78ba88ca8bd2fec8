# SPDX-License-Identifier: Apache-2.0
"""Find the policy and its drop-ins, merge them, check them.

The main file is the first of /etc/tierd, /run/tierd, /usr/lib/tierd that has a tierd.yaml.
Drop-ins are tierd.d/*.yaml of all three, sorted by file name; of two with the same name the one
in the directory named first here counts, and a link to /dev/null masks the name altogether.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from tierd.config import document, explain
from tierd.config.document import ConfigError, Document, Path_, Problem
from tierd.config.models import Config

MAIN: Final = "tierd.yaml"
DROP_INS: Final = "tierd.d"
DIRECTORIES: Final = (Path("/etc/tierd"), Path("/run/tierd"), Path("/usr/lib/tierd"))
"""Where policies are looked for, strongest first."""

DEFAULTS: Final = "built-in defaults"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy that passed all checks that need no host, and where each key was written."""

    config: Config
    document: Document
    files: tuple[str, ...]
    """The files that it came from, in the order in which they were laid over each other."""

    @property
    def source(self) -> str:
        """The files for people, or that there were none."""
        return ", ".join(self.files) or DEFAULTS

    def with_config(self, config: Config) -> Loaded:
        """The same files with something overridden from the command line."""
        return replace(self, config=config)

    def problem(self, path: Path_, wrong: str, right: str) -> Problem:
        """Something wrong with the key at `path` that only the host could tell."""
        return explain.problem_at(self.document, path, wrong, right)

    def node_problems(self, nodes: Collection[int]) -> list[Problem]:
        """One for each node of a tier that is not among `nodes`, those with memory."""
        listing = ", ".join(map(str, sorted(nodes))) or "none"
        return [
            self.problem(
                ("tiers", index, "nodes", position),
                f"node {node} does not exist here or has no memory",
                f"nodes with memory: {listing}",
            )
            for index, tier in enumerate(self.config.tiers or ())
            for position, node in enumerate(tier.nodes)
            if node not in nodes
        ]


def search(directories: Collection[Path] = DIRECTORIES) -> tuple[Path, ...]:
    """The files that make up the policy: the main file, if any, then the drop-ins.

    Raises ConfigError when a directory is there but cannot be listed.
    """
    mains = [path for path in (directory / MAIN for directory in directories) if _there(path)]
    drop_ins: dict[str, Path] = {}
    for directory in directories:
        for path in _listing(directory / DROP_INS):
            drop_ins.setdefault(path.name, path)
    chosen = mains[:1] + [drop_ins[name] for name in sorted(drop_ins)]
    return tuple(path for path in chosen if not _masked(path))


def _there(path: Path) -> bool:
    # lexists: a dangling link or a file in a closed directory is an error, not "no policy".
    try:
        path.lstat()
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return True


def _listing(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.name.endswith(".yaml")]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        wrong = f"cannot be listed: {error.strerror}"
        right = "the user that runs tierd must be able to read it"
        raise ConfigError([Problem(str(directory), None, "", wrong, right)]) from None


def _masked(path: Path) -> bool:
    return path.is_symlink() and os.path.realpath(path) == os.devnull


def load(files: Collection[Path] | None = None) -> Loaded:
    """Load `files` in this order, or what `search` finds. No file at all: built-in defaults.

    Raises ConfigError with every problem of every file.
    """
    return load_documents([document.read(path) for path in (search() if files is None else files)])


def load_documents(documents: list[Document]) -> Loaded:
    """As `load`, of files that have been read."""
    merged = Document()
    for each in documents:
        merged = document.merge(merged, _check_top(each))
    found = list(merged.problems)
    if merged.broken:
        raise ConfigError(found)
    data = merged.data
    if not documents:
        data = {"version": 1}
    try:
        config = Config.model_validate(explain.plain({} if data is None else data))
    except ValidationError as error:
        # A key that the parser rejected already needs no second line.
        known = {(each.file, each.line, each.key) for each in found}
        more = explain.problems(error, merged)
        found += [each for each in more if (each.file, each.line, each.key) not in known]
        raise ConfigError(_ordered(found, documents)) from None
    if found:
        raise ConfigError(found)
    names = [each.origins[()].file for each in documents if () in each.origins]
    return Loaded(config, merged, tuple(names))


def _ordered(problems: list[Problem], documents: list[Document]) -> list[Problem]:
    files = [each.origins[()].file for each in documents if () in each.origins]
    rank = {name: index for index, name in enumerate(files)}
    return sorted(problems, key=lambda item: (rank.get(item.file, -1), item.line or 0))


def _check_top(each: Document) -> Document:
    """A file with a list or a word at its top must not replace what is below it."""
    if each.broken or each.data is None or isinstance(each.data, dict):
        return each
    origin = each.origins[()]
    right = "key: value lines, the first of them version: 1"
    wrong = f"{explain.show(each.data)} at the top of the file"
    top = Problem(origin.file, origin.line, "", wrong, right)
    return Document(problems=[*each.problems, top], broken=True)
