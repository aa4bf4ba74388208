"""Answers of a prescribed form: the plainest instance of a JSON schema, the plainest text that an expression matches.

What the simulator does not know how to satisfy it refuses: an answer that ignores the form would be a lie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_ANNOTATIONS = {"title", "description", "default", "examples", "$schema"}
_UNDERSTOOD = {
    "const", "enum", "type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems",
    "pattern", "minLength", "maxLength", "minimum", "maximum",
}  # fmt: skip
_ANY_JSON = "$$ANY$$"  # what SGLang calls the schema of response_format json_object
_TOKEN = re.compile(r"\\.|\[(?:\\.|[^\]\\])+\]|\(\?:|\{(?P<least>\d+)(?:,\d*)?\}|.", re.DOTALL)
_MEMBERS = {r"\d": "0", r"\w": "a", r"\s": " "}  # one of each class
_ATOMS = _MEMBERS | {".": "a", "^": "", "$": ""}


class ConstraintError(Exception):
    """The form is malformed, or more than the simulator understands."""


def constrained(options: Mapping[str, Any], form: Mapping[str, Any]) -> str | None:
    """The answer to a request that prescribes its form; None where it prescribes none. Raises ConstraintError.

    `options` are the sampling parameters, `form` is the `response_format`.
    """
    if form.get("type") == "json_schema":
        return json.dumps(instance(_schema((form.get("json_schema") or {}).get("schema"))))
    if form.get("type") == "json_object":
        return "{}"
    if form.get("type", "text") != "text" or options.get("ebnf"):
        raise ConstraintError("The simulator cannot constrain its answer to a grammar.")
    if options.get("json_schema"):
        return "{}" if options["json_schema"] == _ANY_JSON else json.dumps(instance(_schema(options["json_schema"])))
    return matching(str(options["regex"])) if options.get("regex") else None


def instance(schema: Mapping[str, Any]) -> Any:
    """The plainest JSON value that a schema admits. Raises ConstraintError."""
    if strange := schema.keys() - _UNDERSTOOD - _ANNOTATIONS:
        raise ConstraintError(f"The simulator does not understand {', '.join(sorted(strange))} in a schema.")
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            parts = schema.get("properties", {})
            return {key: instance(_schema(parts.get(key))) for key in schema.get("required", ())}
        case "array":
            return [instance(_schema(schema.get("items"))) for _ in range(schema.get("minItems", 0))]
        case "string":
            return matching(schema["pattern"]) if "pattern" in schema else "a" * schema.get("minLength", 0)
        case "integer" | "number":
            return min(max(0, schema.get("minimum", 0)), schema.get("maximum", float("inf")))
        case "boolean":
            return False
        case "null":
            return None
    raise ConstraintError(f"The simulator does not understand the type {schema.get('type')!r} in a schema.")


def matching(pattern: str) -> str:
    """The plainest text that a regular expression matches as a whole. Raises ConstraintError."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConstraintError(f"Failed to compile regex grammar: {error}") from error
    text = _first_alternative([token[0] for token in _TOKEN.finditer(pattern)][::-1])
    if not expression.fullmatch(text):
        raise ConstraintError(f"The simulator finds no text for the regular expression {pattern!r}.")
    return text


def _schema(given: object) -> Mapping[str, Any]:
    try:
        schema = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ConstraintError(f"Failed to compile json grammar: {error}") from error
    if not isinstance(schema, Mapping):
        raise ConstraintError(f"A JSON schema must be an object, found {given!r}.")
    return schema


def _first_alternative(tokens: list[str]) -> str:
    """Text for the tokens up to the end of a group; `tokens` is a stack, the next one on top."""
    first = _sequence(tokens)
    while tokens and tokens[-1] == "|":
        tokens.pop()
        _sequence(tokens)
    return first


def _sequence(tokens: list[str]) -> str:
    text = ""
    while tokens and tokens[-1] not in "|)":
        text += _atom(tokens) * _repetitions(tokens)
    return text


def _atom(tokens: list[str]) -> str:
    atom = tokens.pop()
    if atom in {"(", "(?:"}:
        inside = _first_alternative(tokens)
        tokens.pop()
        return inside
    if atom.startswith("[") and len(atom) > 1:
        member = atom[1:3] if atom[1] == "\\" else atom[1]
        return _MEMBERS.get(member, member[-1])
    return _ATOMS.get(atom, atom[-1])


def _repetitions(tokens: list[str]) -> int:
    """How often the atom before must be there at least."""
    if not tokens or not (tokens[-1] in "?*+" or tokens[-1].startswith("{")):
        return 1
    matched = _TOKEN.fullmatch(quantifier := tokens.pop())
    return int(matched["least"]) if matched and matched["least"] else int(quantifier == "+")
