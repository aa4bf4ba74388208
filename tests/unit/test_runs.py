"""The run folder: complete, private, free of secrets, and not for ever."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from sglang_ops import runs
from sglang_ops.runs import RunFolder

CANARY = 'canary-"47\\16'  # with characters that JSON escapes


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SGLANG_OPS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_secret_is_in_no_file_of_the_folder() -> None:
    with RunFolder.create("deploy", ["hosts"], hidden=[CANARY]) as folder:
        result = {"msg": f"token {CANARY}", "invocation": {"module_args": {"token": CANARY}}}
        folder.record({"event": "runner_on_ok", "stdout": f"ok {CANARY}", "event_data": {"host": "one", "res": result}})
        folder.progress.write_text(json.dumps({"host": "one", "detail": CANARY}) + "\n")
        folder.write_json("result.json", {"log": [CANARY]})
        folder.write_yaml("config.yaml", {"env_vars": {"TOKEN": CANARY}})
    for path in folder.path.iterdir():
        text = path.read_text()
        assert CANARY not in text, path.name
        assert json.dumps(CANARY)[1:-1] not in text, path.name
    assert runs.HIDDEN in (folder.path / "events.ndjson").read_text()


def test_a_secret_that_becomes_known_later_is_hidden_from_then_on() -> None:
    with RunFolder.create("deploy", ["hosts"]) as folder:
        folder.hide(["later-secret"])
        folder.write_json("result.json", {"log": ["later-secret"]})
        assert "later-secret" not in (folder.path / "result.json").read_text()


def test_only_the_owner_can_read_it() -> None:
    with RunFolder.create("deploy", ["hosts"]) as folder:
        folder.write_json("result.json", {})
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()} == {0o600}


def test_events_keep_results_and_drop_module_arguments() -> None:
    with RunFolder.create("deploy", ["hosts"]) as folder:
        result = {"changed": True, "invocation": {"module_args": {"path": "/x"}}}
        folder.record({"event": "runner_on_ok", "uuid": "u", "event_data": {"host": "one", "res": result, "pid": 1}})
    kept = json.loads((folder.path / "events.ndjson").read_text())
    assert kept == {"event": "runner_on_ok", "event_data": {"host": "one", "res": {"changed": True}}}


def test_the_log_can_be_read_while_the_run_lasts() -> None:
    with RunFolder.create("deploy", ["hosts"]) as folder:
        folder.record({"event": "verbose", "stdout": "PLAY [all]"})
        assert folder.log.read_text() == "PLAY [all]\n"


def test_a_watch_keeps_its_last_look_only() -> None:
    with RunFolder.create("status", ["hosts"]) as folder:
        folder.record({"event": "verbose", "stdout": "first"})
        folder.rewind()
        folder.record({"event": "verbose", "stdout": "second"})
    assert folder.log.read_text() == "second\n"


def test_history_is_newest_first_and_says_how_runs_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    with RunFolder.create("deploy", ["hosts"]) as first:
        first.write_json("result.json", {"exit_code": 3, "seconds": 12.5, "host_count": 2})
    first.path.rename(first.path.with_name("20200101-000000-deploy-0000"))
    RunFolder.create("stop", ["other"]).__exit__()  # killed: it never wrote a result
    newest, oldest = runs.history()
    assert (newest.verb, newest.exit_code) == ("stop", None)
    assert (oldest.verb, oldest.who, oldest.inventory) == ("deploy", "alice", ("hosts",))
    assert (oldest.exit_code, oldest.seconds, oldest.hosts) == (3, 12.5, 2)


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(state: Path) -> None:
    RunFolder.create("deploy", ["hosts"]).__exit__()
    broken = state / "runs" / "20200101-000000-deploy-0000"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    assert [record.verb for record in runs.history()] == ["deploy"]


def test_old_runs_go_and_looking_does_not_push_out_changes(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "KEPT_CHANGES", 3)
    monkeypatch.setattr(runs, "KEPT_READS", 2)
    for number in range(5):
        (state / "runs" / f"2020010{number + 1}-000000-deploy-0000").mkdir(parents=True)
        (state / "runs" / f"2020010{number + 1}-000000-status-0000").mkdir()
    RunFolder.create("deploy", ["hosts"]).__exit__()
    verbs = sorted(path.name.split("-")[2] for path in (state / "runs").iterdir())
    assert verbs == ["deploy", "deploy", "deploy", "status"]
    assert not (state / "runs" / "20200103-000000-deploy-0000").exists()
    assert (state / "runs" / "20200105-000000-deploy-0000").exists()


def test_without_a_setting_state_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_OPS_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    assert runs.state_dir() == Path("/srv/state/sglang-ops")


def test_what_happened_is_there_at_once_should_the_command_be_killed() -> None:
    with RunFolder.create("deploy", ["hosts"]) as folder:
        folder.record({"event": "runner_on_ok", "stdout": "ok: [one]", "event_data": {"host": "one"}})
        assert json.loads((folder.path / "events.ndjson").read_text())["event"] == "runner_on_ok"
        assert (folder.path / "ansible.log").read_text() == "ok: [one]\n"
