"""Process trees: complete, and never the wrong process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sglang_ops import processes


def test_a_tree_reaches_across_sessions_and_is_killed_whole() -> None:
    with subprocess.Popen(["sh", "-c", "setsid sleep 4731 & sleep 4732 & wait"]) as leader:
        found: dict[int, str] = {}
        for _ in range(100):
            found = processes.tree([leader.pid])
            if len(found) == 3:
                break
            time.sleep(0.05)
        assert len(found) == 3
        processes.kill(found)
        leader.wait(5)
    deadline = time.monotonic() + 5
    while any(processes.born(pid) == birth for pid, birth in found.items()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid, birth in found.items() if processes.born(pid) == birth] == []


def test_an_orphan_is_found_by_its_session() -> None:
    program = (
        "import os, subprocess; os.setsid(); print(subprocess.Popen(['sleep', '4733'], stdout=2).pid, os.getpid())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    orphan, leader = map(int, done.stdout.split())
    found = processes.in_sessions([leader])
    assert list(found) == [orphan]
    processes.kill(found)


def test_a_reused_number_is_not_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        processes.kill({bystander.pid: "1"})
        time.sleep(0.1)
        assert bystander.poll() is None
        bystander.kill()


def test_a_process_that_is_gone_has_no_tree() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert processes.tree([gone.pid]) == {}
    assert os.getpid() in processes.tree([os.getpid()])


def test_children_of_one_that_goes_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert processes.children(gone.pid) == []
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([Path(f"/proc/{gone.pid}/task/{gone.pid}")]))
    assert processes.children(os.getpid()) == [], "a thread that has ended"
