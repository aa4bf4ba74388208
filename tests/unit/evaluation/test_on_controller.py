"""A run on this machine: what is made of what the hosts say, and what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sglang_ops.errors import PreflightError, UsageError
from sglang_ops.evaluation import on_controller
from tests.unit.evaluation.test_work import loaded, work


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SGLANG_OPS_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(on_controller, "python", lambda: "python3")
    return tmp_path / "state"


def job(port: int, tasks: list[dict[str, Any]], *, most: int, tokens: int) -> dict[str, Any]:
    items = [{**item, "generation": {"max_gen_toks": tokens}, "parallelism": most} for item in tasks]
    server = {"address": "127.0.0.1", "port": port}
    return {
        "deployment": "sglang-tiny",
        "tasks": items,
        "upstreams": [server],
        "concurrency": most,
        "offline": True,
        "model": "tiny",
    }


def test_the_servers_of_all_hosts_are_asked_as_much_as_they_allow(tmp_path: Path, port: int) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "x.jsonl").write_text("{}")
    (tmp_path / "there").mkdir()
    params = {"config": {"params": {"parallelism": 20}}}
    made = work(
        tmp_path,
        {"tasks": [
            {"name": "ifeval", "dataset_dir": "own"},
            {"name": "gsm8k", "dataset_dir": str(tmp_path / "there"), "nemo_evaluator_config": params},
        ]},
    )  # fmt: skip
    described = {
        "a": job(port, made.job["tasks"], most=8, tokens=100), "b": job(port, made.job["tasks"], most=4, tokens=50),
    }  # fmt: skip
    assert on_controller.check(made) == []
    base = on_controller.prepare(made, described, {"environment": {"HF_TOKEN": "canary"}})
    told = json.loads((base / "job.json").read_text())
    assert (told["concurrency"], [server["host"] for server in told["upstreams"]]) == (12, ["a", "b"])
    assert [item["parallelism"] for item in told["tasks"]] == [12, 12]
    assert [item["generation"] for item in told["tasks"]] == [{"max_gen_toks": 50}] * 2
    assert (base / "data/ifeval/x.jsonl").read_text() == "{}"
    assert (base / "data/gsm8k").resolve() == tmp_path / "there"
    assert "canary" not in (base / "job.json").read_text()
    assert (base / "secrets.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="There is a run r on this machine"):
        on_controller.check(made)


def test_a_server_out_of_reach_is_told_before_anything_is_written(tmp_path: Path, port: int, state: Path) -> None:
    made = work(tmp_path, {"tasks": [{"name": "ifeval"}]})
    described = {"a": job(port, made.job["tasks"], most=1, tokens=1), "b": job(1, made.job["tasks"], most=1, tokens=1)}
    with pytest.raises(PreflightError, match=r"b: 127\.0\.0\.1:1 does not answer"):
        on_controller.prepare(made, described, {})
    assert not state.exists()


def test_what_needs_a_container_or_a_directory_of_the_hosts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs on the hosts"):
        on_controller.check(work(tmp_path, {"tasks": [{"name": "simple_evals.mgsm"}]}))
    with pytest.raises(UsageError, match="/no/where is no directory of this machine"):
        on_controller.check(work(tmp_path, {"tasks": [{"name": "ifeval", "dataset_dir": "/no/where"}]}))
    mounts = {"execution": {"mounts": {"evaluation": {"/srv/nltk": "/nltk"}}}}
    made = work(tmp_path, {"tasks": [{"name": "ifeval"}]}, more=mounts)
    assert on_controller.check(made) == ["The mount /nltk has no effect: nothing runs in a container here."]
    assert on_controller.check(replace(made, mounts=())) == []


AGENT = """
import json, pathlib, signal, sys, time
base = pathlib.Path(sys.argv[1])
def tell(state):
    (base / "new").write_text(json.dumps({"state": state, "why": "", "problems": ["no data."], "done": 1, "total": 2,
        "rate": 0.0}))
    (base / "new").rename(base / "status.json")
def stop(*_):
    tell("stopped")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
