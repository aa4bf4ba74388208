"""A person at a terminal: the live table, the question before the deploy, Ctrl-C."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from conftest import Shell, task
from waiting import at_most

from sglang_ops import cli

PROGRAM = """
import sys
from pathlib import Path
from sglang_ops import cli, content
root = Path(sys.argv.pop(1))
content.root = lambda: root
cli.main()
"""


@pytest.fixture
def terminal(shell: Shell) -> Iterator[Callable[..., Any]]:
    opened = []

    def start(*words: str) -> Any:
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "TERM": "xterm"}
        arguments = ["-c", PROGRAM, str(shell.content), *words]
        child = pexpect.spawn(
            sys.executable, arguments, env=environment, encoding="utf-8", timeout=60, dimensions=(24, 200)
        )
        opened.append(child)
        return child

    yield start
    for child in opened:
        child.close(force=True)


def ended(child: Any) -> tuple[int, str]:
    """Exit status, and what was printed until the end without colours and cursor movements."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", child.before)


def deployable(shell: Shell, plan: Callable[..., dict[str, Any]]) -> Path:
    shell.inventory("one", "two")
    canary = shell.home / "changed"
    touch = {"ansible.builtin.file": {"path": str(canary), "state": "touch", "mode": "0600"}}
    shell.playbook("deploy", task("sglang_plan", plan(action="start", healthy=False)), touch)
    return canary


def test_the_plan_is_shown_and_no_means_no(
    shell: Shell, plan: Callable[..., Any], terminal: Callable[..., Any]
) -> None:
    canary = deployable(shell, plan)
    child = terminal("deploy", "-i", "hosts.yml")
    child.expect("not deployed yet")
    child.expect("Go on")
    child.sendline("n")
    assert ended(child)[0] == 1
    assert not canary.exists()


def test_yes_goes_on(shell: Shell, plan: Callable[..., Any], terminal: Callable[..., Any]) -> None:
    canary = deployable(shell, plan)
    child = terminal("deploy", "-i", "hosts.yml")
    child.expect("Go on")
    child.sendline("y")
    code, printed = ended(child)
    assert code == 0, printed
    assert "Finished in" in printed
    assert canary.exists()


def test_with_yes_nothing_is_asked(shell: Shell, plan: Callable[..., Any], terminal: Callable[..., Any]) -> None:
    canary = deployable(shell, plan)
    code, printed = ended(terminal("deploy", "-i", "hosts.yml", "--yes"))
    assert code == 0
    assert "Go on" not in printed
    assert canary.exists()


def test_nothing_to_do_ends_without_a_question(
    shell: Shell, plan: Callable[..., Any], terminal: Callable[..., Any]
) -> None:
    shell.inventory("one")
    shell.playbook("deploy", task("sglang_plan", plan()))
    code, printed = ended(terminal("deploy", "-i", "hosts.yml"))
    assert code == 0
    assert "Nothing to do" in printed
    assert "Go on" not in printed


def test_the_live_table_renews_itself_and_leaves(
    shell: Shell, plan: Callable[..., Any], terminal: Callable[..., Any]
) -> None:
    shell.inventory("one")
    note = shell.home / "note.sh"
    note.write_text(
        'echo \'{"host": "one", "step": "image", "detail": "412 / 700 MB"}\' >> "$SGLANG_OPS_PROGRESS"; sleep 1\n'
    )
    shell.playbook(
        "deploy", task("sglang_plan", plan()), {"ansible.builtin.command": f"sh {note}", "changed_when": False}
    )
    child = terminal("deploy", "-i", "hosts.yml", "--yes")
    child.expect(r"one .*image .*412 / 700 MB")
    code, printed = ended(child)
    assert code == 0
    assert "412 / 700 MB" not in printed.rpartition("unchanged")[2]  # the table is gone, the result stays


def test_ctrl_c_says_where_things_stand(shell: Shell, terminal: Callable[..., Any]) -> None:
    shell.inventory("one")
    shell.playbook("deploy", task("sglang_gate", {}, seconds=4721))
    child = terminal("deploy", "-i", "hosts.yml", "--yes")
    child.expect("gate")
    time.sleep(0.5)
    began = time.monotonic()
    child.sendintr()
    code, printed = ended(child)
    assert time.monotonic() - began < at_most(2.0)
    assert code == 130
    assert "Interrupted." in printed
    assert "one: at gate, 0 changes made" in printed
    assert "Traceback" not in printed
    assert shell.json("history")["runs"][0]["exit_code"] == 130


def test_status_watch_renews_itself_until_ctrl_c(
    shell: Shell, terminal: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.inventory("one")
    service = {"name": "sglang-tiny", "healthy": True, "uptime_seconds": "{{ '%s' | ansible.builtin.strftime | int }}"}
    shell.playbook("status", task("sglang_status", {"sglang_ops": {"kind": "status", "services": [service]}}))
    child = terminal("status", "-i", "hosts.yml", "--watch")
    for _ in range(2):
        child.expect("sglang-tiny")
    child.sendintr()
    code, printed = ended(child)
    assert code == 130
    assert "Traceback" not in printed


def test_following_logs_prints_lines_as_they_come(shell: Shell, terminal: Callable[..., Any]) -> None:
    shell.inventory("one")
    line = '{"host": "one", "service": "sglang-tiny", "time": "2026-11-22T10:00:00+00:00", "text": "ready to roll"}'
    note = shell.home / "note.sh"
    note.write_text(f"echo '{line}' >> \"$SGLANG_OPS_PROGRESS\"; sleep 4722\n")
    shell.playbook("logs", {"ansible.builtin.command": f"sh {note}"})
    child = terminal("logs", "-i", "hosts.yml", "--follow")
    child.expect("one sglang-tiny .* ready to roll")
    child.sendintr()
    assert ended(child)[0] == 130
