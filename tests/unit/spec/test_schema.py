"""The JSON Schema says what the models say."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglang_ops.spec import SpecErrors, load_mapping
from sglang_ops.spec.file import DeploymentFile
from sglang_ops.spec.known import fields, keys_below
from sglang_ops.spec.launcher import Evaluation, Execution, Task
from sglang_ops.spec.model import Deployment, Endpoints
from sglang_ops.spec.schema import json_schema

EXAMPLES = Path(__file__).parents[3] / "examples"
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
MINIMAL = {"served_model_name": "m", "hf_model_handle": "org/m"}


def model_accepts(data: dict[str, Any]) -> bool:
    try:
        load_mapping(data, "test")
    except SpecErrors:
        return False
    return True


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in VALIDATOR.iter_errors(data)] == []
    assert model_accepts(data)


@pytest.mark.parametrize("model", [Deployment, Endpoints, Execution, Evaluation, Task, DeploymentFile])
def test_every_key_is_described(model: Any) -> None:
    section = SCHEMA if model is DeploymentFile else SCHEMA["$defs"][model.__name__]
    assert set(section["properties"]) == set(fields(model))
    for value in section["properties"].values():
        reference = value.get("anyOf", [{}])[0].get("$ref", "").rpartition("/")[2]
        assert len(value.get("description") or SCHEMA["$defs"][reference]["description"]) > 10


@pytest.mark.parametrize(
    "keys",
    [
        {"port": 9000}, {"port": "9000"}, {"port": "${oc.env:PORT,8000}"}, {"tensor_parallel_size": "auto"},
        {"extra_args": "--a b"}, {"extra_args": ["--a", 1]}, {"extra_args": None}, {"env_vars": {"A": 1, "B": True}},
        {"env_vars": None}, {"command": ["a"]}, {"command": "a b"}, {"mounts": {"/a": "/b:ro"}}, {"x-mine": [1]},
        {"endpoints": {"chat": "/v1", "x-mine": 1}}, {"hf_model_handle": None, "checkpoint_path": "/m"},
        {"hf_model_handle": None, "command": "serve"}, {"share_gpus": True}, {"cache_path": None},
    ],
)  # fmt: skip
def test_both_accept(keys: dict[str, Any]) -> None:
    data = {"deployment": MINIMAL | keys}
    assert [error.message for error in VALIDATOR.iter_errors(data)] == []
    assert model_accepts(data)


@pytest.mark.parametrize(
    "keys",
    [
        {"port": 0}, {"port": 70000}, {"port": "eighty"}, {"port": 1.5}, {"port": True}, {"port": None},
        {"type": "vllm"}, {"tensor_parallel_size": "many"}, {"tensor_parallel_size": 0}, {"data_parallel_size": "auto"},
        {"env_vars": {"A B": "x"}}, {"env_vars": {"A": None}}, {"env_vars": {"A": [1]}}, {"env_vars": ["A"]},
        {"extra_args": {"a": 1}}, {"extra_args": [None]}, {"extra_args": 5}, {"command": []}, {"command": {"a": 1}},
        {"mounts": {"a": "/b"}}, {"mounts": {"/a": "b"}}, {"mounts": ["/a:/b"]}, {"share_gpus": "yes"}, {"hosts": 1},
        {"endpoints": {"chat": "v1"}}, {"endpoints": {"chatt": "/v1"}}, {"served_model_name": "a:b"}, {"name": "A"},
        {"checkpoint_path": "relative"}, {"hf_model_handle": None}, {"served_model_name": 8}, {"image": None},
    ],
)  # fmt: skip
def test_both_refuse(keys: dict[str, Any]) -> None:
    data = {"deployment": MINIMAL | keys}
    assert not VALIDATOR.is_valid(data)
    assert not model_accepts(data)


@pytest.mark.parametrize(
    "data",
    [{}, {"deployment": None}, {"deployments": {}}, {"deployment": MINIMAL, "deployments": {"a": MINIMAL}},
     {"deployment": MINIMAL, "evaluation": {"tasks": ["ifeval"]}}, {"deployment": MINIMAL, "execution": 3}],
)  # fmt: skip
def test_both_refuse_the_file(data: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(data)
    assert not model_accepts(data)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([(), ("deployment",), ("deployment", "endpoints"), ("execution",), ("evaluation",), ("target",)]),
    st.text(string.ascii_lowercase + "_-", min_size=1, max_size=16),
)
def test_unknown_keys_fail_both_and_free_ones_neither(section: tuple[str, ...], key: str) -> None:
    assume(key not in keys_below(section))
    data: dict[str, Any] = {"deployment": dict(MINIMAL)}
    inner = data
    for part in section:
        inner = inner.setdefault(part, {})
    inner[key] = {"anything": 1}
    assert VALIDATOR.is_valid(data) == model_accepts(data) == key.startswith("x-")
