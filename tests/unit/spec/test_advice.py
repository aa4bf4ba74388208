"""What is allowed but said to be done otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_ops.spec import load_mapping, warnings

PINNED = "lmsysorg/sglang:v0.5.23"
DIGEST = "sha256:" + "a" * 64


def advice(**keys: Any) -> list[str]:
    data = {"image": PINNED, "served_model_name": "m", "hf_model_handle": "org/m", **keys}
    return warnings(load_mapping({"deployment": data}, "test"))


def test_an_ordinary_file_gets_none() -> None:
    assert advice(env_vars={"HF_TOKEN": "host:HF_TOKEN", "HF_HOME": "/data"}, extra_args="--log-level info") == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"image": "lmsysorg/sglang"}, "image lmsysorg/sglang moves"),
        ({"image": "host:5000/sglang"}, "image host:5000/sglang moves"),
        ({"image": "lmsysorg/sglang:latest-cu129"}, "moves"),
        ({"image": "lmsysorg/sglang:dev"}, "moves"),
        ({"env_vars": {"HF_TOKEN": "hf_written"}}, "HF_TOKEN is written out in the file. Write 'host:HF_TOKEN'"),
        ({"extra_args": "--api-key=abc"}, "--api-key in extra_args shows"),
        ({"extra_args": "--log-level $LEVEL"}, "no shell expands"),
        ({"command": "serve", "extra_args": "--a"}, "extra_args has no effect"),
        ({"lepton_config": {"a": 1}}, "deployment.lepton_config has no effect here."),
        ({"endpoints": {"embedding": "/v1/embeddings"}}, "deployment.endpoints.embedding has no effect here."),
    ],
)
def test_each_is_one_line(keys: dict[str, Any], says: str) -> None:
    (warning,) = advice(**keys)
    assert says in warning
    assert "hf_written" not in warning


@pytest.mark.parametrize("image", [PINNED, f"lmsysorg/sglang@{DIGEST}", f"lmsysorg/sglang:latest@{DIGEST}"])
def test_images_that_stand_still_need_no_word(image: str) -> None:
    assert advice(image=image) == []


def test_a_command_that_has_the_arguments_in_it_is_fine() -> None:
    assert advice(command="serve ${deployment.extra_args}", extra_args="--a") == []


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_keys_that_are_set_to_nothing_need_no_word(nothing: Any) -> None:
    assert advice(lepton_config=nothing) == []


def test_with_several_deployments_each_warning_names_its_service() -> None:
    entry = {"served_model_name": "m", "hf_model_handle": "org/m"}
    said = warnings(load_mapping({"deployments": {"a": entry, "b": {**entry, "image": PINNED}}}, "test"))
    assert said == ["sglang-a: image lmsysorg/sglang:latest moves; each run pins the digest that it has then."]


def test_secrets_of_an_evaluation_are_seen_too() -> None:
    task = {"name": "ifeval", "env_vars": {"API_KEY": "written"}}
    deployment = {"image": PINNED, "served_model_name": "m", "hf_model_handle": "org/m"}
    (warning,) = warnings(load_mapping({"deployment": deployment, "evaluation": {"tasks": [task]}}, "test"))
    assert warning.startswith("evaluation: env_vars.API_KEY is written out")
