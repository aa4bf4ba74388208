from __future__ import annotations

import csv
import io
import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from evaluation_runs import info, write

from sglang_ops.errors import OpsError
from sglang_ops.evaluation import export, export_mlflow, policy, results
from sglang_ops.evaluation.results import Run


def run(path: Path, scores: list[float | None], **keys: Any) -> Run:
    return results.read(write(path / "run", scores, **keys))


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_json_has_the_run_and_its_results(tmp_path: Path) -> None:
    data = json.loads(export.as_json(run(tmp_path, [1, 0])))
    assert data["run"] == "run"
    assert data["results"][0]["metrics"][0]["score"] == 0.5


def test_csv_has_a_line_per_metric_and_one_per_answer(tmp_path: Path) -> None:
    found = run(tmp_path, [1, 0], change=lambda _: {"answer": 'several\nlines, a "quote"'})
    assert [(row["metric"], row["score"], row["primary"]) for row in rows(export.scores_csv(found))] == [
        ("exact_match", "0.5", "true")
    ]
    items = rows(export.items_csv(found))
    assert [row["score.exact_match"] for row in items] == ["1.0", "0.0"]
    assert items[0]["answer"] == 'several\nlines, a "quote"'


@pytest.mark.parametrize(
    ("answer", "cell"), [("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("-cmd|x", "'-cmd|x"), ("-5", "-5"), ("A", "A")]
)
def test_no_answer_becomes_a_formula(tmp_path: Path, answer: str, cell: str) -> None:
    assert rows(export.items_csv(run(tmp_path, [1], change=lambda _: {"answer": answer})))[0]["answer"] == cell


def test_a_task_without_scores_has_a_line(tmp_path: Path) -> None:
    found = run(tmp_path, [None], change=lambda _: {"failed": "HTTP 500", "answer": None})
    assert [(row["metric"], row["score"], row["failed"]) for row in rows(export.scores_csv(found))] == [
        ("exact_match", "", "1")
    ]


def test_junit_without_a_policy_asks_whether_it_was_evaluated(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [1, 0])
    results.write_info(path, info(("gpqa_diamond", "ifeval"), run="run"))
    root = ET.fromstring(export.junit(results.read(path)))  # noqa: S314 - made a line above
    assert (root.get("tests"), root.get("errors"), root.get("failures")) == ("2", "1", "0")
    assert [case.get("classname") for case in root.iter("testcase")] == ["llama.gpqa_diamond", "llama.ifeval"]
    error = root.find(".//error")
    assert error is not None
    assert error.get("message") == "nothing of the task has arrived"


def test_junit_with_a_policy_has_a_case_per_limit(tmp_path: Path) -> None:
    found = run(tmp_path, [1] * 60 + [0] * 40)
    rules = policy.Policy.model_validate({"tasks": {"gpqa_diamond": {"min_score": 0.8}}})
    root = ET.fromstring(export.junit(found, policy.decide(found, None, rules)))  # noqa: S314
    assert [case.get("name") for case in root.iter("testcase")] == ["max_failed", "min_score exact_match"]
    failure = root.find(".//failure")
    assert failure is not None
    assert str(failure.get("message")).startswith("NO-GO (critical): exact_match 0.600")
    assert root.get("failures") == "1"
    advisory = policy.Policy.model_validate({"tasks": {"gpqa_diamond": {"min_score": 0.8, "tier": "advisory"}}})
    root = ET.fromstring(export.junit(found, policy.decide(found, None, advisory)))  # noqa: S314
    assert (root.get("failures"), root.get("skipped")) == ("0", "1")


def test_junit_holds_only_what_xml_can(tmp_path: Path) -> None:
    why = "lost \x00 \x1b[31m <gpu> & \ud800"
    found = run(tmp_path, [1], complete=False, incomplete_because=why, items=3)
    root = ET.fromstring(export.junit(found))  # noqa: S314
    error = root.find(".//error")
    assert error is not None
    assert "<gpu> &" in str(error.text)


def test_without_its_client_mlflow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(OpsError, match="MLflow's client is not installed here") as caught:
        export_mlflow.export(run(tmp_path, [1]), f"file:{tmp_path}/mlruns")
    assert caught.value.fix == "Install it with: pip install 'sglang-ops[mlflow]'"


def test_mlflow_takes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client and a file store."""
    pytest.importorskip("mlflow", reason="NO MLFLOW: install the extra sglang-ops[mlflow] to have the export tried")
    from mlflow import MlflowClient

    monkeypatch.setattr(os, "environ", os.environ.copy())
    found = run(tmp_path, [1, 0, 1, 1], change=lambda n: {"scores": {"exact_match": float(n != 1), "f1,strict@1": 0.5}})
    measured = results.Metric(name="f1,strict@1", score=0.5, items=4, interval=(0.25, 0.75), method="t")
    task = found.tasks[0].result.model_copy(update={"metrics": (*found.tasks[0].result.metrics, measured)})
    results.write_task(found.path, task, found.tasks[0].samples)
    found = results.read(found.path)
    uri = f"file:{tmp_path}/mlruns"
    done = export_mlflow.export(found, uri)
    assert done.added
    there = MlflowClient(tracking_uri=uri).get_run(done.run_id)
    assert there.info.status == "FINISHED"
    assert there.data.metrics["gpqa_diamond.exact_match"] == 0.75
    assert there.data.metrics["gpqa_diamond.f1_strict_1.high"] == 0.75
    assert there.data.params["model_revision"] == "0e9e39f249a1"
    assert there.data.tags["mlflow.user"] == "ops"
    files = {item.path for item in MlflowClient(tracking_uri=uri).list_artifacts(done.run_id)}
    assert files == {"gpqa_diamond", "report.html", "run.json"}
    again = export_mlflow.export(found, uri)
    assert (again.run_id, again.added) == (done.run_id, False)
    MlflowClient(tracking_uri=uri).set_terminated(done.run_id, "FAILED")  # as one that was cut off
    assert export_mlflow.export(found, uri).added


def test_an_mlflow_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="NO MLFLOW: install the extra sglang-ops[mlflow] to have the export tried")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    (tmp_path / "file").write_text("")
    with pytest.raises(OpsError, match=r"MLflow at file:.* did not take the run"):
        export_mlflow.export(run(tmp_path, [1]), f"file:{tmp_path}/file/mlruns")
