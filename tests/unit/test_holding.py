"""The locks of a run: kept by a process that ends with ansible-playbook, whatever ends that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_lock as lock

from sglang_ops import holding, keeper, processes

# What ansible-playbook is to the keeper: it loads the plugin, forks a worker for each task, and ends somehow.
RUN = """
import json, multiprocessing, os, sys, time
from pathlib import Path
from sglang_ops import content, holding

LIFE, DIRECTORY = holding.Life(), Path(sys.argv[1])
SOURCE = Path("plugins/module_utils/sglang_host_lock.py")
TEXT = (content.root() / SOURCE).read_text()
fork = multiprocessing.get_context("fork")

def worker(hosts, stay):
    os.setsid()
    for host in hosts:
        copy = DIRECTORY / "content" / host  # each host has a directory /run of its own
        (copy / SOURCE).parent.mkdir(parents=True, exist_ok=True)
        (copy / SOURCE).write_text(f"{TEXT}\\nDIRECTORY = {str(DIRECTORY / host)!r}\\n")
        content.root = lambda: copy
        asked = {"identity": {"who": "ana", "pid": os.getppid()}, "wait": 0}
        command, text = holding.holder(sys.executable, asked)
        request = {"host": host, "input": text, "argv": ["/bin/sh", "-c", command]}
        print(json.dumps(holding.ask(LIFE.keeper(DIRECTORY), request, lambda _: None)), flush=True)
    time.sleep(stay)

for hosts in (["one"], ["one", "two"]):
    task = fork.Process(target=worker, args=(hosts, 0))
    task.start()
    task.join()
last = fork.Process(target=worker, args=([], 60), daemon=True)
last.start()
print(last.pid, flush=True)
if sys.argv[2] == "end":
    last.kill()
    sys.exit(0)
time.sleep(60)
"""


class Run:
    def __init__(self, directory: Path, how: str) -> None:
        self.directory = directory
        script = directory / "run.py"
        script.write_text(textwrap.dedent(RUN))
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(directory), how],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(holding.__file__).parents[1])},
        )
        self.answers = [self.line() for _ in range(3)]
        self.worker = int(self.line())

    def line(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def held(self, host: str) -> bool:
        lock.DIRECTORY = str(self.directory / host)
        return bool(lock.locked_by("lock"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    monkeypatch.setattr(lock, "DIRECTORY", str(tmp_path))
    made: list[Run] = []

    def start(how: str = "stay") -> Run:
        made.append(Run(tmp_path, how))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        with suppress(ProcessLookupError):
            os.kill(one.worker, signal.SIGKILL)
        one.process.communicate()


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.02)


def test_a_lock_outlives_the_worker_that_asked_and_costs_once(run: Callable[..., Run]) -> None:
    made = run()
    first, again, second = made.answers
    assert first["held"]["who"] == "ana"
    assert again == {**first, "already": True}
    assert "already" not in second
    assert (made.held("one"), made.held("two")) == (True, True)


def test_a_killed_run_frees_its_locks_and_leaves_no_worker(run: Callable[..., Run]) -> None:
    made = run()
    made.process.kill()  # not yet collected: what started it may be slow
    until(lambda: not (made.held("one") or made.held("two")))
    until(lambda: not processes.born(made.worker) or zombie(made.worker))


def test_a_run_that_has_ended_has_freed_its_locks(run: Callable[..., Run]) -> None:
    made = run("end")
    assert made.process.wait(10) == 0
    assert (made.held("one"), made.held("two")) == (False, False)


def test_a_run_whose_lock_is_released_ends(run: Callable[..., Run]) -> None:
    made = run()
    assert made.held("two")
    lock.release()
    assert made.process.wait(10) in (1, -signal.SIGINT)


def test_a_holder_that_dies_is_replaced_while_the_run_lasts(run: Callable[..., Run]) -> None:
    """So it is with hosts that are rebooted under the lock."""
    made = run()
    assert made.held("two")
    (holder,) = lock.locked_by("lock")
    os.kill(holder, signal.SIGKILL)
    until(lambda: made.held("two") and lock.locked_by("lock") != [holder])
    assert made.process.poll() is None


def zombie(pid: int) -> bool:
    """A test's process 1 may not collect what it inherits."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_who_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ana")
    monkeypatch.setenv("SGLANG_OPS_PROGRESS", "/state/runs/20261123-010308-deploy-f410/progress.ndjson")
    found = holding.identity("playbooks/models_pull.yml")
    assert found["who"].startswith("ana@")
    assert keeper.same_run({**found, "holder": 1}, found)
    assert not keeper.same_run({**found, "pid": 1}, found)
    assert (found["verb"], found["run"]) == ("models pull", "20261123-010308-deploy-f410")
    monkeypatch.delenv("SGLANG_OPS_PROGRESS")
    assert holding.identity("deploy.yml")["run"] == ""


def test_who_is_at_work_in_words() -> None:
    held = {"who": "ana@laptop", "since": 1000.0, "verb": "deploy", "run": "20261123-010308-deploy-f410"}
    text = holding.described(held, now=1100.0)
    assert text.startswith("ana@laptop since ")
    assert text.endswith("(100 s), deploy, 20261123-010308-deploy-f410")
    assert holding.described({"who": "a process of this host", "holder": 3}) == "a process of this host"
    shown = [holding.age(0, seconds) for seconds in (5, 119, 120, 7199, 7200)]
    assert shown == ["5 s", "119 s", "2 min", "119 min", "2 h"]


@pytest.mark.parametrize("of_command", [True, False])
def test_a_run_whose_command_was_killed_alone_is_noticed(of_command: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_OPS_PROGRESS", raising=False)
    if of_command:
        monkeypatch.setenv("SGLANG_OPS_PROGRESS", "/dev/null")
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout
        owner = int(command.stdout.readline())
        kept = keeper.Keeper(owner, -1)
        assert not kept.orphaned()
        command.kill()
        command.wait()
        found = kept.orphaned()
        os.kill(owner, signal.SIGKILL)
    assert found is of_command
