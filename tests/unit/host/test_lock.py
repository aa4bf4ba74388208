"""The lock of a host: one holder at a time, freed by the kernel, whatever becomes of the operator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_lock as lock

from sglang_ops import holding

SOURCE = Path(lock.__file__)


class Operator:
    """A run's side of the lock: the holder as a child, with its input."""

    def __init__(self, directory: Path, name: str, **asked: Any) -> None:
        source = f"{SOURCE.read_text()}\nDIRECTORY = '{directory}'\n"
        source = source.replace("LINK_SECONDS = 75", f"LINK_SECONDS = {asked.pop('link', 75)}")
        text = f"{source}{json.dumps({'identity': {'who': name, 'run': f'run-{name}'}, **asked})}\n"
        script = holding._HOLDER % len(source.encode())
        command = [sys.executable, "-c", script]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdin
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def heard(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def end(self) -> None:
        self.process.communicate(timeout=10)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Operator]]:
    monkeypatch.setattr(lock, "DIRECTORY", str(tmp_path))
    made: list[Operator] = []

    def make(name: str, **asked: Any) -> Operator:
        made.append(Operator(tmp_path, name, **asked))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def test_the_second_operator_learns_who_has_it_and_ends(operator: Callable[..., Operator]) -> None:
    ana = operator("ana")
    assert ana.heard()["held"]["who"] == "ana"
    bob = operator("bob").heard()["busy"]
    assert (bob["who"], bob["run"], bob["holder"]) == ("ana", "run-ana", ana.process.pid)
    assert bob["since"] == pytest.approx(time.time(), abs=20)
    assert lock.current()["who"] == "ana"


@pytest.mark.parametrize("ending", ["end", "kill"])
def test_the_lock_ends_with_its_holder(operator: Callable[..., Operator], ending: str) -> None:
    ana = operator("ana")
    ana.heard()
    getattr(ana, ending)()
    assert lock.current() == {}
    assert operator("bob").heard()["held"]["who"] == "bob"


def test_a_holder_that_hears_nothing_gives_up(operator: Callable[..., Operator]) -> None:
    ana = operator("ana", link=1)
    ana.heard()
    ana.process.wait(10)
    assert lock.current() == {}


def test_a_holder_that_hears_of_its_run_stays(operator: Callable[..., Operator]) -> None:
    ana = operator("ana", link=1)
    ana.heard()
    for _ in range(8):
        time.sleep(0.25)
        assert ana.process.stdin
        ana.process.stdin.write(b"\n")
        ana.process.stdin.flush()
    assert lock.current()["who"] == "ana"


def test_waiting_until_the_other_has_ended(operator: Callable[..., Operator]) -> None:
    ana = operator("ana")
    ana.heard()
    bob = operator("bob", wait=30)
    assert bob.heard()["waiting"]["who"] == "ana"
    ana.end()
    assert bob.heard()["held"]["who"] == "bob"


def test_waiting_ends(operator: Callable[..., Operator]) -> None:
    operator("ana").heard()
    bob = operator("bob", wait=0.5)
    assert bob.heard()["waiting"]["who"] == "ana"
    assert bob.heard()["busy"]["who"] == "ana"


def test_a_holder_waits_for_its_turn(operator: Callable[..., Operator]) -> None:
    ana = operator("ana", turn=True)
    assert ana.heard() == {"ready": True}
    assert lock.current() == {}
    bob = operator("bob")
    assert bob.heard()["held"]["who"] == "bob"
    assert ana.process.stdin
    for said in (b"\n", b"\n0.", b"3!"):
        ana.process.stdin.write(said)
        ana.process.stdin.flush()
    assert ana.heard()["waiting"]["who"] == "bob"
    assert ana.heard()["busy"]["who"] == "bob"


def test_of_many_at_once_exactly_one_proceeds(operator: Callable[..., Operator]) -> None:
    """Ten at the same moment: one holds, and all others are told its name."""
    crowd = [operator(f"number-{index}") for index in range(10)]
    heard: list[dict[str, Any]] = [{} for _ in crowd]
    threads = [threading.Thread(target=lambda i=i: heard.__setitem__(i, crowd[i].heard())) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [line["held"]["who"] for line in heard if "held" in line]
    assert [line["busy"]["who"] for line in heard if "busy" in line] == [winner] * 9


def test_the_generation_changes_with_each_holder(operator: Callable[..., Operator]) -> None:
    seen = lock.generation()
    assert lock.generation() == seen
    ana = operator("ana")
    assert ana.heard()["before"] == seen
    during = lock.generation()
    ana.end()
    assert lock.generation() not in {seen, during}, "what is seen during a run may be otherwise after it"
    assert operator("bob").heard()["before"] == lock.generation().rpartition(":")[0] + ":1"


def test_work_that_outlived_its_run_is_waited_for(operator: Callable[..., Operator]) -> None:
    with lock.working():
        ana = operator("ana", settle=30)
        assert ana.heard() == {"settling": [os.getpid()]}
    assert ana.heard()["held"]["who"] == "ana"


def test_work_that_does_not_end_is_not_overtaken(operator: Callable[..., Operator]) -> None:
    with lock.working(), lock.working():
        ana = operator("ana", settle=0.5)
        assert "settling" in ana.heard()
        assert ana.heard() == {"unfinished": [os.getpid(), os.getpid()]}
        ana.process.wait(10)
    assert lock.current() == {}


def test_own_modules_work_beside_the_holder_and_each_other(operator: Callable[..., Operator]) -> None:
    assert operator("ana").heard()["held"]
    with lock.working(), lock.working():
        assert len(lock.locked_by("work")) == 2
    assert lock.locked_by("work") == []


def test_a_dry_run_leaves_nothing_behind(operator: Callable[..., Operator], tmp_path: Path) -> None:
    with lock.working(unless=True):
        assert list(tmp_path.iterdir()) == []


def test_release_ends_the_holder(operator: Callable[..., Operator]) -> None:
    ana = operator("ana")
    ana.heard()
    lock.release()
    assert ana.process.wait(10) == 1
    assert ana.process.stderr
    assert ana.process.stderr.read() == b"released\n"
    lock.release()
    assert lock.current() == {}


def test_who_has_a_lock_is_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "DIRECTORY", str(tmp_path))
    (tmp_path / "lock").write_text('{"holder": 4711, "who": "ana"}')
    state = (tmp_path / "lock").stat()
    place = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    table = tmp_path / "locks"
    table.write_text(
        f"1: POSIX  ADVISORY  WRITE 1 {place} 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 {place} 0 EOF\n"
        f"2: -> FLOCK  ADVISORY  WRITE 12 {place} 0 EOF\n3: FLOCK  ADVISORY  WRITE 13 00:01:2 0 EOF\n"
    )
    assert lock.locked_by("lock", str(table)) == [4711]
    assert lock.locked_by("nothing", str(table)) == []
    assert lock.current() == {}, "what a holder wrote that is gone says nothing"
