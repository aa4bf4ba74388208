"""Groups of tasks: what they stand for, and the means that they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sglang_ops.errors import UsageError
from sglang_ops.evaluation import groups, tasks
from sglang_ops.evaluation.groups import Mean
from sglang_ops.evaluation.results import Dataset, Harness, Metric, TaskResult, Timings
from tests.unit.evaluation.test_work import work


def result(task: str, *metrics: tuple[str, float, int], complete: bool = True) -> TaskResult:
    made = tuple(
        Metric(name=name, score=score, items=items, interval=(score - 0.1, score + 0.1), method="wilson")
        for name, score, items in metrics
    )
    return TaskResult(
        schema=1, run="r", task=task, harness_task=task, harness=Harness(name="h", version="1"),
        dataset=Dataset(name="d", sha256="0" * 64), primary=metrics[0][0], metrics=made, score=metrics[0][1],
        interval=made[0].interval, items=metrics[0][2], answered=metrics[0][2], failed=0,
        timings=Timings(started="2026-01-01T00:00:00+00:00", seconds=1.0), hosts=("a",), complete=complete,
        incomplete_because=None if complete else "why",
    )  # fmt: skip


def test_a_groups_mean_is_weighed_as_it_says() -> None:
    found = [result("a", ("acc", 1.0, 30)), result("b", ("acc", 0.0, 10))]
    written = {"name": "g", "tasks": ["a", "b"], "means": [["acc", None, True]]}
    (mean,) = groups.score(written, found).metrics
    assert (mean.score, mean.items, mean.method) == (0.75, 40, "mover, by items")
    half = (0.075**2 + 0.025**2) ** 0.5
    assert mean.interval == pytest.approx((0.75 - half, 0.75 + half))
    (mean,) = groups.score(written | {"means": [["acc", None, False]]}, found).metrics
    assert (mean.score, mean.method) == (0.5, "mover, by tasks")
    part = groups.score(written, found[:1])
    assert (part.complete, part.metrics) == (False, ()), "a mean of some is none"
    assert not groups.score(written, [found[0], result("b", ("acc", 0.0, 10), complete=False)]).complete
    assert groups.score(written | {"means": []}, found).complete, "a tag has no mean"


def test_a_mean_names_the_filter_where_a_task_has_several() -> None:
    two = result("a", ("em,strict", 0.0, 4), ("em,loose", 1.0, 4))
    one = result("b", ("em", 0.5, 4))
    written = {"name": "g", "tasks": ["a", "b"], "means": [["em", "loose", True]]}
    (mean,) = groups.score(written, [two, one]).metrics
    assert (mean.name, mean.score) == ("em,loose", 0.75)
    assert Mean.of("em", None, True).names(two.metrics) == ["em,strict", "em,loose"]


def test_the_harnesss_groups_become_their_tasks_with_the_same_settings(tmp_path: Path) -> None:
    params = {"config": {"params": {"limit_samples": 3}}}
    made = work(tmp_path, {"tasks": [{"name": "mmlu_generative", "nemo_evaluator_config": params}, {"name": "ifeval"}]})
    items = made.job["tasks"]
    assert len(items) == 57 + 1
    assert {item["limit"] for item in items[:-1]} == {3}
    assert items[-1]["limit"] is None
    (group,) = made.job["groups"]
    assert (group["name"], len(group["tasks"]), group["means"]) == (
        "mmlu_generative", 57, [["exact_match", ("get_response",), True]],
    )  # fmt: skip
    assert tasks.group("lm-evaluation-harness.bbh_cot_zeroshot")
    assert tasks.group("gsm8k") is None
    assert all(set(members) <= {task.name for task in tasks.known()} for members in tasks.known_groups().values())
    with pytest.raises(UsageError, match="probabilities"):
        work(tmp_path, {"tasks": [{"name": "mmlu"}]})


def directory(tmp_path: Path, files: dict[str, Any]) -> Path:
    (tmp_path / "own").mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (tmp_path / "own" / name).write_text(text)
    return tmp_path / "own"


def test_a_users_directory_may_define_a_group_or_a_tag(tmp_path: Path) -> None:
    mean = {"metric": "em", "aggregation": "mean", "weight_by_size": False}
    own = directory(
        tmp_path,
        {
            "a.yaml": "task: a\ntag: [words]\nprocess_results: !function utils.go\n",
            "b.yaml": {"task": "b", "tag": "words"},
            "all.yaml": {"group": "all", "task": ["inner", "ifeval"], "aggregate_metric_list": [mean]},
            "inner.yaml": {"group": "inner", "task": ["words"]},
            "a.jsonl": "{}",
        },
    )
    found = groups.of_directory(own, "all")
    assert found is not None
    assert (found.tasks, found.means) == (("a", "b", "ifeval"), (Mean("em", None, by_size=False),))
    assert groups.of_directory(own, "a") is None
    assert groups.of_directory(own, "nothing") is None
    made = work(tmp_path, {"tasks": [{"name": "all", "dataset_dir": "own"}]})
    assert [(item["name"], item["data"], item["dataset_dir"]) for item in made.job["tasks"]] == [
        ("a", "all", "own"), ("b", "all", "own"), ("ifeval", "ifeval", None),
    ]  # fmt: skip
    assert set(made.files) == {f"data/all/{path.name}" for path in own.iterdir()}, "the files go along once"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"group": "g", "task": [{"task": "a", "num_fewshot": 2}]}, "changes the settings of a"),
        ({"group": "g", "task": ["g"]}, "is in itself"),
        ("task: [", "is no YAML"),
    ],
)
def test_groups_that_cannot_be_taken_are_refused(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        groups.of_directory(directory(tmp_path, {"g.yaml": content}), "g")
