"""What the bench reads from the output of each contender."""

from __future__ import annotations

import json

import pytest

from bench.contenders import Work, check, read_ours, read_plain_role, read_pyinfra
from bench.process import BenchError, Run


def test_ours_is_read_from_its_json() -> None:
    hosts = [
        {"host": "a", "module_executions": 1, "changed": 0, "seconds": 1.0},
        {"host": "b", "module_executions": 9, "changed": 4, "seconds": 1.0},
    ]
    read = read_ours(Run(1.0, 1.0, stdout=json.dumps({"ok": True, "hosts": hosts})))
    assert read == {"a": Work(1, 0), "b": Work(9, 4)}


def test_plain_role_counts_what_runs_on_the_host() -> None:
    events = [
        {"host": "a", "action": "ansible.builtin.setup", "changed": False},
        {"host": "a", "action": "ansible.builtin.assert", "changed": False},  # on the controller
        {"host": "a", "action": "ansible.builtin.template", "changed": True},
        {"host": "b", "action": "ansible.builtin.setup", "changed": False},
    ]
    log = "".join(json.dumps(event) + "\n" for event in events)
    assert read_plain_role(Run(1.0, 1.0), log) == {"a": Work(2, 1), "b": Work(1, 0)}


def test_pyinfra_counts_commands_and_forgives_questions() -> None:
    operations = [
        {"name": "Install docker", "success": ["a"], "no_change": ["b"]},
        {"name": "Ask the server: ready", "success": ["a", "b"], "no_change": []},
    ]
    log = "\n".join(
        [
            "--> Connecting to hosts...",
            "[a]  >>> sh -c 'cat <<X",
            "  >>> inside a here document",
            "X'",
            "[b]  >>> sh -c true",
            "[a]  >>> sh -c true",
        ]
    )
    read = read_pyinfra(Run(1.0, 1.0, json.dumps({"plan": [], "results": {"operations": operations}}), log))
    assert read == {"a": Work(2, 1), "b": Work(1, 0)}


@pytest.mark.parametrize(
    ("work", "first", "message"),
    [
        ({"a": Work(5, 0)}, True, "changed nothing on a"),
        ({"a": Work(5, 1)}, False, "changed something on a"),
        ({"b": Work(5, 0)}, False, "on a:"),
    ],
)
def test_a_run_that_is_not_what_it_should_be_is_no_sample(work: dict[str, Work], first: bool, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        check("x", work, ["a"], first=first)


def test_a_run_that_is_what_it_should_be_passes() -> None:
    check("x", {"a": Work(5, 3)}, ["a"], first=True)
    check("x", {"a": Work(1, 0)}, ["a"], first=False)
