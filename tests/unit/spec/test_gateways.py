"""The section `gateway` of the deployment file, and what it makes of data_parallel_size."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_ops.spec import DeploymentFile, SpecErrors, load_mapping

ENTRY: dict[str, Any] = {"served_model_name": "m", "hf_model_handle": "org/m"}


def read(gateway: dict[str, Any] | None = None, **changes: Any) -> DeploymentFile:
    return load_mapping({"deployment": ENTRY | changes | {"gateway": {"hosts": "edge"} | (gateway or {})}}, "test")


def refusal(gateway: dict[str, Any] | None = None, **changes: Any) -> str:
    with pytest.raises(SpecErrors) as error:
        read(gateway, **changes)
    return str(error.value)


def test_gateway_beside_the_deployment() -> None:
    file = load_mapping({"deployment": ENTRY, "gateway": {"hosts": "edge"}}, "test")
    assert file.services == read().services
    with pytest.raises(SpecErrors, match="is there twice"):
        load_mapping({"deployment": ENTRY | {"gateway": {"hosts": "a"}}, "gateway": {"hosts": "b"}}, "test")
    with pytest.raises(SpecErrors, match="beside several deployments"):
        load_mapping({"deployments": {"a": ENTRY}, "gateway": {"hosts": "edge"}}, "test")


def test_each_copy_of_the_model_is_a_service() -> None:
    variables = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    one, two = read(data_parallel_size=2, port=9000, tensor_parallel_size=2, env_vars=variables).services
    assert [one.service_name, two.service_name] == ["sglang-m-1", "sglang-m-2"]
    assert (one.port, one.data_parallel_size, one.gpus_needed) == (9000, 1, 2)
    assert (two.port, two.data_parallel_size, two.gpus_needed) == (9001, 1, 2)
    assert [item.env_vars["CUDA_VISIBLE_DEVICES"].value for item in (one, two)] == ["0,1", "2,3"]
    assert one.gateway == two.gateway
    assert one.gateway
    assert one.gateway.service_name == "sglang-m-gateway"
    assert read({"name": "door"}).services[0].gateway.service_name == "sglang-door"  # type: ignore[union-attr]


def test_without_a_gateway_the_copies_stay_in_one_server() -> None:
    (only,) = load_mapping({"deployment": ENTRY | {"data_parallel_size": 2}}, "test").services
    assert (only.service_name, only.data_parallel_size) == ("sglang-m", 2)


@pytest.mark.parametrize(
    ("gateway", "said"),
    [
        ({"hold": -1}, "hold: must be greater than or equal to 0, found -1"),
        ({"health_interval": 0}, "health_interval: must be greater than or equal to 1, found 0"),
        ({"policy": "fastest"}, "must be 'cache_aware', 'random'"),
        ({"port": 70000}, "port: must be less than or equal to 65535"),
        ({"hosts": " "}, "is not a pattern of hosts"),
        ({"image": "Not An Image"}, "is not an image reference"),
        ({"address": "my host"}, "is not an address"),
        ({"extra_args": "--port 1"}, "--port is set by gateway.port"),
        ({"extra_args": ["--api-key=x"]}, "--api-key is set by gateway.api_key"),
        ({"colour": "red"}, "is not a key of the deployment file"),
    ],
)
def test_bad_gateways_are_refused(gateway: dict[str, Any], said: str) -> None:
    assert said in refusal(gateway)


def test_a_key_in_the_file_is_refused_without_being_shown() -> None:
    said = refusal({"api_key": "canary-key"})
    assert "host:NAME" in said
    assert "canary-key" not in said
    assert read({"api_key": "host:MY_KEY"}).services[0].gateway.env_vars  # type: ignore[union-attr]


def test_replicas_that_cannot_be_are_refused() -> None:
    assert "ports up to 65536" in refusal(port=65535, data_parallel_size=2)
    assert "cannot share" in refusal(data_parallel_size=2, env_vars={"CUDA_VISIBLE_DEVICES": "0,1,2"})
    assert "the same port" in refusal(data_parallel_size=2, command="sglang serve")
