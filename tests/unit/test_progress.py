"""What a person sees while a run lasts."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sglang_ops import progress
from sglang_ops.errors import ExitCode
from sglang_ops.events import Failure, HostState, RunState

STEPS = ("plan", "image", "gate")


def console(**settings: Any) -> Console:
    return Console(file=io.StringIO(), width=100, **settings)


def shown(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def start(host: str, action: str) -> dict[str, Any]:
    data = {"host": host, "resolved_action": action, "res": {}}
    return {"event": "runner_on_start", "created": "2026-11-22T10:00:00+00:00", "event_data": data}


def test_only_complete_lines_are_read_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "progress.ndjson"
    tail = progress.Tail(path)
    assert list(tail.read()) == []
    path.write_text('{"host": "a"}\n{"host": "b"')
    assert [line["host"] for line in tail.read()] == ["a"]
    with path.open("a") as file:
        file.write('}\nnonsense\n{"host": "ü"}\n')
    assert [line["host"] for line in tail.read()] == ["b", "ü"]
    assert list(tail.read()) == []


def test_a_long_tail_is_cut_and_no_line_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "progress.ndjson"
    tail = progress.Tail(path, limit=50)
    path.write_text(json.dumps({"host": "a", "detail": "x" * 60}) + "\n")
    with path.open("a") as late:  # a writer that opened the file before it was cut
        assert [line["host"] for line in tail.read()] == ["a"]
        late.write('{"host": "b"}\n')
    path.write_text('{"host": "c"}\n')
    assert [line["host"] for line in tail.read()] == ["b", "c"]
    assert path.stat().st_size < 50


def test_plain_lines_come_once_per_step(tmp_path: Path) -> None:
    target = console()
    with progress.PlainReporter(target, RunState(), tmp_path / "none") as reporter:
        for action in ("sglang_plan", "sglang_image", "sglang_image"):
            reporter.apply(start("gpu-1", action))
        (tmp_path / "none").write_text('{"host": "gpu-1", "step": "image", "detail": "1 / 9 MB"}\n' * 5)
    lines = [line.split(" ", 1)[1] for line in shown(target).splitlines()]
    assert lines == ["gpu-1 plan", "gpu-1 image"]


def test_plain_lines_name_the_cause_of_a_failure(tmp_path: Path) -> None:
    target = console()
    state = RunState()
    with progress.PlainReporter(target, state, tmp_path / "none"):
        state.hosts["gpu-1"] = HostState("gpu-1", failure=Failure("gpu-1", "gate", "it crashed\nlater", ExitCode.ERROR))
    assert shown(target).endswith("gpu-1 failed it crashed\n")


def test_the_live_table_has_a_row_per_host_with_step_time_and_detail() -> None:
    state = RunState(hosts={"gpu-1": HostState("gpu-1", started=100.0)})
    state.note({"host": "gpu-1", "step": "plan"}, 100.0)
    state.note({"host": "gpu-1", "step": "image", "detail": "412 / 700 MB"}, 110.0)
    target = console(force_terminal=False)
    target.print(progress.host_table(state, STEPS, 165.0, target))
    assert "gpu-1  ●◐○ image  " in shown(target)
    assert "1:05" in shown(target)
    assert "412 / 700 MB" in shown(target)


def test_a_step_that_was_not_needed_is_not_shown_as_done() -> None:
    state = RunState(hosts={"gpu-1": HostState("gpu-1")})
    for step in ("plan", "gate"):
        state.note({"host": "gpu-1", "step": step}, 1.0)
    target = console()
    target.print(progress.host_table(state, STEPS, 2.0, target))
    assert "●○◐ gate" in shown(target)


def test_more_hosts_than_lines_leave_room_for_those_that_matter() -> None:
    hosts = {f"gpu-{number:02d}": HostState(f"gpu-{number:02d}", step="gate") for number in range(40)}
    hosts["gpu-39"].failure = Failure("gpu-39", "gate", "it crashed", ExitCode.ERROR)
    target = console(height=14)
    target.print(progress.host_table(RunState(hosts=hosts), STEPS, 1.0, target))
    assert "gpu-39" in shown(target)
    assert "and 30 more hosts" in shown(target)
    assert len(shown(target).splitlines()) <= 14


@pytest.mark.parametrize(
    ("terminal", "quiet", "kind"),
    [
        (True, False, progress.LiveReporter),
        (True, True, progress.LiveReporter),
        (False, False, progress.PlainReporter),
        (False, True, progress.Reporter),
    ],
)
def test_what_is_shown_depends_on_who_looks(terminal: bool, quiet: bool, kind: type, tmp_path: Path) -> None:
    target = console(force_terminal=terminal, _environ={"TERM": "xterm"})
    assert type(progress.reporter(target, RunState(), tmp_path, STEPS, quiet=quiet)) is kind


def test_colours_obey_no_color() -> None:
    state = RunState(hosts={"gpu-1": HostState("gpu-1", step="gate", steps=["gate"])})
    target = console(force_terminal=True, _environ={"NO_COLOR": "1", "TERM": "xterm-256color"})
    target.print(progress.host_table(state, STEPS, 1.0, target))
    assert "\x1b[3" not in shown(target)
    assert "\x1b[9" not in shown(target)


def test_no_thread_runs_while_ansible_is_being_forked(tmp_path: Path) -> None:
    before = threading.active_count()
    with progress.PlainReporter(console(), RunState(), tmp_path / "none") as reporter:
        assert threading.active_count() == before
        reporter.apply(start("gpu-1", "sglang_plan"))
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_log_lines_go_to_their_own_reader(tmp_path: Path) -> None:
    path, lines = tmp_path / "progress.ndjson", []
    state = RunState()
    with progress.Reporter(state, path, on_line=lines.append):
        path.write_text('{"host": "gpu-1", "service": "s", "time": "t", "text": "hello"}\n')
    assert [line["text"] for line in lines] == ["hello"]
    assert state.hosts == {}
