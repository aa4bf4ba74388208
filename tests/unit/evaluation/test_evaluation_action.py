"""Which hosts are asked, and for which items, as the action plugin decides it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sglang_ops.spec import Deployment

PLUGINS = Path(__file__).resolve().parents[3] / "plugins" / "action"
HOSTS = ["a", "b", "c", "d"]


def plugin(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"action_{name}", PLUGINS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def deployment(nodes: int) -> Deployment:
    made = {"served_model_name": "big", "hf_model_handle": "lab/big", "tensor_parallel_size": 2, "nodes": nodes}
    return Deployment.model_validate(made)


@pytest.mark.parametrize(
    ("nodes", "playing", "shares"),
    [
        (1, HOSTS, {"a": [0, 4], "b": [1, 4], "c": [2, 4], "d": [3, 4]}),
        (2, HOSTS, {"a": [0, 2], "c": [1, 2]}),
        (2, ["a", "b"], {"a": [0, 1]}),
    ],
)
def test_items_are_shared_by_the_hosts_that_answer(nodes: int, playing: list[str], shares: dict[str, Any]) -> None:
    action = plugin("sglang_evaluation").ActionModule
    given = {"groups": {"all": HOSTS}, "ansible_play_hosts_all": playing}
    found = {}
    for host in playing:
        variables = {**given, "inventory_hostname": host}
        if host not in action._asked(deployment(nodes), variables):
            continue
        (task,) = action._shared({"tasks": [{"name": "t"}], "repeat_on_hosts": False}, deployment(nodes), variables)
        found[host] = task["shards"][0]
    assert found == shares
