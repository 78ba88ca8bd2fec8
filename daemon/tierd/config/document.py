# SPDX-License-Identifier: Apache-2.0
"""YAML text -> plain data, with the file and line of each key.

A small, safe YAML: only true and false are booleans (so ``device: off`` is the text "off"),
numbers are decimal (010 and 12:30 stay text), keys are text, a key given twice is an error,
tags and merge keys (``<<``) are not taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

MAX_BYTES: Final = 2**20
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 50_000
"""Bounds on what one file may hold once its aliases are followed."""

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]
Path_ = tuple[str | int, ...]
"""Where a value is: keys and list positions from the top."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something was written; lines count from 1."""

    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a policy: one line for a person, fields for the journal."""

    file: str
    line: int | None
    key: str
    wrong: str
    right: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        what = f"{self.key}: {self.wrong}" if self.key else self.wrong
        # A name or a value of the file may hold a newline; this stays one line.
        return " ".join(f"{place}: {what}; {self.right}".split("\n"))


class ConfigError(Exception):
    """A policy that cannot be used. `problems` has at least one entry."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(slots=True)
class Document:
    """What one file says, or several after `merge`."""

    data: Value = None
    origins: dict[Path_, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: bool = False
    """The file could not be read to its end, so what it says is not known."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the plain scalars of YAML 1.2, less octal and hexadecimal numbers."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)$"),
    list("-+0123456789"),
)


def dotted(path: Path_) -> str:
    """ "tiers[1].nodes" of a path."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read(path: Path) -> Document:
    """Read one file. Errors become problems of the document, never exceptions."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        right = "the user that runs tierd must be able to read it"
        return _broken(str(path), None, f"cannot be read: {error.strerror}", right)
    if len(raw) > MAX_BYTES:
        right = f"at most {MAX_BYTES // 1024} KiB"
        return _broken(str(path), None, "too large for a policy", right)
    return parse(raw, str(path))


def parse(raw: bytes, name: str) -> Document:
    """Parse what the file `name` holds."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return _broken(name, line, "not UTF-8 text", "save it as UTF-8")
    try:
        root = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        right = "check the indentation, colons, quotes and brackets here"
        return _broken(name, mark.line + 1 if mark else None, f"not YAML: {what}", right)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return _broken(name, line, f"not YAML: {error.reason}", "remove the character")
    except RecursionError:
        return _broken(name, 1, "nested too deeply", f"at most {MAX_DEPTH} levels")
    builder = _Builder(name)
    builder.document.origins[()] = Origin(name, 1)
    if root is not None:
        builder.document.data = builder.build(root, (), 0)
    return builder.document


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
    finally:
        loader.dispose()
    return node


def _broken(name: str, line: int | None, wrong: str, right: str) -> Document:
    return Document(problems=[Problem(name, line, "", wrong, right)], broken=True)


class _Builder:
    """Walks the nodes of one file once."""

    def __init__(self, name: str) -> None:
        self.document = Document()
        self._name = name
        self._values = 0

    def build(self, node: yaml.Node, path: Path_, depth: int) -> Value:
        self.document.origins.setdefault(path, self._origin(node))
        self._values += 1
        if depth > MAX_DEPTH or self._values > MAX_VALUES:
            if not self.document.broken:
                self._problem(node, path[:1], "nested too deeply or too much", "a smaller file")
            self.document.broken = True
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)
            ]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path_, depth: int) -> Value:
        result: dict[str, Value] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a key that is not text", "a word before the colon")
                continue
            key = str(key_node.value)
            where = (*path, key)
            if key in result:
                first = self.document.origins[where].line
                wrong = f"given twice, first in line {first}"
                self._problem(key_node, where, wrong, "each key once")
                continue
            self.document.origins[where] = self._origin(key_node)
            result[key] = self.build(value_node, where, depth + 1)
        return result

    def _scalar(self, node: yaml.Node, path: Path_) -> Value:
        text = str(node.value)
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(text)
        except (KeyError, ValueError):
            kind = "?"
        if kind != "str":
            self._problem(node, path, f"the tag {node.tag} is not known", "the value without a tag")
        return text

    def _origin(self, node: yaml.Node) -> Origin:
        return Origin(self._name, node.start_mark.line + 1)

    def _problem(self, node: yaml.Node, path: Path_, wrong: str, right: str) -> None:
        found = Problem(
            self._name, node.start_mark.line + 1, dotted(path), wrong, f"expected {right}"
        )
        self.document.problems.append(found)


def merge(base: Document, over: Document) -> Document:
    """`over` laid on `base`: mappings merge deep, scalars and lists replace."""
    merged = Document(
        data=base.data,
        origins=dict(base.origins),
        problems=base.problems + over.problems,
        broken=base.broken or over.broken,
    )
    if over.data is None:
        merged.origins = {**over.origins, **base.origins}
    else:
        merged.data = _lay(base.data, over.data, (), merged.origins, over.origins)
    return merged


def _lay(
    base: Value,
    over: Value,
    path: Path_,
    origins: dict[Path_, Origin],
    over_origins: dict[Path_, Origin],
) -> Value:
    if isinstance(base, dict) and isinstance(over, dict):
        result = dict(base)
        for key, value in over.items():
            result[key] = _lay(base.get(key), value, (*path, key), origins, over_origins)
        return result
    depth = len(path)
    for old in [known for known in origins if known[:depth] == path]:
        del origins[old]
    origins.update({k: v for k, v in over_origins.items() if k[:depth] == path})
    return over
