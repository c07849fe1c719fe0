"""A tool's JSON Schema as model servers take it: what some of them refuse is said otherwise, or left out. Pure."""

from collections.abc import Mapping
from typing import Any, cast

from triops.agents.model import ModelInfo

_NOTES = frozenset({"$schema", "$id", "$comment", "$defs", "definitions", "title", "examples", "deprecated"})
_GOOGLE_REFUSES = frozenset({"additionalProperties", "default", "exclusiveMinimum", "exclusiveMaximum", "pattern"})
DEPTH = 16
"""References followed into each other; what lies deeper may be anything."""

Schema = dict[str, Any]


def cleaned(schema: Mapping[str, Any], model: ModelInfo) -> Schema:
    """`schema` for `model`: references inlined, an object without a choice at its top, and no notes for people.

    Google's models also refuse several limits, and `const`; a type of several is written as a choice for all.
    """
    google = "gemini" in model.ref.model or model.ref.provider == "google"
    refused = _NOTES | _GOOGLE_REFUSES if google else _NOTES
    definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
    whole = cast("Schema", _clean(dict(schema), definitions, refused, DEPTH))
    properties: Schema = {**whole.get("properties", {})}
    for choice in ("anyOf", "oneOf", "allOf"):
        for branch in whole.pop(choice, ()):  # what each of them requires is left to the tool to say
            properties |= branch.get("properties", {})
    return {**whole, "type": "object", "properties": properties}


def _clean(node: Any, definitions: Schema, refused: frozenset[str], depth: int) -> Any:
    if isinstance(node, list):
        return [_clean(item, definitions, refused, depth) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    branch = cast("Schema", node)
    if isinstance(reference := branch.get("$ref"), str):
        target = definitions.get(reference.rpartition("/")[2]) if depth else None
        others = {key: value for key, value in branch.items() if key != "$ref"}
        return _clean({**(target or {}), **others}, definitions, refused, depth - 1) if target else {}
    clean: Schema = {}
    for key, value in branch.items():
        if key == "properties" and isinstance(value, dict):  # whose keys are names, not words of the schema
            members = cast("Schema", value).items()
            clean[key] = {name: _clean(member, definitions, refused, depth) for name, member in members}
        elif key == "const":
            clean["enum"] = [value]
        elif key == "type" and isinstance(value, list):
            clean["anyOf"] = [{"type": kind} for kind in cast("list[str]", value)]
        elif key not in refused:
            clean[key] = _clean(value, definitions, refused, depth) if key not in ("enum", "default") else value
    return clean
