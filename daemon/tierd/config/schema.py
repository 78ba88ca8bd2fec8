# SPDX-License-Identifier: Apache-2.0
"""The policy format as a JSON schema, for editors and for checks in continuous integration."""

from __future__ import annotations

import json
from typing import Any

from tierd.config.models import Config


def schema() -> dict[str, Any]:
    """The schema of a policy, in the keywords of draft-07, which editors know best."""
    generated = Config.model_json_schema(ref_template="#/definitions/{model}")
    generated["definitions"] = generated.pop("$defs")
    result: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "SPDX-License-Identifier: Apache-2.0. Made by `tierd schema`.",
    }
    result.update(_draft_07(generated))
    result["title"] = "tierd policy"
    return result


def schema_text() -> str:
    """`schema` as the text that is committed as config/tierd.schema.json."""
    return json.dumps(schema(), indent=2) + "\n"


def _draft_07(node: Any) -> Any:
    if isinstance(node, list):
        return [_draft_07(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _draft_07(value) for key, value in node.items() if key != "title"}
    # Names of keys are titles enough, but a key may itself be called title.
    if isinstance(node.get("title"), dict):
        result["title"] = _draft_07(node["title"])
    # Draft-07 ignores what stands beside a $ref.
    if "$ref" in result and len(result) > 1:
        result["allOf"] = [{"$ref": result.pop("$ref")}]
    # Defaults are in base units there; the file wants text with a unit.
    result.pop("default", None)
    return result
