"""What several hosts brought home becomes one result: every item once, complete or marked."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sglang_ops.errors import OpsError
from sglang_ops.evaluation import results, run_results
from sglang_ops.evaluation.run_results import Part


def sample(item: int, host: str, score: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"id": str(item), "repeat": 0, "host": host, "prompt": "p", "answer": "a", "scores": {"acc": score}, **more}


def part(tmp_path: Path, host: str, samples: list[dict[str, Any]], state: str = "done", items: int = 4) -> Part:
    path = tmp_path / f"part-{host}"
    (path / "results" / "t").mkdir(parents=True)
    task = {"name": "t", "harness_task": "t", "stage": 0, "repeats": 1, "generation": {"temperature": 0}}
    server = {
        "argv": ["sglang", "--api-key", "canary", "--x=1"],
        "image_digest": "sha256:1",
        "model": {"repo": "a/b", "commit": "c"},
    }
    job = {
        "tasks": [task],
        "server": server,
        "created": 1e9,
        "deployment": "sglang-x",
        "model": "x",
        "concurrency": 4,
        "images": ["i@d"],
    }
    known = {
        "harness": {"name": "lm-evaluation-harness", "version": "0.4.13"},
        "items": items,
        "repeats": 1,
        "dataset": {"name": "d", "sha256": "0" * 64},
        "primary": "acc",
    }
    checked = {"tasks": {"t": known}}
    (path / "job.json").write_text(json.dumps(job))
    (path / "checked.json").write_text(json.dumps(checked))
    if samples:
        lines = "".join(json.dumps(one) + "\n" for one in samples)
        (path / "results" / "t" / "samples.jsonl").write_text(lines)
        timings = {
            "started": f"2026-01-01T00:00:0{len(host)}+00:00",
            "ended": "2026-01-01T00:01:00+00:00",
            "seconds": 9,
        }
        (path / "results" / "t" / "harness.json").write_text(json.dumps({"timings": timings}))
    return Part(host, path, state)


def test_hosts_parts_become_one_result_with_every_item_once(tmp_path: Path) -> None:
    parts = [
        part(tmp_path, "a", [sample(0, "a"), sample(2, "a", 0.0)]),
        part(tmp_path, "bb", [sample(1, "bb"), sample(3, "bb"), sample(2, "bb")]),
    ]
    info = run_results.assemble(tmp_path / "out" / "r", "r", parts, {})
    read = results.read(tmp_path / "out" / "r")
    (task,) = read.tasks
    assert (info.complete, task.result.complete, task.result.items) == (True, True, 4)
    assert [(one.id, one.host) for one in task.samples] == [("0", "a"), ("1", "bb"), ("2", "a"), ("3", "bb")]
    assert task.result.score == 0.75
    assert task.result.hosts == ("a", "bb")
    assert task.result.timings.started == "2026-01-01T00:00:01+00:00"
    assert info.server_arguments == ("sglang", "--api-key", "(hidden)", "--x=1")
    assert (info.model.repo, info.image_digest, info.harness.image) == ("a/b", "sha256:1", "i@d")
    assert (tmp_path / "out" / "r" / "t" / "harness-a.json").exists()


def test_a_run_without_a_host_is_marked_incomplete_and_says_why(tmp_path: Path) -> None:
    parts = [part(tmp_path, "a", [sample(0, "a"), sample(2, "a", failed="status 400", answer=None)])]
    info = run_results.assemble(tmp_path / "out" / "r", "r", parts, {"b": "it could not be reached"})
    (task,) = results.read(tmp_path / "out" / "r").tasks
    assert (info.complete, task.result.complete) == (False, False)
    assert task.result.incomplete_because == "2 answers are missing (b: it could not be reached)"
    assert (task.result.answered, task.result.failed) == (1, 1)


def test_a_run_that_has_scored_nothing_yet_has_no_score(tmp_path: Path) -> None:
    run_results.assemble(tmp_path / "out" / "r", "r", [part(tmp_path, "a", [], state="stalled")], {})
    (task,) = results.read(tmp_path / "out" / "r").tasks
    assert (task.result.score, task.result.incomplete_because) == (None, "4 answers are missing (a: stalled)")


def test_archives_cannot_write_elsewhere(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    with pytest.raises(OpsError, match="cannot be unpacked"):
        run_results.unpack(archive, tmp_path / "in")
    assert not (tmp_path / "outside").exists()


def test_where_only_the_harness_knows_the_items_it_has_ended_or_not(tmp_path: Path) -> None:
    """A group of NVIDIA's: items have the names of its tasks, and nobody said how many there are."""
    made = part(tmp_path, "a", [sample(0, "a", id="law:10"), sample(0, "a", id="law:9"), sample(0, "a", id="art:1")])
    checked = json.loads((made.path / "checked.json").read_text())
    checked["tasks"]["t"] |= {"items": None, "dataset": {"name": "t", "sha256": None}}
    (made.path / "checked.json").write_text(json.dumps(checked))
    assert not run_results.assemble(tmp_path / "one", "r", [made], {}).complete
    (made.path / "status.json").write_text(json.dumps({"tasks": {"t": {"scored": True}}}))
    assert run_results.assemble(tmp_path / "two", "r", [made], {}).complete
    (task,) = results.read(tmp_path / "two").tasks
    assert [one.id for one in task.samples] == ["art:1", "law:9", "law:10"]
    assert task.result.items == 3


