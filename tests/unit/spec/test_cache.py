"""Where the model cache lies, on the host and in the container."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_ops.spec import Cache, Mount, cache_of, load_mapping

DEFAULT = "/var/lib/models"


def cache(execution: dict[str, Any] | None = None, **keys: Any) -> Cache:
    data = {"deployment": {"served_model_name": "m", "hf_model_handle": "o/m", **keys}, "execution": execution or {}}
    return cache_of(load_mapping(data, "test").deployment, DEFAULT)


def bind(path: str) -> Mount:
    return Mount(source=path, target=path)


@pytest.mark.parametrize(
    ("keys", "container", "host", "mounts"),
    [
        ({}, DEFAULT, DEFAULT, [bind(DEFAULT)]),
        ({"env_vars": {"HF_HOME": "/cache/huggingface/"}}, "/cache/huggingface", "/cache/huggingface", None),
        ({"cache_path": "/data"}, "/cache/huggingface", "/data/huggingface", [Mount(source="/data", target="/cache")]),
        ({"cache_path": "/data", "env_vars": {"HF_HOME": "/cache/hf"}}, "/cache/hf", "/data/hf", None),
        ({"cache_path": "/data", "env_vars": {"HF_HOME": "/fast/hf"}}, "/fast/hf", "/fast/hf", None),
        ({"mounts": {"/nfs/hf": "/root/.cache/huggingface"}}, "/root/.cache/huggingface", "/nfs/hf", []),
        ({"mounts": {"/nfs": "/m", "/ssd": "/m/hf"}, "env_vars": {"HF_HOME": "/m/hf/x"}}, "/m/hf/x", "/ssd/x", []),
    ],
)
def test_home(keys: dict[str, Any], container: str, host: str, mounts: list[Mount] | None) -> None:
    found = cache(**keys)
    assert (found.container_home, found.host_home) == (container, host)
    assert (found.container_hub, found.host_hub) == (f"{container}/hub", f"{host}/hub")
    assert found.environment == {"HF_HOME": container}
    assert mounts is None or list(found.mounts) == mounts
    assert found.warnings == ()


def test_a_mount_of_the_execution_section_counts() -> None:
    found = cache({"mounts": {"deployment": {"/nfs/hf": "/root/.cache/huggingface:ro"}}})
    assert (found.host_home, found.mounts) == ("/nfs/hf", ())


def test_transformers_cache_becomes_the_hub_cache() -> None:
    found = cache(env_vars={"TRANSFORMERS_CACHE": "/fast/transformers"})
    assert (found.container_hub, found.host_hub) == ("/fast/transformers", "/fast/transformers")
    assert found.environment == {"HF_HOME": DEFAULT, "HF_HUB_CACHE": "/fast/transformers"}
    assert set(found.mounts) == {bind(DEFAULT), bind("/fast/transformers")}
    assert "HF_HUB_CACHE=/fast/transformers is set, which means the same" in found.warnings[0]
    assert "TRANSFORMERS_CACHE" in found.withheld


def test_transformers_cache_below_cache_path() -> None:
    found = cache(cache_path="/data", env_vars={"TRANSFORMERS_CACHE": "/cache/t"})
    assert (found.container_hub, found.host_hub) == ("/cache/t", "/data/t")


@pytest.mark.parametrize("winner", ["HF_HOME", "HF_HUB_CACHE"])
def test_a_variable_that_is_still_read_wins(winner: str) -> None:
    found = cache(env_vars={"TRANSFORMERS_CACHE": "/old", winner: "/new"})
    assert found.host_hub == ("/new/hub" if winner == "HF_HOME" else "/new")
    assert f"{winner} says where the models are" in found.warnings[0]
