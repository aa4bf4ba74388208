"""The JSON Schema of the deployment file (draft 2020-12), made from the models that check it."""

from __future__ import annotations

from typing import Any

from sglang_ops.spec.file import DeploymentFile

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_INTERPOLATION = {"$ref": "#/$defs/Interpolation"}


def json_schema() -> dict[str, Any]:
    """What editors complete and check from. Every value may also be an interpolation, which only a run resolves."""
    schema = DeploymentFile.model_json_schema(by_alias=True)
    for section in [schema, *schema["$defs"].values()]:
        section.pop("title", None)
        section["type"] = "object" if "required" in section else ["object", "null"]
        section["properties"] = {key: _value(value) for key, value in section["properties"].items()}
    several = schema["properties"]["deployments"]
    return {
        "$schema": _DIALECT,
        **schema,
        "title": "sglang-ops deployment file",
        "type": "object",
        "oneOf": [_has("deployment"), _has("deployments")],
        "properties": {**schema["properties"], "deployments": {**several, "minProperties": 1}},
        "$defs": {
            **schema["$defs"],
            "Deployment": {**schema["$defs"]["Deployment"], "anyOf": _MODELS},
            "Interpolation": {
                "description": "A value that OmegaConf finds, such as ${oc.env:NAME} or ${deployment.port}.",
                "type": "string",
                "pattern": r"\$\{",
            },
        },
    }


def _has(key: str) -> dict[str, Any]:
    return {"required": [key], "properties": {key: {"not": {"type": "null"}}}}


# A deployment names its model, or has a command that does.
_MODELS = [_has("hf_model_handle"), _has("checkpoint_path"), _has("command")]


def _value(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of one key: its description first, then what it may be, or an interpolation."""
    notes: dict[str, Any] = {key: schema[key] for key in ("description", "default", "deprecated") if key in schema}
    rest = {key: value for key, value in schema.items() if key not in {*notes, "title", "x-no-effect"}}
    if not rest or rest == {"type": "string"}:
        return {**notes, **rest}
    if "anyOf" in rest and len(rest) == 1:
        return {**notes, "anyOf": [*map(_within, rest["anyOf"]), _INTERPOLATION]}
    return {**notes, "anyOf": [_within(rest), _INTERPOLATION]}


def _within(schema: dict[str, Any]) -> dict[str, Any]:
    """The same below lists and mappings."""
    inner = {key: _value(schema[key]) for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)}
    return {**schema, **inner}
