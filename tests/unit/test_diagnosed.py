"""The result of doctor, from the events of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sglang_ops.commands import _doctor_view
from sglang_ops.diagnosed import Diagnosed, Host, Problem
from sglang_ops.errors import ExitCode
from sglang_ops.events import Failure, HostState, RunState

EVENTS = Path(__file__).parent / "events"
OLD = {"check": "driver-version", "detail": "driver 570 is too old", "remedy": "Install 580.", "warning": False}
SLOW = {"check": "storage", "detail": "it rotates", "remedy": "Move it.", "warning": True}


def examined(name: str, *problems: dict[str, object], warnings: tuple[dict[str, object], ...] = ()) -> HostState:
    state = HostState(name, results={"doctor": [{"kind": "doctor", "problems": problems, "warnings": warnings}]})
    if problems:
        state.failure = Failure(name, "doctor", "driver-version: …", ExitCode.REFUSED)
    return state


def of(*hosts: HostState) -> Diagnosed:
    return Diagnosed.from_run(RunState(hosts={host.name: host for host in hosts}))


def unheard(cause: str, code: ExitCode = ExitCode.UNREACHABLE) -> HostState:
    return HostState("gone", step="doctor", failure=Failure("gone", "doctor", cause, code))


def test_json_is_as_agreed() -> None:
    found = of(examined("a", OLD, warnings=(SLOW,)), examined("b"))
    told = {"check": "driver-version", "detail": "driver 570 is too old", "remedy": "Install 580."}
    slow = {"check": "storage", "detail": "it rotates", "remedy": "Move it."}
    assert found.as_dict() == {
        "ok": False, "exit_code": 7,
        "hosts": [{"host": "a", "ok": False, "problems": [told], "warnings": [slow]},
                  {"host": "b", "ok": True, "problems": [], "warnings": []}],
    }  # fmt: skip


def test_warnings_alone_are_fit() -> None:
    found = of(examined("a", warnings=(SLOW,)))
    assert (found.ok, found.exit_code, found.hosts[0].ok) == (True, ExitCode.DONE, True)


@pytest.mark.parametrize(
    ("cause", "code", "check", "fix"),
    [
        ("nothing listens on 192.0.2.1 port 22 (connection refused)", ExitCode.UNREACHABLE, "ssh", "ssh -v"),
        ("the name x cannot be resolved. Check ansible_host", ExitCode.UNREACHABLE, "ssh", "Check ansible_host"),
        ("sudo asks for a password. Add -K (--ask-become-pass), or more", ExitCode.REFUSED, "sudo", "Add -K"),
        ("the user may not become root through sudo", ExitCode.REFUSED, "sudo", "visudo"),
        ("there is no Python at /usr/bin/python3. Install python3", ExitCode.REFUSED, "python", "Install python3"),
        ("the module died on the host: x", ExitCode.ERROR, "doctor", "-vvv"),
    ],
)
def test_a_host_that_cannot_be_examined_has_that_as_its_problem(
    cause: str, code: ExitCode, check: str, fix: str
) -> None:
    found = of(unheard(cause, code), examined("b", OLD))
    (problem,) = found.hosts[0].problems
    assert (problem.check, fix in problem.remedy) == (check, True)
    assert problem.detail == cause.partition(". ")[0]
    assert found.exit_code is (ExitCode.REFUSED if code is ExitCode.REFUSED else code)


@pytest.mark.parametrize(
    ("recorded", "check"),
    [("sudo_asks", "sudo"), ("sudo_none", "sudo"), ("one_unreachable", "ssh"), ("key_wrong", "ssh"),
     ("no_python", "python")],
)  # fmt: skip
def test_recorded_runs(recorded: str, check: str) -> None:
    state = RunState()
    for line in (EVENTS / f"{recorded}.ndjson").read_text().splitlines():
        state.apply(json.loads(line))
    bad = [host for host in Diagnosed.from_run(state).hosts if host.problems]
    assert [problem.check for host in bad for problem in host.problems] == [check] * len(bad) != []


def test_hosts_of_which_the_same_is_to_be_said_are_shown_once() -> None:
    same = (Problem("os", "Arch is not supported", "Install [Debian]."),)
    hosts = (Host("n1", same), Host("n2", same), Host("n3", ()), Host("n4", (), same))
    out = io.StringIO()
    _doctor_view.show(Console(file=out, width=200), Diagnosed(hosts, ExitCode.REFUSED))
    assert out.getvalue().splitlines() == [
        "n1, n2  not fit", "  os  Arch is not supported", "    fix: Install [Debian].",
        "n3  fit",
        "n4  fit", "  warning: os  Arch is not supported", "    fix: Install [Debian].",
        "4 hosts: 2 fit, 2 not fit, 2 problems.",
    ]  # fmt: skip