def test_data_that_only_the_harness_reads_are_told_apart_by_their_questions(tmp_path: Path) -> None:
    def digest(name: str, prompt: str, answer: str = "x") -> str:
        made = part(tmp_path / name, "a", [sample(0, "a", prompt=prompt, answer=answer)])
        checked = json.loads((made.path / "checked.json").read_text())
        checked["tasks"]["t"]["dataset"] = {"name": "t", "sha256": None}
        (made.path / "checked.json").write_text(json.dumps(checked))
        run_results.assemble(tmp_path / name / "out", "r", [made], {})
        return results.read(tmp_path / name / "out").tasks[0].result.dataset.sha256

    assert digest("one", "Why?") == digest("two", "Why?", answer="y") != digest("three", "Who?")


def test_an_answer_counts_before_a_failure_of_another_host(tmp_path: Path) -> None:
    failed = sample(0, "a", 0.0, failed="status 500", answer=None)
    parts = [part(tmp_path, "a", [failed], items=1), part(tmp_path, "b", [sample(0, "b")], items=1)]
    run_results.assemble(tmp_path / "out", "r", parts, {})
    (task,) = results.read(tmp_path / "out").tasks
    assert (task.result.score, task.result.failed, task.result.hosts) == (1.0, 0, ("b",))


def test_different_data_are_not_scored_as_one(tmp_path: Path) -> None:
    parts = [part(tmp_path, "a", [sample(0, "a")], items=2), part(tmp_path, "b", [sample(1, "b")], items=2)]
    checked = json.loads((parts[1].path / "checked.json").read_text())
    checked["tasks"]["t"]["dataset"]["sha256"] = "1" * 64
    (parts[1].path / "checked.json").write_text(json.dumps(checked))
    info = run_results.assemble(tmp_path / "out", "r", parts, {})
    (task,) = results.read(tmp_path / "out").tasks
    assert not info.complete
    assert task.result.incomplete_because == (
        "the hosts do not have the same data: a has 000000000000, b has 111111111111 (SHA-256)"
    )


def test_servers_that_were_started_differently_are_told(tmp_path: Path) -> None:
    parts = [part(tmp_path, "a", [sample(0, "a")], items=2), part(tmp_path, "b", [sample(1, "b")], items=2)]
    assert "server_arguments" not in run_results.assemble(tmp_path / "same", "r", parts, {}).parameters
    job = json.loads((parts[1].path / "job.json").read_text())
    job["server"]["argv"] = ["a-smaller-list", "--api-key", "canary"]
    (parts[1].path / "job.json").write_text(json.dumps(job))
    info = run_results.assemble(tmp_path / "out", "r", parts, {})
    assert info.server_arguments == ("sglang", "--api-key", "(hidden)", "--x=1")
    told = {"a": "sglang --api-key (hidden) --x=1", "b": "a-smaller-list --api-key (hidden)"}
    assert info.parameters["server_arguments"] == told


def test_a_part_that_was_not_checked_yet_is_no_mistake(tmp_path: Path) -> None:
    made = part(tmp_path, "a", [], state="checking")
    (made.path / "checked.json").unlink()
    info = run_results.assemble(tmp_path / "out", "r", [made], {})
    assert (info.complete, results.read(tmp_path / "out").missing) == (False, ("t",))


def test_a_task_without_a_single_score_is_no_success(tmp_path: Path) -> None:
    answers = [sample(item, "a", failed="status 400", answer=None, scores={}) for item in range(4)]
    info = run_results.assemble(tmp_path / "out" / "r", "r", [part(tmp_path, "a", answers)], {})
    (task,) = results.read(tmp_path / "out" / "r").tasks
    assert (info.complete, task.result.score) == (False, None)
    assert task.result.incomplete_because == "none of 4 answers could be scored"
