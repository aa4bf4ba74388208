from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_runs import write

from sglang_ops.evaluation import compare, results
from sglang_ops.evaluation.results import ResultError, Run


def run(path: Path, scores: list[float | None], **keys: object) -> Run:
    return results.read(write(path, scores, **keys))  # type: ignore[arg-type]


def test_items_that_flipped_are_listed_fallen_ones_first(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [1, 1, 0, 0]), run(tmp_path / "b", [1, 0, 1, 0])
    found = compare.compare(first, second).tasks[0]
    assert [(flip.id, flip.first_score, flip.second_score) for flip in found.flips] == [
        ("item-1", 1, 0),
        ("item-2", 0, 1),
    ]
    assert (found.flips[0].first_answer, found.flips[0].second_answer) == ("A", "B")
    assert found.difference.difference == 0
    assert found.difference.p_value == 1.0


def test_other_data_are_refused_unless_told(tmp_path: Path) -> None:
    data = {"name": "Idavidrein/gpqa", "sha256": "b" * 64}
    first, second = run(tmp_path / "a", [1, 0]), run(tmp_path / "b", [1, 1], dataset=data)
    with pytest.raises(ResultError, match=r"gpqa_diamond was asked over different data: .* aaaaaaaaaaaa and .* bbbb"):
        compare.compare(first, second)
    found = compare.compare(first, second, different_data=True).tasks[0]
    assert not found.same_data
    assert found.difference.better == 1


def test_items_of_one_run_alone_are_counted(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [1, 1, None]), run(tmp_path / "b", [1, None, 0])
    found = compare.compare(first, second).tasks[0]
    assert (found.difference.items, found.only_first, found.only_second) == (1, 1, 1)


def test_no_task_in_common_is_refused(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [1]), run(tmp_path / "b", [1], task="ifeval")
    with pytest.raises(ResultError, match="a and b have no task in common"):
        compare.compare(first, second)


def test_unknown_task_and_metric_are_refused_with_the_nearest(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [1]), run(tmp_path / "b", [1])
    with pytest.raises(ResultError, match="gpqa_diamnd is not in both runs") as task:
        compare.compare(first, second, tasks=["gpqa_diamnd"])
    assert task.value.fix == "Did you mean 'gpqa_diamond'?"
    with pytest.raises(ResultError, match="has no metric exact_mach; it has exact_match") as metric:
        compare.compare(first, second, metric="exact_mach")
    assert metric.value.fix == "Did you mean 'exact_match'?"


def test_repeats_are_one_item(tmp_path: Path) -> None:
    def thrice(number: int) -> dict[str, object]:
        return {"id": f"item-{number // 3}", "repeat": number % 3}

    first = run(tmp_path / "a", [1, 1, 0, 0, 0, 0], change=thrice)
    second = run(tmp_path / "b", [1, 1, 1, 0, 0, 0], change=thrice)
    found = compare.compare(first, second).tasks[0]
    assert (found.difference.items, len(found.flips)) == (2, 1)
    assert found.flips[0].first_score == pytest.approx(2 / 3)
