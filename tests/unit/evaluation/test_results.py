from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation_runs import info, result, sample, write

from sglang_ops.evaluation import results
from sglang_ops.evaluation.results import ResultError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [1, 0, 1])
    run = results.read(path)
    assert [task.result.task for task in run.tasks] == ["gpqa_diamond"]
    assert run.tasks[0].samples[1] == sample(1, 0)
    assert json.loads((path / "gpqa_diamond/results.json").read_text())["schema"] == 1
    assert run.missing == ()


@pytest.mark.parametrize("text", ["\u2028 \x85 \x0c line ends", "half a pair \ud83d", 'quote " and \\', "日本語 😀"])
def test_answers_of_any_kind_survive(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "run", [1], lambda _: {"answer": text})
    assert results.read(path).tasks[0].samples[0].answer == text


@pytest.mark.parametrize(
    ("file", "keep", "message"),
    [
        ("run.json", 100, "run.json is no JSON, or only a part of it"),
        ("gpqa_diamond/results.json", 300, "results.json is no JSON, or only a part of it"),
        ("gpqa_diamond/samples.jsonl", -40, "samples.jsonl is cut off in line 3"),
    ],
)
def test_a_file_cut_off_by_hand_is_one_sentence(tmp_path: Path, file: str, keep: int, message: str) -> None:
    path = write(tmp_path / "run", [1, 0, 1])
    (path / file).write_text((path / file).read_text()[:keep])
    with pytest.raises(ResultError) as caught:
        results.read(path)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.fix
    assert caught.value.exit_code == 7


def test_whole_lines_taken_away_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [1, 0, 1])
    file = path / "gpqa_diamond/samples.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(ResultError, match=r"holds 2 answers, results.json speaks of 3"):
        results.read(path)


def test_an_item_twice_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [1, 0])
    file = path / "gpqa_diamond/samples.jsonl"
    file.write_text(file.read_text().replace("item-1", "item-0"))
    with pytest.raises(ResultError, match="has item item-0, repeat 0 twice"):
        results.read(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 2, "has schema 2, this version reads schema 1"),
        ("items", -1, "items: Input should be greater than or equal to 0"),
        ("score", float("nan"), "score: Input should be a finite number"),
        ("primary", "accuracy", "primary metric 'accuracy' is not among the metrics: exact_match"),
        ("complete", False, "incomplete_because says why"),
        ("tasks", 3, "tasks: Extra inputs are not permitted"),
        ("run", "other", "belongs to the run other"),
        ("task", "ifeval", "is of the task ifeval, not of gpqa_diamond"),
        ("empty", 9, "9 empty and 0 reasoning-only of 2 answers"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = write(tmp_path / "run", [1, 0])
    file = path / "gpqa_diamond/results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ResultError) as caught:
        results.read(path)
    assert message in caught.value.message


def test_a_task_folder_without_its_result_is_not_taken_for_one(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [1, 0])
    (path / "gpqa_diamond/results.json").unlink()
    with pytest.raises(ResultError, match="was not brought home whole"):
        results.read(path)


def test_a_task_that_has_not_arrived_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [1])
    results.write_info(path, info(("gpqa_diamond", "ifeval"), run="run"))
    assert results.read(path).missing == ("ifeval",)


def test_a_task_is_replaced_and_the_harness_files_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [1, 0])
    (path / "gpqa_diamond/raw").mkdir()
    (path / "gpqa_diamond/raw/log").write_text("raw")
    write(path, [1, 1, 1])
    assert len(results.read(path).tasks[0].samples) == 3
    assert (path / "gpqa_diamond/raw/log").read_text() == "raw"
    assert sorted(item.name for item in path.iterdir()) == ["gpqa_diamond", "run.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "run", [1, 0])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(results.os, "fsync", full)
        with pytest.raises(ResultError, match=r"cannot be written to .*: No space left on device"):
            results.write_task(path, result([sample(0)], run="run"), [sample(0)])
    assert len(results.read(path).tasks[0].samples) == 2
    assert sorted(item.name for item in path.iterdir()) == ["gpqa_diamond", "run.json"]


def test_a_run_is_found_by_folder_or_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "results/one", [1])
    assert results.locate(str(path)) == path
    assert results.locate("one", tmp_path / "results") == path
    with pytest.raises(ResultError, match="There is no run two"):
        results.locate("two", tmp_path / "results")
    with pytest.raises(ResultError, match=r"has no run\.json"):
        results.locate(str(tmp_path))


def test_an_output_directory_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="Results cannot be written to"):
        results.write_info(tmp_path / "file" / "run", info())


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", " "])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="usable as the name of a folder"):
        info((name,))
