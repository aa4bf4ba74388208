"""What a host makes of a run: what its server can take, and how far it is told to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_evaluating as evaluating
from ansible.module_utils import sglang_host_evaluation as evaluation

TASK = {"name": "ifeval", "endpoint_type": "chat", "parallelism": None, "generation": {}, "usual": True}
BOTH = ["chat", "completions"]


@pytest.mark.parametrize(
    ("wanted", "running", "most"), [(None, 32, 32), (None, 500, 64), (None, None, 64), (10, 32, 10), (100, 32, 32)]
)
def test_concurrency_follows_the_servers_capacity(wanted: int | None, running: int | None, most: int) -> None:
    tasks, found, warnings = evaluation.fit([{**TASK, "parallelism": wanted}], running, 4096, BOTH)
    assert (tasks[0]["parallelism"], found) == (most, most)
    assert bool(warnings) == (wanted == 100)


def test_answers_fit_the_context_or_are_refused() -> None:
    usual = {**TASK, "generation": {"max_gen_toks": 16384}}
    tasks, _, warnings = evaluation.fit([usual], 8, 4096, BOTH)
    assert tasks[0]["generation"] == {"max_gen_toks": 2048}
    assert "2048 tokens instead of 16384" in warnings[0]
    assert evaluation.fit([usual], 8, 32768, BOTH)[0][0]["generation"] == {"max_gen_toks": 16384}
    with pytest.raises(evaluation.Refused, match="max_new_tokens 16384 does not fit the server's context of 4096"):
        evaluation.fit([{**usual, "usual": False}], 8, 4096, BOTH)


def test_a_chat_task_needs_a_chat_template() -> None:
    layers = [{"name": "answer", "detail": "/v1/chat/completions: the model has no chat template, /v1/completions: 8"}]
    assert evaluation.offered(layers) == ["completions"]
    with pytest.raises(evaluation.Refused, match="no chat template"):
        evaluation.fit([TASK], 8, 4096, ["completions"])
    assert evaluation.fit([{**TASK, "endpoint_type": "completions"}], 8, 4096, ["completions"])


def test_replicas_are_those_that_serve_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"sglang-a-1": "a", "sglang-a-2": "a", "sglang-a-3": "another", "sglang-b": "b", "sglang-b-7": "b"}
    monkeypatch.setattr(evaluation.store, "names", lambda: list(served))
    monkeypatch.setattr(evaluation.store, "read_state", lambda name: {"release": name})
    monkeypatch.setattr(
        evaluation.store,
        "read_record",
        lambda name, release: {"name": name, "gate": {"served_model_name": served[name]}},
    )
    assert [one["name"] for one in evaluation.services({"deployment": "sglang-a", "model": "a"})] == [
        "sglang-a-1",
        "sglang-a-2",
    ]
    assert [one["name"] for one in evaluation.services({"deployment": "sglang-b", "model": "b"})] == ["sglang-b"]
    assert evaluation.services({"deployment": "sglang-b", "model": "other"}) == []
    one = {"deployment": "sglang-a", "model": "a", "only": ["sglang-a-2"]}
    assert [item["name"] for item in evaluation.services(one)] == ["sglang-a-2"]


@pytest.mark.parametrize(
    ("told", "properties", "state"),
    [
        ("stopped", {"ActiveState": "inactive", "Job": "42"}, "starting"),  # after a reboot, before the engine
        ("stopped", {"ActiveState": "inactive", "Job": "0"}, "stopped"),
        ("running", {"ActiveState": "inactive", "Job": ""}, "failed"),
        ("running", {"ActiveState": "active"}, "running"),
        ("failed", {"ActiveState": "activating", "SubState": "auto-restart"}, "starting"),
        ("done", {"ActiveState": "inactive"}, "done"),
    ],
)
def test_a_run_is_in_the_state_that_its_unit_allows(
    told: str, properties: dict[str, str], state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"unit": "u", "service": "s", "tasks": [{"name": "t", "shards": []}], "server": {"model": {}}}
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "job.json").write_text(json.dumps(job))
    (tmp_path / "r" / "status.json").write_text(json.dumps({"state": told}))
    monkeypatch.setattr(evaluation, "ROOT", str(tmp_path))
    monkeypatch.setattr(evaluation.systemd, "show", lambda _: {"u": properties})
    assert evaluation.status("r")["state"] == state


def test_of_hosts_that_serve_together_the_first_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, names in ((0, ["sglang-a"]), (1, [])):
        gate = {"served_model_name": "a", "rank": rank}
        monkeypatch.setattr(evaluation.store, "names", lambda: ["sglang-a"])
        monkeypatch.setattr(evaluation.store, "read_state", lambda name: {"release": name})
        monkeypatch.setattr(evaluation.store, "read_record", lambda name, _, gate=gate: {"name": name, "gate": gate})
        assert [one["name"] for one in evaluation.services({"deployment": "sglang-a", "model": "a"})] == names


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"state": "checking"}, "checking data and scorers"),
        (
            {"state": "running", "rate": 3.21, "seconds_left": 130, "done": 120, "total": 541,
             "tasks": {"ifeval": {"done": 120, "total": 541, "failed": 2}}},
            "ifeval 120/541, 3.2/s, 2m10s left, 2 failed",
        ),
        (
            {"state": "running", "rate": 0, "seconds_left": None, "done": 12, "total": 12,
             "tasks": {"ifeval": {"done": 12, "total": 12, "failed": 0}}},
            "12 of 12 answered, scoring",
        ),
    ],
)  # fmt: skip
def test_progress_in_a_few_words(told: dict[str, Any], line: str) -> None:
    assert evaluation.line(told) == line


def test_a_change_of_release_marks_the_runs_that_began_with_another(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(evaluating, "ROOT", str(tmp_path))
    for run, files in {"open": ["job.json"], "over": ["job.json", "finished"], "same": ["job.json"]}.items():
        (tmp_path / run).mkdir()
        release = "new" if run == "same" else "old"
        for name in files:
            (tmp_path / run / name).write_text(json.dumps({"unit": f"u-{run}", "releases": {"sglang-m": release}}))
    evaluating.replaced({"sglang-m": "new", "sglang-other": None})
    assert [path.parent.name for path in tmp_path.glob("*/replaced.json")] == ["open"]
    mark = json.loads((tmp_path / "open" / "replaced.json").read_text())
    assert (mark["service"], mark["before"], mark["release"]) == ("sglang-m", "old", "new")


def test_a_run_does_not_go_on_with_another_release(monkeypatch: Any) -> None:
    monkeypatch.setattr(evaluation.store, "read_state", lambda _: {"release": "new"})
    evaluation.same_releases({"releases": {"sglang-m": "new"}})
    with pytest.raises(evaluation.Refused, match="began with release old of sglang-m, and now new is deployed"):
        evaluation.same_releases({"releases": {"sglang-m": "old"}})


def test_no_run_begins_while_somebody_changes_the_host(monkeypatch: Any) -> None:
    record = {"name": "sglang-m"}
    monkeypatch.setattr(evaluation.rollouts, "read", lambda _: None)
    monkeypatch.setattr(evaluation.lock, "current", dict)
    evaluation.unchanging([record])
    monkeypatch.setattr(evaluation.lock, "current", lambda: {"who": "ana@laptop", "verb": "deploy", "run": "r1"})
    with pytest.raises(evaluation.Refused, match=r"ana@laptop is at work on this host \(deploy r1\)") as refused:
        evaluation.unchanging([record])
    assert refused.value.hint == 5
    monkeypatch.setattr(evaluation.lock, "current", lambda: {"who": "ana@laptop", "verb": "models pull"})
    evaluation.unchanging([record])
    monkeypatch.setattr(evaluation.lock, "current", dict)
    monkeypatch.setattr(evaluation.rollouts, "read", lambda _: {"paused": {"why": "in doubt"}})
    with pytest.raises(evaluation.Refused, match=r"has not finished here \(paused: in doubt\)") as refused:
        evaluation.unchanging([record])
    assert refused.value.hint == 7
