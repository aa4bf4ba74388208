"""Progress shown while a module runs: courteous, and never in the way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ops import ansible_action
from sglang_ops.ansible_action import ProgressAction


class Connection:
    """Answers the question for progress as a host would."""

    transport = "ssh"

    def __init__(self, *details: str | Exception) -> None:
        self.details = list(details)
        self.commands: list[str] = []
        self.threads: set[int] = set()

    def __copy__(self) -> Connection:
        copied = Connection()
        copied.__dict__ = self.__dict__ | {"transport": f"copy of {self.transport}"}
        return copied

    def exec_command(self, command: str, in_data: bytes | None, sudoable: bool) -> tuple[int, bytes, bytes]:
        assert (in_data, sudoable) == (None, False), "progress is read without sudo"
        assert self.transport == "copy of ssh", "the module's own connection is busy"
        self.commands.append(command)
        self.threads.add(threading.get_ident())
        detail = self.details.pop(0) if self.details else None
        if isinstance(detail, Exception):
            raise detail
        if detail is None:
            return 1, b"", b"cat: no such file"
        return 0, json.dumps({"step": "image", "detail": detail}).encode(), b""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ansible_action, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(ansible_action, "EVERY_SECONDS", 0.01)


def action(connection: Connection, *, check: bool = False) -> tuple[ProgressAction, list[dict[str, Any]]]:
    """A plugin whose module lasts until all progress was asked for; and the arguments that the module got."""
    plugin = ProgressAction.__new__(ProgressAction)
    plugin._connection = connection
    plugin._task = SimpleNamespace(args={"engine": "docker"}, check_mode=check)
    calls: list[dict[str, Any]] = []

    def execute(name: str | None, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        calls.append(module_args)
        wait_for(lambda: not connection.details or check or connection.transport == "winrm")
        time.sleep(0.05)
        return {"changed": True, "name": name}

    plugin._execute_module = execute
    return plugin, calls


def test_changes_go_to_the_progress_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "progress"
    monkeypatch.setenv("SGLANG_OPS_PROGRESS", str(file))
    connection = Connection("1 / 9 MB", "1 / 9 MB", RuntimeError("lost for a moment"), "5 / 9 MB")
    plugin, calls = action(connection)
    result = plugin.execute_with_progress("sglang_image", task_vars={"inventory_hostname": "web-1"})
    assert result == {"changed": True, "name": "sglang_image"}
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"host": "web-1", "step": "image", "detail": "1 / 9 MB"},
        {"host": "web-1", "step": "image", "detail": "5 / 9 MB"},
    ]
    token = calls[0]["progress_token"]
    assert calls[0]["engine"] == "docker"
    assert set(connection.commands) == {f"cat /run/sglang-ops/progress-{token}.json"}
    assert threading.get_ident() not in connection.threads


def test_without_a_file_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_OPS_PROGRESS", raising=False)
    monkeypatch.setattr(ansible_action, "SHOWN_EVERY_SECONDS", 0)
    lines: list[str] = []
    monkeypatch.setattr(ansible_action, "Display", lambda: SimpleNamespace(display=lines.append))
    plugin, _ = action(Connection("5 / 9 MB"))
    plugin.execute_with_progress(task_vars={"inventory_hostname": "web-1"})
    assert lines == ["web-1: image: 5 / 9 MB"]


def test_check_mode_asks_for_nothing() -> None:
    connection = Connection("5 / 9 MB")
    plugin, calls = action(connection, check=True)
    assert plugin.execute_with_progress()["changed"]
    assert (connection.commands, calls) == ([], [{"engine": "docker"}])


def test_connections_that_cannot_be_shared_are_left_alone() -> None:
    connection = Connection("5 / 9 MB")
    connection.transport = "winrm"
    plugin, _ = action(connection)
    assert plugin.execute_with_progress(module_args={})["changed"]
    assert connection.commands == []


def test_a_module_that_fails_ends_the_questions() -> None:
    plugin, _ = action(Connection())
    failing = RuntimeError("module failed")

    def execute(*_: Any, **__: Any) -> None:
        raise failing

    plugin._execute_module = execute
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="module failed"):
        plugin.execute_with_progress()
    wait_for(lambda: threading.active_count() == before)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(0.01)
