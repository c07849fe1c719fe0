from typing import Any

from triops.agents.model import ModelInfo, ModelRef
from triops.agents.schemas import cleaned

ANY = ModelInfo(ref=ModelRef("mock", "m"))
GOOGLE = ModelInfo(ref=ModelRef("openrouter", "google/gemini-3"))
TEXT = {"type": "string"}


def test_references_are_inlined_and_notes_left_out_but_no_property_of_their_name():
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"title": {"$ref": "#/$defs/Name", "description": "Whose."}, "kind": {"const": "a"}},
        "required": ["title"],
        "$defs": {"Name": {"type": "string", "title": "Name"}},
    }
    assert cleaned(schema, ANY) == {
        "type": "object",
        "properties": {"title": {"type": "string", "description": "Whose."}, "kind": {"enum": ["a"]}},
        "required": ["title"],
    }


def test_a_choice_at_the_top_becomes_one_object():
    either = {"properties": {"a": TEXT, "b": TEXT}, "required": ["a", "b"]}
    other = {"properties": {"a": TEXT, "c": TEXT}, "required": ["a"]}
    merged = {"type": "object", "properties": {"a": TEXT, "b": TEXT, "c": TEXT}}
    for choice in ("anyOf", "oneOf", "allOf"):
        assert cleaned({choice: [either, other]}, ANY) == merged


def test_an_empty_schema_is_an_object_without_members():
    assert cleaned({}, ANY) == {"type": "object", "properties": {}}


def test_a_schema_that_holds_itself_ends():
    tree = {"type": "object", "properties": {"child": {"$ref": "#/$defs/Tree"}}}
    clean = cleaned({**tree, "$defs": {"Tree": tree}}, ANY)
    depth = 0
    while clean := clean.get("properties", {}).get("child", {}):
        depth += 1
    assert 0 < depth < 20


def test_google_gets_no_limits_that_it_refuses_and_types_of_several_are_a_choice():
    schema = {
        "type": "object",
        "properties": {"n": {"type": ["integer", "null"], "exclusiveMinimum": 0, "default": None}},
        "additionalProperties": False,
    }
    choice = [{"type": "integer"}, {"type": "null"}]
    assert cleaned(schema, GOOGLE) == {"type": "object", "properties": {"n": {"anyOf": choice}}}
    limits = {"anyOf": choice, "exclusiveMinimum": 0, "default": None}
    assert cleaned(schema, ANY) == {"type": "object", "properties": {"n": limits}, "additionalProperties": False}
