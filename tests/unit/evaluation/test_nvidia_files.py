"""What NVIDIA's harnesses leave behind, read back: simple-evals' cache, lm-evaluation-harness' log of samples."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sglang_ops.evaluation.agent import nvidia, samples
from sglang_ops.evaluation.agent.nvidia import NvidiaTask
from sglang_ops.evaluation.agent.proxy import prompt_digest
from sglang_ops.evaluation.agent.store import Answer
from sglang_ops.evaluation.agent.task import Problem


def kept(question: str, text: str, score: float) -> str:
    conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    page = f"<p>Correct Answer: {'A &amp; B' if score else 'C'}</p>\n<p>Score: {score}</p>"
    return json.dumps({"score": score, "metrics": {"chars": 3, "none": None}, "html": page, "convo": conversation})


def cache(directory: Path, values: dict[str, str]) -> Path:
    """A cache as simple-evals writes it: what is longer than 32 KB lies in a file of its own."""
    directory.mkdir()
    connection = sqlite3.connect(directory / "cache.db")
    connection.execute("CREATE TABLE Cache (key BLOB, mode INTEGER, filename TEXT, value BLOB)")
    for key, value in values.items():
        long = len(value) > 32 * 1024
        if long:
            (directory / f"{key}.val").write_text(value)
        row = (key, 2, f"{key}.val" if long else None, None if long else value.encode())
        connection.execute("INSERT INTO Cache VALUES (?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    return directory


def test_items_and_repeats_of_simple_evals_are_told_apart(tmp_path: Path) -> None:
    """Keys count items over and over: 0 1, then 2 3 for the same two items."""
    values = {str(at): kept(f"q{at % 2}", "x" * (40_000 if at == 3 else 1), float(at == 0)) for at in (3, 0, 2, 1)}
    rows = list(nvidia.simple_evals(cache(tmp_path / "c", values), repeats=2))
    assert [(row["id"], row["repeat"]) for row in rows] == [("0", 0), ("1", 0), ("0", 1), ("1", 1)]
    assert rows[0]["scores"] == {"score": 1.0, "chars": 3.0}
    assert [row["expected"] for row in rows] == ["A & B", "C", "C", "C"]
    assert len(rows[3]["text"]) == 40_000
    asked = {"messages": [{"role": "user", "content": "q0"}]}
    answers = [Answer(response={"choices": [{"message": {"content": "x"}}]}, prompt=prompt_digest(asked), latency=1.5)]
    (line,) = samples.joined(rows[:1], answers, "h")
    assert (line["answer"], line["latency_seconds"], line["host"]) == ("x", 1.5, "h")


def test_answers_to_what_an_interceptor_put_in_other_words_are_told_by_their_text() -> None:
    """NVIDIA's adapter may add a system message, or take reasoning off the answer."""

    def row(number: int, text: str) -> dict[str, Any]:
        asked = [{"messages": [{"role": "user", "content": f"q{number}"}]}]
        known = dict.fromkeys(("category", "expected")) | {"prompt": f"q{number}", "scores": {}, "weights": {}}
        return {"id": str(number), "repeat": 0, "asked": asked, "text": text, **known}

    def answer(text: str, latency: float, prompt: str) -> Answer:
        response = {"choices": [{"message": {"content": text}}]}
        return Answer(response=response, latency=latency, prompt=prompt)

    answers = [
        answer("B", 2.0, "another"), answer("B", 1.0, prompt_digest(row(1, "")["asked"][0])),
        answer("<think>no</think>C", 3.0, "a third"),
    ]  # fmt: skip
    lines = list(samples.joined([row(0, "B"), row(1, "B"), row(2, "C")], answers, "h"))
    assert [(line["answer"], line["latency_seconds"]) for line in lines] == [("B", 2.0), ("B", 1.0), ("C", None)]


def log(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def entry(item: int, score: Any, **more: Any) -> dict[str, Any]:
    asked = json.dumps([{"role": "user", "content": f"q{item}"}])
    return {
        "doc_id": item, "doc": {"subject": "law"}, "target": "0", "arguments": {"gen_args_0": {"arg_0": [asked]}},
        "resps": [["x"]], "filter": "none", "metrics": ["acc"], "acc": score, **more,
    }  # fmt: skip


def test_a_task_of_the_harness_keeps_its_items_and_a_group_names_them(tmp_path: Path) -> None:
    log(tmp_path / "samples_one_2026-01-01T00-00-00.1.jsonl", [entry(1, True), entry(0, [True, False], target="B")])
    rows = list(nvidia.lm_eval(tmp_path))
    assert [(row["id"], row["category"], row["expected"]) for row in rows] == [("0", "law", "B"), ("1", "law", None)]
    assert (rows[0]["scores"], rows[0]["weights"], rows[1]["scores"]) == ({"acc": 0.5}, {"acc": 2.0}, {"acc": 1.0})
    assert rows[0]["asked"] == [{"messages": [{"role": "user", "content": "q0"}]}]
    log(tmp_path / "samples_two_2026-01-01T00-00-00.1.jsonl", [entry(0, 1.0)])
    rows = list(nvidia.lm_eval(tmp_path))
    assert {(row["id"], row["category"]) for row in rows} == {("one:0", "one"), ("one:1", "one"), ("two:0", "two")}


def test_several_filters_are_several_metrics(tmp_path: Path) -> None:
    log(tmp_path / "samples_one_2026-01-01T00-00-00.1.jsonl", [entry(0, 1.0, filter="a"), entry(0, 0.0, filter="b")])
    (row,) = nvidia.lm_eval(tmp_path)
    assert row["scores"] == {"acc,a": 1.0, "acc,b": 0.0}


def test_a_metric_that_is_no_mean_over_items_is_no_score_of_them(tmp_path: Path) -> None:
    """The harness's own value tells: its mean of instructions is one, f1 over all answers is not."""
    metrics = {"metrics": ["acc", "f1"]}
    entries = [entry(0, [True, False, False], f1=[1, 0], **metrics), entry(1, [True], f1=[1, 1], **metrics)]
    log(tmp_path / "samples_one_2026-01-01T00-00-00.1.jsonl", entries)
    told = {"results": {"one": {"alias": "one", "acc,none": 0.5, "f1,none": 2 / 3}}}
    (tmp_path / "results_2026-01-01T00-00-00.1.json").write_text(json.dumps(told))
    assert [row["scores"] for row in nvidia.lm_eval(tmp_path)] == [{"acc": 1 / 3}, {"acc": 1.0}]


def task(tmp_path: Path, shards: list[list[int]], place: int = 1) -> NvidiaTask:
    item = {"name": "t", "shards": shards, "nvidia": {"place": place, "distribution": "d", "package": "p"}}
    return NvidiaTask(item, {"host": "h"}, tmp_path, {})


def test_a_task_is_one_hosts_and_goes_to_who_takes_its_share(tmp_path: Path) -> None:
    assert task(tmp_path, [[0, 1]])._ours
    assert [task(tmp_path, [[host, 2]])._ours for host in range(2)] == [False, True]
    assert task(tmp_path, [[0, 2], [1, 2]])._ours, "the other host is lost"


def test_an_image_without_the_evaluator_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Problem, match=r"no nemo-evaluator.*nvidia_images"):
        task(tmp_path, [[0, 1]]).check()
