"""A roll-out's gate by a policy: read before anything is touched, and what it makes of the canary's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluation_runs import write

from sglang_ops.errors import UsageError
from sglang_ops.evaluation import release_gate
from sglang_ops.spec import SpecErrors, load_mapping

FILE = {
    "deployment": {"served_model_name": "m", "hf_model_handle": "org/m"},
    "evaluation": {"tasks": [{"name": "ifeval"}, {"name": "gpqa_diamond"}]},
}


def read(base: Path, policy: str, **gate: Any) -> release_gate.ReleaseGate:
    (base / "policy.yaml").write_text(policy)
    file = load_mapping(FILE, "test")
    return release_gate.read({"policy": "policy.yaml"} | gate, file, file.services[0], base)


def test_a_gate_by_policy_is_read_before_anything_is_touched(tmp_path: Path) -> None:
    made = read(tmp_path, "tasks: {ifeval: {min_score: 0.5}}", limit_samples=5)
    assert [(task["name"], task["limit"]) for task in made.work.job["tasks"]] == [("ifeval", 5)]
    assert made.work.job["repeat_on_hosts"]
    both = read(tmp_path, "tasks: {ifeval: {min_score: 0.5}}", tasks=["ifeval", "gpqa_diamond"])
    assert [task["name"] for task in both.work.job["tasks"]] == ["ifeval", "gpqa_diamond"]
    with pytest.raises(UsageError, match="judges ifeval, and the tasks are gpqa_diamond"):
        read(tmp_path, "tasks: {ifeval: {min_score: 0.5}}", tasks=["gpqa_diamond"])
    with pytest.raises(UsageError, match="max_drop for ifeval, and there is no baseline"):
        read(tmp_path, "tasks: {ifeval: {max_drop: 0.05}}")
    with pytest.raises(UsageError, match="no run"):
        read(tmp_path, "tasks: {ifeval: {max_drop: 0.05}}", baseline="results/none")
    with pytest.raises(SpecErrors):
        read(tmp_path, "tasks: {ifeval: {least: 0.5}}")
    with pytest.raises(UsageError, match="no_such_task"):
        read(tmp_path, "tasks: {no_such_task: {min_score: 0.5}}")


@pytest.mark.parametrize(("least", "word"), [(0.2, "go"), (0.99, "no-go"), (0.8, "inconclusive")])
def test_a_policy_judges_the_canary(tmp_path: Path, least: float, word: str) -> None:
    made = read(tmp_path, f"tasks: {{ifeval: {{min_score: {least}}}}}")
    folder = write(tmp_path / "results" / "gate-x", [1.0] * 32 + [0.0] * 8, task="ifeval")
    said, why = made.decide(folder)
    assert said == word
    assert "ifeval: exact_match 0.800" in why, why
    assert str(folder) in why
