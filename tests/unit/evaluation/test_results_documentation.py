"""docs/evaluation-results.md names every key of the schema and of a policy, and its policy is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from sglang_ops.evaluation import policy, results

PAGE = (Path(__file__).parents[3] / "docs" / "evaluation-results.md").read_text()
PARTS = (
    results.RunInfo, results.TaskResult, results.Sample, results.Metric, results.Dataset, results.Harness,
    results.ModelInfo, results.Timings, results.Group, policy.Rule,
)  # fmt: skip


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_key_is_documented(part: type[BaseModel]) -> None:
    named = set(re.findall(r"`([a-z_0-9]+)`", PAGE))
    assert {field.alias or name for name, field in part.model_fields.items()} <= named


def test_the_policy_shown_is_one(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    found = policy.load(file)
    assert found.rule("gpqa_diamond").max_failed == 0.02
    assert found.rule("ifeval").tier is policy.Tier.SUPPORTING
