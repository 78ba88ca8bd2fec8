# SPDX-License-Identifier: Apache-2.0
"""What the values of a policy are made of: units, strict numbers, and the base of all models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Strict, WithJsonSchema
from pydantic_core import PydanticCustomError

_BYTES: Final = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
MOST_BYTES: Final = 2**60
"""More than any machine has (x86-64 addresses 2**52), and far from what 64 bits can count."""

_SECONDS: Final = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}

_SIZE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)$"
_RATE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)/s$"
_DURATION_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(ms|s|min|h)$"
_RATIO_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?%$"
_LIMIT_PATTERN: Final = r"^(off|[0-9]+(\.[0-9]+)?%)$"


class _TooLarge(ValueError):
    """A size that no machine has."""


def parse_size(value: object) -> int:
    """Bytes of "4GiB". Only binary units: a size says its unit, always."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(B|KiB|MiB|GiB|TiB)", str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError("expected a size with its unit, such as 512MiB or 4GiB")
    size = float(match[1]) * _BYTES[match[2]]
    if size > MOST_BYTES:
        raise _TooLarge(f"expected at most {format_size(MOST_BYTES)}")
    return round(size)


def parse_rate(value: object) -> int:
    """Bytes per second of "200MiB/s"."""
    text = str(value).strip()
    try:
        if text.endswith("/s"):
            return parse_size(text[:-2])
    except _TooLarge as error:
        raise ValueError(f"{error}/s") from None
    except ValueError:
        pass
    raise ValueError("expected a rate with its unit, such as 200MiB/s")


def parse_duration(value: object) -> float:
    """Seconds of "1s", "200ms", "5min" or "2h"."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|min|h)", str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError("expected a duration with its unit, such as 1s, 200ms or 5min")
    return float(match[1]) * _SECONDS[match[2]]


def parse_limit(value: object) -> float:
    """Ratio of "10%", infinity of "off"."""
    if str(value).strip() == "off":
        return math.inf
    try:
        return parse_ratio(value)
    except ValueError as error:
        raise ValueError(f"{error}, or off") from None


def parse_ratio(value: object) -> float:
    """Ratio 0..1 of "3%"."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError("expected a share in percent, such as 3%")
    ratio = float(match[1]) / 100
    if ratio > 1:
        raise ValueError("expected a share of at most 100%")
    return ratio


def format_size(value: float) -> str:
    """The shortest exact "4GiB" of bytes."""
    for unit, factor in reversed(_BYTES.items()):
        if value and value % factor == 0:
            return f"{round(value / factor)}{unit}"
    return f"{round(value)}B"


def format_rate(value: float) -> str:
    """The shortest exact "200MiB/s" of bytes per second."""
    return format_size(value) + "/s"


def format_duration(value: float) -> str:
    """ "200ms", "1s" or "1.5s" of seconds."""
    for unit, factor in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if value and value % factor == 0:
            return f"{round(value / factor)}{unit}"
    return f"{value * 1000:g}ms" if value < 1 else f"{value:g}s"


def format_ratio(value: float) -> str:
    """ "3%" of a ratio 0..1."""
    return f"{value * 100:g}%"


def format_limit(value: float) -> str:
    """ "10%" of a ratio, "off" of infinity."""
    return "off" if math.isinf(value) else format_ratio(value)


@dataclass(frozen=True, slots=True)
class Unit:
    """Marks a field whose text carries a unit; how its value is written back."""

    format: Callable[[Any], str]


def _schema(pattern: str, example: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, "examples": [example]}


def _unit(parse: Any, unit: Callable[[float], str], schema: dict[str, Any]) -> tuple[Any, ...]:
    return BeforeValidator(parse), WithJsonSchema(schema), Unit(unit)


SIZE_SCHEMA: Final = _schema(_SIZE_PATTERN, "4GiB")
RATIO_SCHEMA: Final = _schema(_RATIO_PATTERN, "3%")

Size = Annotated[int, *_unit(parse_size, format_size, SIZE_SCHEMA)]
Rate = Annotated[int, *_unit(parse_rate, format_rate, _schema(_RATE_PATTERN, "200MiB/s"))]
Duration = Annotated[
    float, *_unit(parse_duration, format_duration, _schema(_DURATION_PATTERN, "1s"))
]
Ratio = Annotated[float, *_unit(parse_ratio, format_ratio, RATIO_SCHEMA)]
Limit = Annotated[float, *_unit(parse_limit, format_limit, _schema(_LIMIT_PATTERN, "10%"))]

# Not lax: pydantic would take the text "off" for false and "010" for 10.
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict()]
Number = Annotated[float, Strict()]


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9709" or "[::1]:9709". Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bare_v6 = ":" in host and not text.startswith("[")
    if not colon or not host or bare_v6 or not port.isascii() or not port.isdigit():
        raise ValueError("expected an address and a port, such as 127.0.0.1:9709 or [::1]:9709")
    if int(port) > 65535:
        raise ValueError("expected a port of at most 65535")
    return host, int(port)


def problem(keys: tuple[str | int, ...], wrong: str, right: str) -> PydanticCustomError:
    """An error of meaning, at `keys` below the model that raises it."""
    context = {"keys": keys, "wrong": wrong, "right": right}
    return PydanticCustomError("tierd", "{wrong}; {right}", context)


class Model(BaseModel):
    """Base of all models: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
