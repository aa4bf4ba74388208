"""Sentences out of what ssh and sudo say, as OpenSSH 9 and sudo 1.9 word it."""

from __future__ import annotations

import pytest

from sglang_ops import causes

CHANGED = """Failed to connect to the host via ssh: @@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Host key verification failed."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CHANGED, "ssh-keygen -R gpu-1"),
        (
            "No ED25519 host key is known for gpu-1 and you have requested …\nHost key verification failed.",
            "ssh gpu-1",
        ),
        ("ops@gpu-1: Permission denied (publickey,password).", "permission denied, publickey,password"),
        ("ssh: connect to host 10.0.0.1 port 22: Connection timed out", "10.0.0.1 port 22 does not answer"),
        ("ssh: connect to host 10.0.0.1 port 22: No route to host", "no route to 10.0.0.1"),
        ("ssh: connect to host 10.0.0.1 port 22: Network is unreachable", "10.0.0.1 port 22: Network is unreachable"),
        ("kex_exchange_identification: Connection closed by remote host", "not an SSH server"),
        ("Shared connection to gpu-1 closed.", "connection was lost"),
        ("Missing sudo password", "-K"),
        ("Warning: Permanently added 'x' to the list.\nsomething new\n", "something new"),
    ],
)
def test_an_unreachable_host_gets_one_sentence(text: str, expected: str) -> None:
    cause = causes.unreachable({"msg": text}, "gpu-1")
    assert expected in cause
    assert "\n" not in cause


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"msg": "Task failed: Missing sudo password"}, "Add -K"),
        ({"msg": "Incorrect sudo password"}, "refused the password"),
        ({"msg": "", "module_stderr": "ops is not in the sudoers file."}, "ops may not use sudo"),
        ({"msg": "", "module_stderr": "/bin/sh: 1: sudo: not found"}, "sudo is not installed"),
        ({"msg": "", "module_stderr": "/bin/sh: 1: /usr/bin/python3: not found"}, "no Python at /usr/bin/python3"),
        # our own modules word their messages themselves: a log in there must not be taken for sudo's voice
        ({"msg": "the log says: sudo: not found", "sglang_ops": {"kind": "gate"}}, None),
        ({"msg": "no space left"}, None),
    ],
)
def test_a_host_that_does_not_let_us_work_says_why(result: dict[str, object], expected: str | None) -> None:
    cause = causes.no_access(result, "gpu-1")
    assert (expected in cause) if expected and cause else cause is expected


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"msg": "Task failed: something"}, "something"),
        (
            {"msg": "MODULE FAILURE: No start of json char found", "module_stderr": "a\nKilled\n"},
            "the module died on the host: Killed",
        ),
        ({"msg": "", "stderr": "E: no space left\n"}, "E: no space left"),
        ({}, "the task failed without a message"),
        ({"msg": "crashed", "sglang_ops": {"kind": "gate"}}, "crashed"),
    ],
)
def test_a_failed_task_gets_its_cause(result: dict[str, object], expected: str) -> None:
    assert causes.failure(result) == expected
