"""A life of a run whose check is refused: who hears of it, and what is tried again."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from sglang_ops.evaluation.agent import __main__ as agent
from sglang_ops.evaluation.agent import work
from sglang_ops.evaluation.agent.store import Answer, Key, Store
from sglang_ops.evaluation.agent.task import Problem


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's directory; its check is always refused."""
    job = {
        "upstreams": [{"address": "127.0.0.1", "port": 1}], "concurrency": 1, "patience": 1, "model": "m",
        "endpoints": {"chat": "/v1/chat/completions"},
        "tasks": [{"name": "t", "endpoint_type": "chat", "request_timeout": 1, "max_retries": 0}],
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "secrets.json").write_text(json.dumps({"environment": {}}))

    def refused(life: agent.Life) -> int:
        (life.directory / "checked.json").write_text(json.dumps({"tasks": {}, "problems": ["t: no hub."]}))
        return 7

    monkeypatch.setattr(agent.Life, "_harness", refused)
    monkeypatch.setattr(agent.Life, "_measure", lambda _: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return tmp_path


def told(directory: Path, monkeypatch: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["agent", str(directory)])
    code = agent.main()
    status = json.loads((directory / "status.json").read_text())
    return code, status["state"], status["why"]


def test_a_run_that_asked_nothing_is_refused_at_once(directory: Path, monkeypatch: Any) -> None:
    assert told(directory, monkeypatch) == (7, "refused", "")


def test_after_a_reboot_it_is_tried_again_and_on_resume_it_is_told(directory: Path, monkeypatch: Any) -> None:
    Store(directory / "answers.sqlite").put(Key("t", 0, "d", 0), Answer(response={}))
    assert told(directory, monkeypatch) == (1, "failed", "t: no hub.")
    (directory / "again").touch()
    assert told(directory, monkeypatch) == (7, "refused", "")


@pytest.mark.parametrize("passes", [True, False])
def test_what_was_scored_goes_only_once_the_check_has_passed(passes: bool, directory: Path, monkeypatch: Any) -> None:
    class Task:
        """Checked as the test says; asks nothing."""

        name, run = "t", staticmethod(lambda *_: None)
        environment = staticmethod(contextlib.nullcontext)

        def check(self) -> dict[str, Any]:
            if not passes:
                raise Problem("no hub.")
            return {}

    monkeypatch.setattr(work, "_task", lambda *_: Task())
    store = Store(directory / "answers.sqlite")
    store.put(Key("t", 0, "d", 0), Answer(failed="status 500"))
    (directory / "results" / "t").mkdir(parents=True)
    (directory / "again").touch()
    assert work.main(directory, "", work.BOTH, 0, {}) == (0 if passes else 7)
    assert store.count("t")["failed"] == (not passes)
    assert (directory / "results").exists() == (directory / "again").exists() == (not passes)
