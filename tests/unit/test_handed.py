"""What a run says of compiled kernels that go from host to host."""

from __future__ import annotations

from typing import Any

from sglang_ops.events import HostState, RunState
from sglang_ops.planned import Planned
from sglang_ops.result import Deployed

K = {"key": "abababababab-NVIDIA-H200-org-m", "machine": "m", "path": "/jit/x", "parts": ["triton"]}
START = {"step": "start", "subject": "sglang-m", "why": "not deployed yet"}


def run(other: dict[str, Any]) -> RunState:
    state = RunState(finished=True)
    for name, plan in {"gpu-1": {"compiled": [K]}, "gpu-2": {"kernels": [other], "steps": [START]}}.items():
        state.hosts[name] = HostState(name, results={"plan": [{"kind": "plan", "plan": plan}]})
    return state


def test_plan_and_dry_run_say_from_whom() -> None:
    state = run(K)
    second = Planned.from_run(state).hosts[1]
    assert [(step.step, step.why) for step in second.steps] == [
        ("kernels", "none here, compiled on gpu-1"), ("start", "not deployed yet"),
    ]  # fmt: skip
    assert "kernels" in [step.step for step in Deployed.from_run(state, run="", seconds=0, check=True).steps]


def test_those_of_another_processor_are_not_announced() -> None:
    assert [step.step for step in Planned.from_run(run(K | {"machine": "other"})).hosts[1].steps] == ["start"]


def test_the_result_says_what_came() -> None:
    state = run(K)
    came = {"key": K["key"], "giver": "gpu-1", "files": 3, "bytes": 4096}
    state.hosts["gpu-2"].results["model"] = [{"kind": "model", "models": [], "kernels": [came]}]
    result = Deployed.from_run(state, run="", seconds=0).as_dict()
    assert [host["kernels"] for host in result["hosts"]] == [(), (came,)]
