"""Which hosts are asked, and for which items, as the action plugin decides it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from sglang_ops.errors import OpsError
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


@pytest.mark.parametrize("fails", ["started", "waited", "absent", ""])
def test_a_gate_leaves_nothing_on_the_canary_however_it_ends(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = plugin("sglang_gate")
    gate = mock.Mock(output=tmp_path)
    gate.work.run = "gate-1"
    gate.work.variables.return_value = {"job": {}}
    gate.decide.return_value = ("go", "")
    monkeypatch.setattr("sglang_ops.evaluation.release_gate.read", lambda *_: gate)
    monkeypatch.setattr("sglang_ops.evaluation.run_results.unpack", lambda *_: tmp_path)
    monkeypatch.setattr("sglang_ops.evaluation.run_results.assemble", lambda *_: None)
    monkeypatch.setattr(module, "evaluated_file", lambda *_: None)
    asked: list[str] = []

    def evaluation(_self: Any, do: str, *_: Any, **__: Any) -> dict[str, Any]:
        asked.append(do)
        if do == fails:
            raise OpsError(f"{do} failed")
        return {"sglang_ops": {"runs": [{"state": "done"}]}}

    monkeypatch.setattr(module.ActionModule, "_evaluation", evaluation)
    action = module.ActionModule.__new__(module.ActionModule)
    action._templar = None
    word, why = action._evaluated({}, deployment(1), ["sglang-big"], {"inventory_hostname": "a"})
    assert asked[-1] == "absent"
    expected = {"started": ("inconclusive", "started failed"), "waited": ("inconclusive", "waited failed")}
    assert (word, why) == expected.get(fails, ("go", ""))