tell("running")
time.sleep(60)
"""


@pytest.fixture
def begun(tmp_path: Path, port: int) -> Path:
    """A run whose program only waits."""
    made = work(tmp_path, {"tasks": [{"name": "ifeval"}]})
    base = on_controller.prepare(made, {"a": job(port, made.job["tasks"], most=1, tokens=1)}, {})
    (base / "agent.pyz").write_text(AGENT)
    return base


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_whose_command_was_killed_is_at_work_until_it_is_cancelled(begun: Path, state: Path) -> None:
    code = "from sglang_ops.evaluation import on_controller as here; here.python = lambda: 'python3'; here.live"
    words = [sys.executable, "-c", f"{code}('r', lambda told: None)"]
    root = str(Path(__file__).resolve().parents[3])
    env = os.environ | {"SGLANG_OPS_STATE": str(state), "PYTHONPATH": root}
    with subprocess.Popen(words, env=env) as command:
        until(lambda: on_controller.status("r")["state"] == "running" and bool(on_controller.at_work("r")))
        command.kill()
    assert on_controller.at_work("r"), "its program has a session of its own"
    for refused in (on_controller.again, on_controller.remove):
        with pytest.raises(UsageError, match=r"at work on this machine \(process \d+\)"):
            refused("r")
    (row,) = on_controller.rows(None)
    assert (row["host"], row["run"], row["state"], row["names"]) == ("controller", "r", "running", ["ifeval"])
    on_controller.cancel("r")
    assert (on_controller.at_work("r"), on_controller.status("r")["state"]) == (None, "cancelled")
    on_controller.wait("r", lambda told: None)
    on_controller.again("r")
    assert not (begun / "cancelled").exists()
    on_controller.remove("r")
    assert on_controller.rows("r") == []


def test_a_program_that_died_is_not_shown_as_running(begun: Path) -> None:
    (begun / "status.json").write_text(json.dumps({"state": "running", "why": "", "problems": []}))
    assert on_controller.status("r")["state"] == "stopped"


def test_a_beginning_that_failed_is_in_nobodys_way(
    tmp_path: Path, port: int, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = work(tmp_path, {"tasks": [{"name": "ifeval"}]})
    described = {"a": job(port, made.job["tasks"], most=1, tokens=1)}
    monkeypatch.setattr(on_controller.harness, "program", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        on_controller.prepare(made, described, {"environment": {"HF_TOKEN": "canary"}})
    assert (on_controller.rows(None), on_controller.known("r")) == ([], False)
    assert not [path for path in state.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]
    monkeypatch.setattr(on_controller.harness, "program", lambda: b"")
    assert on_controller.prepare(made, described, {}) == on_controller.directory("r")
    with pytest.raises(UsageError, match="There is a run r"):
        on_controller.prepare(made, described, {})


@pytest.mark.parametrize("written", ["local", {"type": "local"}])
def test_execution_local_may_be_a_word(tmp_path: Path, written: Any) -> None:
    assert loaded(tmp_path, {}, execution=written).execution.on_controller
    assert not loaded(tmp_path, {}, execution={"output_dir": "x"}).execution.on_controller
    assert not loaded(tmp_path, {}, defaults=[{"execution": "local"}]).execution.on_controller


def test_what_is_refused_is_gone_only_where_nothing_had_been_asked(state: Path, monkeypatch: Any) -> None:
    base = on_controller.directory("r")

    class Program:
        """Ends at once, refused."""

        returncode, pid = 7, 4321

        def __init__(self, *_: Any, **__: Any) -> None:
            status = {"state": "refused", "problems": ["t: no hub."]}
            (base / "status.json").write_text(json.dumps(status))

        def poll(self) -> int:
            return 7

        def __enter__(self) -> Program:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(on_controller.subprocess, "Popen", Program)
    base.mkdir(parents=True)
    (base / "job.json").write_text(json.dumps({"offline": True}))
    (base / "answers.sqlite").write_text("500 answers")
    on_controller.again("r")
    with pytest.raises(PreflightError, match="no hub") as refused:
        on_controller.live("r", lambda _: None)
    assert "evaluate resume r" in str(refused.value.fix)
    assert (base / "answers.sqlite").exists()
    (base / "again").unlink()
    with pytest.raises(PreflightError, match="no hub"):
        on_controller.live("r", lambda _: None)
    assert not base.exists()
