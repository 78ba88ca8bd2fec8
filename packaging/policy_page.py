# SPDX-License-Identifier: Apache-2.0
"""Print man/tierd.yaml.5, made from the models that check the policy."""

from __future__ import annotations

import textwrap
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tierd import config
from tierd.config.units import Unit

HEAD = r"""
.\" SPDX-License-Identifier: Apache-2.0
.\" Made by `make docs`; do not edit.
.TH TIERD.YAML 5 "" "tierd" "File Formats"
.SH NAME
tierd.yaml \- policy of the memory tiering daemon
.SH SYNOPSIS
.I /etc/tierd/tierd.yaml
.br
.I /etc/tierd/tierd.d/*.yaml
.SH DESCRIPTION
The policy of
.BR tierd (8),
in YAML.
The main file is the first
.I tierd.yaml
found in
.IR /etc/tierd ,
.I /run/tierd
and
.IR /usr/lib/tierd .
The drop-ins in
.I tierd.d
of all three are laid over it, sorted by file name: mappings merge, everything else replaces.
Of two drop-ins with the same name the one in the directory named first counts, and a link to
.I /dev/null
masks a name altogether.
.PP
Unknown keys, keys given twice and values without their unit are errors.
.B tierd check\-config
names file, line and key of each;
.B tierd check\-config \-\-print
shows the policy in force with the place of each key.
Without any file
.B tierd
observes, with the defaults below.
.SH UNITS
.TS
tab(|);
l l.
size|B, KiB, MiB, GiB, TiB, such as 4GiB
rate|a size per second, such as 200MiB/s
duration|ms, s, min, h, such as 200ms
share|a percentage, such as 3%
.TE
"""

TAIL = r"""
.SH EXAMPLES
.nf
version: 1
mode: tier
migration: {promote: 100MiB/s, demote: 400MiB/s}
classes:
  \- {match: system.slice/postgresql*, floor: 4GiB, weight: 400}
  \- {match: kubepods.slice/*besteffort*, cap: 1GiB}
.fi
.PP
Samples for databases, hosts of virtual machines and Kubernetes nodes are in
.IR share/tierd/policies .
.SH SEE ALSO
.BR tierd (8),
.BR tierctl (8),
.BR cpuset (7),
.BR numa (7)
"""
WORDS = {int: "number", float: "number", str: "text", bool: "true or false"}
KINDS = {
    config.format_size: "size",
    config.format_rate: "rate",
    config.format_duration: "duration",
    config.format_ratio: "share",
    config.format_limit: "share or off",
    config.format_folios: "shares by size",
}


def escape(text: str) -> str:
    """As roff takes it, one sentence a line, as roff likes it."""
    text = " ".join(text.split()).replace("\\", r"\e").replace("-", r"\-")
    return text.replace(". ", ".\n")


def parts(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without None."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return [part for each in get_args(annotation) for part in parts(each)]
    return [] if annotation is type(None) else [annotation]


def unit(field: FieldInfo) -> Unit | None:
    """The unit of a value that carries one."""
    found = [*field.metadata]
    for part in get_args(field.annotation):
        found += get_args(part)[1:] if get_origin(part) is Annotated else []
    return next((each for each in found if isinstance(each, Unit)), None)


def model_of(field: FieldInfo) -> tuple[type[BaseModel] | None, bool]:
    """The model below a key, and whether the key holds a list of them."""
    for part in parts(field.annotation):
        if get_origin(part) is tuple:
            item = parts(get_args(part)[0])[0]
            if isinstance(item, type) and issubclass(item, BaseModel):
                return item, True
        elif isinstance(part, type) and issubclass(part, BaseModel):
            return part, False
    return None, False


def kind(field: FieldInfo) -> str:
    """What a value looks like."""
    carried = unit(field)
    if carried is not None:
        return KINDS[carried.format]
    [part, *_] = parts(field.annotation)
    if get_origin(part) is tuple:
        inner = parts(get_args(part)[0])[0]
        choice = get_args(inner)
        return "list of " + (" or ".join(choice) if choice else WORDS[inner] + "s")
    if isinstance(part, type) and hasattr(part, "__members__"):
        return " or ".join(member.value for member in part)
    return WORDS.get(part) or " or ".join(map(str, get_args(part)))


def default(field: FieldInfo) -> str:
    """The default as it would be written in the file."""
    if field.is_required():
        return "required"
    value = field.default
    carried = unit(field)
    if value is None:
        return "default: none"
    if carried is not None:
        return f"default: {carried.format(value)}"
    if isinstance(value, bool):
        return f"default: {str(value).lower()}"
    return "default: none" if value in ((), "") else f"default: {value}"


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The keys of a model and of all models below it."""
    lines: list[str] = []
    for name, field in model.model_fields.items():
        below, many = model_of(field)
        path = f"{prefix}{name}"
        described = escape(field.description or "")
        if below is None:
            lines += [
                ".TP",
                rf"\fB{escape(path)}\fR ({escape(kind(field))}; {escape(default(field))})",
            ]
            lines += [described]
        else:
            lines += [".TP", rf"\fB{escape(path)}\fR" + (" (list)" if many else ""), described]
            lines += keys(below, f"{path}[]." if many else f"{path}.")
    return lines


def page() -> str:
    """The whole page."""
    body = "\n".join([".SH KEYS", *keys(config.Config)])
    return textwrap.dedent(HEAD).lstrip("\n") + body + TAIL


if __name__ == "__main__":
    print(page(), end="")
