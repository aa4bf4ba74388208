"""Progress that is told, and work that ends with its controller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible.module_utils import sglang_host_progress as progress

ROOT = Path(__file__).resolve().parents[3]

# A module as Ansible starts it: no terminal, standard output read by the controller.
MODULE = """
import sys
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.sglang_host_progress import Progress
try:
    with Progress("t", "model", directory=sys.argv[2]) as progress:
        progress.report("working")
        print("ready", flush=True)
        progress.run_child(["sh", "-c", "echo $$ > %s/child; sleep 60 & sleep 60" % sys.argv[2]])
finally:
    open(sys.argv[2] + "/cleaned", "w").close()
"""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(progress, "_WRITE_SECONDS", 0)
    return tmp_path / "progress-abc.json"


def test_reports_are_whole_and_gone_at_the_end(told: Path, tmp_path: Path) -> None:
    with progress.Progress("abc", "image", directory=str(tmp_path)) as reporter:
        reporter.report("412 / 700 MB")
        assert json.loads(told.read_text()) == {"step": "image", "detail": "412 / 700 MB"}
        assert told.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == []


def test_reports_come_no_more_often_than_they_can_be_read(tmp_path: Path) -> None:
    with progress.Progress("abc", "image", directory=str(tmp_path)) as reporter:
        reporter.report("first")
        reporter.report("second")
        assert json.loads((tmp_path / "progress-abc.json").read_text())["detail"] == "first"


def test_without_a_token_nothing_is_written(tmp_path: Path) -> None:
    with progress.Progress(None, "image", directory=str(tmp_path)) as reporter:
        reporter.report("detail")
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_no_path(tmp_path: Path) -> None:
    with progress.Progress("../../x", "image", directory=str(tmp_path)) as reporter:
        reporter.report("detail")
        assert [file.name for file in tmp_path.iterdir()] == ["progress-x.json"]


def test_lines_end_with_newline_or_carriage_return() -> None:
    lines: list[str] = []
    with progress.Progress(None) as reporter:
        done = reporter.run_child(["printf", r"one\rtwo\n\nthree\xc3\xa4"], lines.append)
    assert lines == ["one", "two", "threeä"]
    assert (done.rc, done.stdout) == (0, "one\ntwo\nthreeä")


def test_both_streams_status_and_standard_input() -> None:
    with progress.Progress(None) as reporter:
        done = reporter.run_child(["sh", "-c", "cat; echo err >&2; exit 4"], stdin="secret\n")
        assert (done.rc, done.stdout) == (4, "secret\nerr")
        assert reporter.run_child(["sglang-ops-no-such-program"]).rc == 127


def test_a_callback_that_raises_ends_the_program_and_all_it_started(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def tick() -> None:
        raise Enough

    script = f"sleep 60 & echo $! > {tmp_path}/grandchild; sleep 60"
    with progress.Progress(None) as reporter, pytest.raises(Enough):
        reporter.run_child(["sh", "-c", script], on_tick=tick)
    assert gone(int((tmp_path / "grandchild").read_text()))


def test_a_gentle_end_lets_the_program_finish_its_work(tmp_path: Path) -> None:
    def stop(_line: str) -> None:
        raise RuntimeError

    # Like apt-get, it notes the interrupt and completes what it is in the middle of.
    script = f"trap 'late=1' INT; echo ready; sleep 0.4; echo done > {tmp_path}/result"
    with progress.Progress(None) as reporter, pytest.raises(RuntimeError):
        reporter.run_child(["sh", "-c", script], stop, gentle=True)
    assert (tmp_path / "result").read_text() == "done\n"


@pytest.mark.parametrize("how", ["reader closes", "terminated"])
def test_work_ends_when_the_controller_is_gone(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", MODULE, str(ROOT / "plugins" / "module_utils"), str(tmp_path)]
    module = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert module.stdout is not None
    assert module.stdout.readline() == b"ready\n"
    child = tmp_path / "child"
    wait_for(lambda: child.exists() and child.read_text() != "")
    assert (tmp_path / "progress-t.json").exists()
    if how == "terminated":
        module.send_signal(signal.SIGTERM)
    module.stdout.close()  # what sshd does to its end when the connection goes
    assert module.wait(timeout=10) == 1
    wait_for(lambda: gone(int(child.read_text())))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["child", "cleaned"]


def gone(pid: int) -> bool:
    """Whether a process has ended, zombies included."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(0.02)
