"""What starting, resuming and removing leave of a run on a host; systemd is a function of the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import module_testing
import pytest

JOB = {
    "deployment": "sglang-m", "model": "m", "service": "sglang-m", "unit": "sglang-m-evaluation-r", "concurrency": 1,
    "tasks": [{"name": "t", "shards": [[0, 1]]}], "server": {"model": {"repo": "a/b"}},
}  # fmt: skip
TOLD = {"state": "checking", "problems": [], "tasks": {}}


class Host:
    """A host's directories; `life` is what the run's program writes to status.json once systemd starts it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module: ModuleType = module_testing.load("sglang_evaluation")
        self.runs, self.units = path / "evaluations", path / "units"
        self.life: dict[str, Any] = {}
        self.asked: list[str] = []
        self.begun: Callable[[], None] = lambda: None
        self.units.mkdir(parents=True)
        evaluation = self.module.evaluation
        monkeypatch.setattr(evaluation, "ROOT", str(self.runs))
        monkeypatch.setattr(self.module.store, "UNITS", str(self.units))
        monkeypatch.setattr(self.module.systemd, "systemctl", self.systemctl)
        monkeypatch.setattr(
            self.module.systemd, "show", lambda units: {unit: {"ActiveState": "active"} for unit in units}
        )
        monkeypatch.setattr(self.module.systemd, "journal", lambda *_: [])
        monkeypatch.setattr(self.module, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(evaluation, "prepared", self.prepared)
        monkeypatch.setattr(evaluation, "key_of", lambda _: "")
        monkeypatch.setattr(evaluation, "services", lambda _: [{"name": "sglang-m"}])
        monkeypatch.setattr(evaluation, "serving", lambda *_: {})

    def prepared(self, job: dict[str, Any], _key: str) -> tuple[dict[str, Any], list[str]]:
        self.begun()
        return {**JOB, **job}, []

    def systemctl(self, verb: str, *words: str) -> str:
        self.asked.append(verb)
        if verb == "start":
            (self.runs / "r" / "status.json").write_text(json.dumps(TOLD | self.life))
        return ""

    def act(self, state: str, **more: Any) -> module_testing.Left:
        return module_testing.run(self.module, state=state, run="r", **more)

    def start(self, **more: Any) -> module_testing.Left:
        return self.act("started", job=JOB, unit="[Unit]\n", secrets={"environment": {"T": "x"}}, **more)

    @property
    def left(self) -> list[str]:
        places = [*self.runs.iterdir()] if self.runs.exists() else []
        return sorted(path.name for path in [*places, *self.units.iterdir()])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_run_that_is_refused_when_it_begins_leaves_nothing(host: Host) -> None:
    host.life = {"state": "refused", "problems": ["t: its data set has no items."]}
    done = host.start()
    assert done.failed
    assert (done.result["msg"], done.result["exit_hint"]) == ("t: its data set has no items.", 7)
    assert host.left == []


def test_a_run_that_is_refused_when_it_goes_on_keeps_every_answer(host: Host) -> None:
    host.life = {"state": "running"}
    assert not host.start().failed
    (host.runs / "r" / "answers.sqlite").write_text("500 answers")
    (host.runs / "r" / "status.json").write_text(
        json.dumps({**TOLD, "state": "stalled", "tasks": {"t": {"failed": 1}}})
    )
    host.life = {"state": "refused", "problems": ["t: the hub does not answer."]}
    done = host.act("resumed")
    assert done.failed
    assert done.result["exit_hint"] == 7
    assert done.result["msg"].startswith("t: the hub does not answer. Every answer is kept: ")
    assert (host.runs / "r" / "answers.sqlite").read_text() == "500 answers"
    assert host.left == ["r", "sglang-m-evaluation-r.service"]
    host.life = {"state": "running"}
    assert not host.act("resumed").failed


def test_a_check_that_takes_too_long_leaves_nothing_that_asks_the_model(host: Host) -> None:
    done = host.start(check_timeout=0)
    assert done.failed
    assert "were not checked within 0 s" in done.result["msg"]
    assert host.left == []
    assert "disable" in host.asked


def test_a_start_tells_by_which_hash_the_data_are_known(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.life = {"state": "running"}
    read = host.module.evaluation.read
    known = {"tasks": {"t": {"dataset": {"sha256": "abc"}}, "n": {"dataset": {"sha256": None}}}}
    monkeypatch.setattr(
        host.module.evaluation, "read", lambda run, name: known if name == "checked.json" else read(run, name)
    )
    (told,) = host.start().result["sglang_ops"]["runs"]
    assert told["data"] == {"t": "abc"}


def test_of_two_that_begin_one_run_the_second_is_refused(host: Host) -> None:
    host.life = {"state": "running"}
    began: list[bool] = []

    def other() -> None:
        host.begun = lambda: None
        began.append(host.start().failed)

    host.begun = other  # while the first is asking its questions
    done = host.start()
    assert began == [False]
    assert done.failed
    assert done.result["msg"].startswith("There is a run r on this host.")
    assert json.loads((host.runs / "r" / "job.json").read_text())["deployment"] == "sglang-m"


def test_a_start_that_died_before_its_unit_was_there_is_gone_on_from(host: Host) -> None:
    host.life = {"state": "running"}
    assert not host.start().failed
    (host.units / "sglang-m-evaluation-r.service").unlink()
    (host.runs / "r" / "status.json").write_text(json.dumps({**TOLD, "state": "failed"}))
    assert not host.act("resumed").failed
    assert (host.units / "sglang-m-evaluation-r.service").read_text() == "[Unit]\n"
