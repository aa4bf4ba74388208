"""What --limit keeps out of a deploy: hosts that the deployments or their gateways name, and no others."""

from __future__ import annotations

from typing import Any

from sglang_ops.action_inputs import fleet_of, left_out
from sglang_ops.spec import load_mapping

FILE = load_mapping(
    {
        "deployment": {
            "image": "registry.example/sglang:v0.5.23",
            "served_model_name": "tiny",
            "hf_model_handle": "lab/tiny-llama",
            "hosts": "servers",
            "gateway": {"hosts": "edge"},
        }
    },
    "a test",
)
GROUPS = {
    "all": ["gpu-1", "gpu-2", "gpu-3", "edge-1", "other"],
    "servers": ["gpu-1", "gpu-2", "gpu-3"],
    "edge": ["edge-1"],
}


def limited(*playing: str) -> dict[str, Any]:
    return {"groups": GROUPS, "ansible_play_hosts_all": list(playing)}


def test_servers_and_gateways_that_are_not_played() -> None:
    assert left_out([FILE], limited("gpu-2")) == ["gpu-1", "gpu-3", "edge-1"]
    assert left_out([FILE], limited("gpu-1", "gpu-2", "gpu-3", "edge-1")) == []
    assert left_out([FILE], limited(*GROUPS["all"])) == []


def test_the_fleet_is_counted_as_it_changes_whatever_is_played() -> None:
    assert fleet_of([FILE], limited("gpu-2")) == [["gpu-1"], ["gpu-2"], ["gpu-3"]]
    section = {"image": "registry.example/sglang:v0.5.23", "hf_model_handle": "lab/tiny-llama"}
    spread = {**section, "served_model_name": "big", "hosts": "gpu-2:gpu-3", "nodes": 2, "tensor_parallel_size": 2}
    alone = {**section, "served_model_name": "tiny", "hosts": "servers", "port": 8001}
    both = load_mapping({"deployments": {"one": spread, "two": alone}}, "a test")
    assert sorted(fleet_of([both], limited("gpu-1"))) == [["gpu-1"], ["gpu-2", "gpu-3"]]
