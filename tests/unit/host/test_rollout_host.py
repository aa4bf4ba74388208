"""What a host keeps of roll-outs, how it drains, how quality is judged."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

rollouts: Any = importlib.import_module("ansible.module_utils.sglang_host_rollout")
store: Any = importlib.import_module("ansible.module_utils.sglang_host_state")
drain: Any = importlib.import_module("ansible.module_utils.sglang_host_drain")
quality: Any = importlib.import_module("ansible.module_utils.sglang_host_quality")


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "STATE", str(tmp_path))


def keep(*releases: str) -> None:
    for release in releases:
        store.write_release("sglang-m", release, "unit", {}, {})


def change(release: str, before: str | None = None, rollout: str = "r1", verb: str = "deploy") -> None:
    rollouts.note("sglang-m", {"release": release, "before": before, "verb": verb, "rollout": rollout})


def test_a_record_is_there_until_the_roll_out_has_finished_here() -> None:
    assert rollouts.unfinished() == {}
    rollouts.write("sglang-m", {"id": "r1"})
    assert rollouts.unfinished() == {"sglang-m": {"id": "r1"}}
    rollouts.finish("sglang-m")
    rollouts.finish("sglang-m")
    assert rollouts.read("sglang-m") is None


def test_the_same_file_takes_up_the_roll_out_of_before() -> None:
    mark = {"who": "x"}
    current = {"id": "r1", "file": {"port": 1}, "image": "i", "started": 5, "paused": mark}
    same = rollouts.taken_up(current, {"id": "r2", "file": {"port": 1}, "image": "i", "started": 9})
    assert (same["id"], same["started"], same["paused"]) == ("r1", 5, mark)
    other = rollouts.taken_up(current, {"id": "r2", "file": {"port": 2}, "image": "i", "started": 9})
    assert (other["id"], other["paused"]) == ("r2", mark)
    assert rollouts.taken_up(None, {"id": "r2", "file": {}, "image": "i"})["paused"] is None


def test_the_last_stable_release_is_the_newest_proven_one_that_is_kept() -> None:
    keep("a", "b", "c")
    for release, before, word in (("a", None, "stable"), ("b", "a", "stable"), ("c", "b", "failed")):
        change(release, before)
        rollouts.result("sglang-m", release, word)
    assert rollouts.last_stable("sglang-m", {"release": "c", "stable": "b"}) == "b"
    assert rollouts.last_stable("sglang-m", {"release": "b", "stable": "b"}) == "a"
    assert rollouts.last_stable("sglang-m", {"release": "a", "stable": "a"}) == "b"
    assert rollouts.last_stable("sglang-n", {"release": None, "stable": None}) is None


def test_what_was_gone_back_from_is_no_way_back() -> None:
    keep("a", "b", "c")
    for release, before in (("a", None), ("b", "a"), ("c", "b"), ("b", "c")):
        change(release, before, verb="rollback" if before == "c" else "deploy")
        rollouts.result("sglang-m", release, "stable")
    assert rollouts.last_stable("sglang-m", {"release": "b", "stable": "b"}) == "a"
    change("c", "b")
    rollouts.result("sglang-m", "c", "stable")
    assert rollouts.last_stable("sglang-m", {"release": "c", "stable": "c"}) == "b", "deployed again"


def test_a_killed_run_begins_a_change_once_and_history_is_bounded() -> None:
    change("a")
    change("a")
    assert len(rollouts.history("sglang-m")) == 1
    for number in range(70):
        change(str(number))
    assert len(rollouts.history("sglang-m")) == rollouts.KEPT_CHANGES


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_server_is_idle_after_two_quiet_looks_and_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([{"running": 2, "queued": 0}, {"running": 0, "queued": 1}, {"running": 0, "queued": 0}, {}])
    monkeypatch.setattr(drain.loads, "now", lambda _gate, timeout: next(said))
    clock = Clock()
    assert drain.wait_until_idle([{"name": "m"}], 60, clock, clock.sleep) is True
    assert clock.now == 3 * drain.POLL_SECONDS
    monkeypatch.setattr(drain.loads, "now", lambda _gate, timeout: {"running": 1, "queued": 0})
    assert drain.wait_until_idle([{"name": "m"}], 10, clock, clock.sleep) is False
    assert clock.now == 10


def answer(text: str) -> str:
    return json.dumps({"choices": [{"message": {"content": text}}]})


@pytest.mark.parametrize(
    ("status", "text", "word"),
    [
        (200, answer("It is 4."), "go"),
        (200, answer("It is 5."), "no-go"),
        (200, answer(""), "inconclusive"),
        (503, "busy", "inconclusive"),
        (200, "<html>", "inconclusive"),
        (200, json.dumps({"choices": [{"message": {"content": None, "reasoning_content": "so 4"}}]}), "go"),
    ],
)
def test_only_an_answer_can_be_wrong(status: int, text: str, word: str) -> None:
    assert quality.judged(status, text, r"\b4\b")[0] == word


def test_a_change_that_never_started_has_failed_too() -> None:
    change("a")
    rollouts.result("sglang-m", "a", "stable")
    rollouts.give_up("sglang-m", "b")
    assert rollouts.newest("sglang-m")["result"] == "stable"  # nothing was begun
    change("b", "a", "r2")
    rollouts.give_up("sglang-m", "a")  # the server did not start, so "a" is what is recorded
    assert (rollouts.newest("sglang-m")["release"], rollouts.newest("sglang-m")["result"]) == ("b", "failed")
    assert rollouts.failed("sglang-m") == ["r2"]
