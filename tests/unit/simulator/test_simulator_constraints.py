"""Texts of a prescribed form: the plainest that fits, or a refusal, never something else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sglang_ops.simulator.constraints import ConstraintError, constrained, instance, matching


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("[A-Z]{3}-[0-9]{4}", "AAA-0000"),
        (r"(red|green) \d+\.\d{2,}", "red 0.00"),
        (r"(?:a|b)*x?[\w-]{1,3}", "a"),
        (r"^\[.\][.]$", "[a]."),
        ("", ""),
        ("{", "{"),
    ],
)
def test_the_plainest_text_matches(pattern: str, text: str) -> None:
    assert matching(pattern) == text
    assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("pattern", ["[A-Z", "(a", r"(a)\1", "[^^]", "(?=b)b", "[]a]"])
def test_expressions_that_it_cannot_satisfy_are_refused(pattern: str) -> None:
    with pytest.raises(ConstraintError, match=r"Failed to compile|finds no text"):
        matching(pattern)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"const": 5}, 5),
        ({"type": "string", "enum": ["red", "green"]}, "red"),
        ({"type": "string", "minLength": 2, "maxLength": 3}, "aa"),
        ({"type": "string", "pattern": "x{2}"}, "xx"),
        ({"type": "integer", "minimum": 2, "maximum": 9}, 2),
        ({"type": "number", "maximum": -1}, -1),
        ({"type": "array", "items": {"type": "null"}, "minItems": 2}, [None, None]),
        ({"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "string"}}, "required": ["a"]},
         {"a": False}),
    ],
)
def test_the_plainest_instance_of_a_schema(schema: dict[str, Any], value: object) -> None:
    assert instance(schema) == value


@pytest.mark.parametrize("schema", [{"$ref": "#/a"}, {"type": "strange"}, {}, {"type": "array", "minItems": 1}])
def test_schemas_that_it_does_not_understand_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ConstraintError):
        instance(schema)


def test_where_a_request_prescribes_its_form() -> None:
    text = {"type": "string", "minLength": 1}
    assert constrained({}, {}) is None
    assert constrained({}, {"type": "text"}) is None
    assert constrained({}, {"type": "json_object"}) == "{}"
    assert constrained({"json_schema": "$$ANY$$"}, {}) == "{}"
    assert constrained({"json_schema": json.dumps(text)}, {}) == '"a"'
    assert constrained({}, {"type": "json_schema", "json_schema": {"schema": text}}) == '"a"'
    assert constrained({"regex": "b+"}, {}) == "b"
    with pytest.raises(ConstraintError, match="must be an object"):
        constrained({}, {"type": "json_schema"})
