# SPDX-License-Identifier: Apache-2.0
"""The policy in force as YAML, each key with the place it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tierd.config.document import Path_
from tierd.config.load import Loaded
from tierd.config.units import Unit

_COLUMN = 44
"""Where the comments begin."""


def show(loaded: Loaded) -> str:
    """YAML that loads to the same policy; comments say which file and line set each key."""
    return "".join(line + "\n" for line in _model(loaded, loaded.config, ()))


def _model(loaded: Loaded, model: BaseModel, path: Path_) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        where = (*path, name)
        value = getattr(model, name)
        indent = "  " * len(path)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _model(loaded, value, where)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield f"{indent}{name}:"
            for index, item in enumerate(value):
                yield from _item(loaded, item, (*where, index))
        else:
            yield _line(f"{indent}{name}: {_scalar(field, value)}", _origin(loaded, where))


def _item(loaded: Loaded, item: BaseModel, path: Path_) -> Iterator[str]:
    """One mapping of a list: its first line carries the dash."""
    indent = "  " * (len(path) - 2)
    dash = f"{indent}  - "
    for line in _model(loaded, item, path):
        yield dash + line.strip() if dash else indent + "    " + line.strip()
        dash = ""


def _line(text: str, origin: str) -> str:
    return f"{text:<{_COLUMN - 1}} # {origin}"


def _origin(loaded: Loaded, path: Path_) -> str:
    origin = loaded.document.origins.get(path)
    return f"{Path(origin.file).name}:{origin.line}" if origin else "default"


def _scalar(field: FieldInfo, value: Any) -> str:
    unit = next((item for item in _metadata(field) if isinstance(item, Unit)), None)
    if unit is not None and value is not None:
        return unit.format(value)
    plain = [_plain(item) for item in value] if isinstance(value, tuple) else _plain(value)
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _metadata(field: FieldInfo) -> list[Any]:
    """The field's own annotations and those inside an optional type."""
    inner = getattr(field.annotation, "__args__", ())
    return [*field.metadata, *(m for each in inner for m in getattr(each, "__metadata__", ()))]


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
