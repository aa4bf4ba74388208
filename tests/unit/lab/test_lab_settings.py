"""Shapes, plans and where things lie."""

from __future__ import annotations

import json

import pytest
from lab_plans import make_plan

from sglang_ops.errors import ExitCode, UsageError
from sglang_ops.lab.settings import Folder, Plan, Shape, folder


def test_plan_survives_json() -> None:
    plan = make_plan(name="big", hosts=12, gpus=8, engine="podman", os="debian12", server="simulator")
    assert Plan.from_json(plan.to_json()) == plan
    newer = json.loads(plan.to_json()) | {"colour": "blue"}
    newer["shape"]["colour"] = "blue"
    assert Plan.from_json(json.dumps(newer)) == plan


def test_addresses_follow_from_the_network() -> None:
    plan = make_plan(name="big", hosts=3)
    assert [(host.name, host.address) for host in plan.hosts] == [
        ("big-1", "198.18.7.11"),
        ("big-2", "198.18.7.12"),
        ("big-3", "198.18.7.13"),
    ]
    assert plan.gateway == "198.18.7.1"
    assert plan.registry_address == "198.18.7.2:5000"
    assert plan.model_source == "http://198.18.7.2:8080"


def test_interface_names_fit_and_differ() -> None:
    names = {Plan(Shape(), f"198.18.{third}", 1500, "", "", "").uplink for third in range(256)}
    assert len(names) == 256
    assert max(map(len, names)) <= 15


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ({"name": "Lab"}, "Lab"),
        ({"name": "../etc"}, "../etc"),
        ({"name": "a" * 16}, "aaaa"),
        ({"hosts": 0}, "--hosts 0"),
        ({"hosts": 201}, "--hosts 201"),
        ({"gpus": -1}, "--gpus -1"),
        ({"engine": "lxc"}, "--engine lxc"),
        ({"os": "fedora"}, "--os fedora"),
        ({"server": "fake"}, "--server fake"),
    ],
)
def test_impossible_shapes_are_refused_by_name(shape: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word.replace(".", r"\.")) as caught:
        Shape(**shape)  # type: ignore[arg-type]
    assert caught.value.exit_code is ExitCode.REFUSED
    assert caught.value.fix


def test_state_moves_with_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("SGLANG_OPS_LAB_STATE", str(tmp_path))
    assert folder("x") == Folder(tmp_path / "x")
    assert folder("x").load_plan() is None
