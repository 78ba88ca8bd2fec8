# SPDX-License-Identifier: Apache-2.0
"""What the models reject, in words: where, what is wrong and what would be right."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tierd.config.document import Document, Origin, Path_, Problem, Value, dotted
from tierd.config.models import Config

_MAX_SHOWN = 40


def locate(document: Document, path: Path_) -> Origin:
    """Where `path` was written, or else the nearest thing around it."""
    for length in range(len(path), -1, -1):
        origin = document.origins.get(path[:length])
        if origin is not None:
            return origin
    return Origin("built-in defaults", 1)


def problem_at(document: Document, path: Path_, wrong: str, right: str) -> Problem:
    """A problem with what was written at `path`."""
    origin = locate(document, path)
    return Problem(origin.file, origin.line, dotted(path), wrong, right)


def problems(error: ValidationError, document: Document) -> list[Problem]:
    """All that pydantic found."""
    details = error.errors(include_url=False)
    return [_problem(detail, document) for detail in details if not _spurious(detail)]


def _spurious(detail: ErrorDetails) -> bool:
    """pydantic calls a list too short whose entries are wrong: those are reported already."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]


def _problem(detail: ErrorDetails, document: Document) -> Problem:
    path: Path_ = detail["loc"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if detail["type"] == "tierd":
        path = (*path, *context["keys"])
        return problem_at(document, path, context["wrong"], f"expected {context['right']}")
    if detail["type"] == "extra_forbidden":
        return problem_at(document, path, "unknown key", _suggest(path))
    if detail["type"] == "missing":
        example = "version: 1" if path == ("version",) else f"{path[-1]}: ..."
        return problem_at(document, path, "missing", f"write {example}")
    wrong, right = _words(detail, context)
    return problem_at(document, path, wrong, right)


def _words(detail: ErrorDetails, context: Mapping[str, Any]) -> tuple[str, str]:
    """What is wrong and what would be right for an error of form."""
    shown, kind = show(detail["input"]), detail["type"]
    if kind == "value_error":
        return f"{shown} is not valid here", str(context["error"])
    if kind in ("enum", "literal_error"):
        expected = str(context["expected"]).replace("'", "")
        return f"{shown} is not known here", f"expected {expected}"
    if kind in _BOUNDS:
        bound = next(iter(context.values()))
        return f"{shown} is out of range", f"expected {_BOUNDS[kind]} {bound}"
    if kind in _KINDS:
        return f"{shown} is not {_KINDS[kind][0]}", f"expected {_KINDS[kind][1]}"
    if kind == "too_short":
        return "has too few entries", f"expected at least {context['min_length']}"
    return f"{shown} is not valid here", detail["msg"][:1].lower() + detail["msg"][1:]


_BOUNDS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_KINDS = {
    "bool_type": ("true or false", "true or false"),
    "int_type": ("a whole number", "a decimal number without quotes or leading zeros, such as 1"),
    "float_type": ("a number", "a decimal number without quotes, such as 0.99"),
    "string_type": ("text", "text; put a number in quotes"),
    "tuple_type": ("a list", "a list, such as [...] or lines that start with -"),
    "model_type": ("a mapping", "key: value lines or {key: value}"),
    "model_attributes_type": ("a mapping", "key: value lines or {key: value}"),
    "string_pattern_mismatch": (
        "a name",
        "lower-case letters, digits, - and _, a letter or digit first",
    ),
}


def show(value: object) -> str:
    """A short, one-line form of a value of the file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 4] + "...'"


def _suggest(path: Path_) -> str:
    key = str(path[-1])
    model = model_at(path[:-1])
    known = list(model.model_fields) if model else []
    close = difflib.get_close_matches(key, known, 1, 0.6)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = [place for place in _all_paths(Config) if place[-1] == key]
    if len(elsewhere) == 1:
        return f"did you mean {'.'.join(elsewhere[0])}?"
    return f"known here: {', '.join(known)}"


def model_at(path: Path_) -> type[BaseModel] | None:
    """The model that describes the mapping at `path`, None where there is none."""
    model: type[BaseModel] | None = Config
    for part in path:
        if model is None:
            return None
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        model = model_in(field.annotation) if field else None
    return model


def model_in(annotation: object) -> type[BaseModel] | None:
    """The model inside an annotation such as ``tuple[Tier, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, typing.get_args(annotation))), None)


def _all_paths(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        inner = model_in(field.annotation)
        if inner is not None:
            yield from _all_paths(inner, (*prefix, name))


def plain(value: Value) -> object:
    """`value` as the models take it: they want tuples where YAML has lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(plain(item) for item in value)
    return value
