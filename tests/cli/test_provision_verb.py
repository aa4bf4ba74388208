"""What `provision` and `doctor --fix` print, pass on, return and keep, from what the hosts report."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import MODULE, Shell, task

DRIVER = {"kind": "driver", "detail": "580.126.09, open kernel modules", "version": "580.126.09", "reboot": False}
ENGINE = {"kind": "engine", "detail": "docker 26.1.5 ready"}
CACHE = {"kind": "cache", "detail": "ready", "warnings": ["the disk is nearly full"]}


def parts(*, changed: bool, driver: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    told = {"nvidia_driver": driver or DRIVER, "container_engine": ENGINE, "hf_cache": CACHE}
    return [task(module, {"changed": changed, "sglang_ops": own}) for module, own in told.items()]


def echo(variable: str, default: str = "unset") -> dict[str, Any]:
    """A task that tells what the command line passed on."""
    detail = f"{{{{ {variable} | default('{default}') | string }}}}"
    return task("nvidia_driver", {"sglang_ops": {**DRIVER, "detail": detail}})


def test_json_is_as_agreed(shell: Shell) -> None:
    shell.inventory("gpu-1")
    shell.playbook("provision", *parts(changed=True))
    data = shell.json("provision", "-i", "hosts.yml")
    assert (data["ok"], data["exit_code"], data["check"], shell.code) == (True, 0, False, 0)
    host = data["hosts"][0]
    assert (host["host"], host["changed"], host["module_executions"], host["reboot"]) == ("gpu-1", 3, 3, "")
    assert [(part["name"], part["detail"], part["changed"]) for part in host["parts"]] == [
        ("driver", "580.126.09, open kernel modules", True),
        ("engine", "docker 26.1.5 ready", True),
        ("cache", "ready", True),
    ]


def test_hosts_that_went_the_same_way_are_shown_once(shell: Shell) -> None:
    shell.inventory("gpu-1", "gpu-2")
    shell.playbook("provision", *parts(changed=False))
    assert shell.run("provision", "-i", "hosts.yml", "--yes") == 0
    shown = shell.out.splitlines()
    assert [line.split()[0:3] for line in shown[1:4]] == [
        ["gpu-1,", "gpu-2", part] for part in ("driver", "engine", "cache")
    ]
    assert shown[4] == "Warning: gpu-1, gpu-2: the disk is nearly full"
    assert "Next: sglang-ops doctor -i hosts.yml" in shell.err


def test_a_host_that_waits_for_a_reboot_says_why(shell: Shell) -> None:
    shell.inventory("gpu-1")
    waiting = {**DRIVER, "reboot": True, "reasons": ["nouveau is loaded"]}
    shell.playbook("provision", *parts(changed=True, driver=waiting))
    assert shell.run("provision", "-i", "hosts.yml", "--yes", "--no-reboot") == 0
    assert any(
        line.split() == ["gpu-1", "reboot", "needed", "nouveau", "is", "loaded"] for line in shell.out.splitlines()
    )
    assert json.loads((shell.last_run() / "result.json").read_text())["hosts"][0]["reboot"] == "nouveau is loaded"


@pytest.mark.parametrize(
    ("words", "variable", "passed"),
    [
        ([], "sglang_ops_parts", "unset"),
        (["--only", "engine", "--only", "cache"], "sglang_ops_parts", "['engine', 'cache']"),
        ([], "sglang_ops_canary", "1"),
        (["--canary", "0"], "sglang_ops_canary", "0"),
        ([], "sglang_ops_batch", "25%"),
        (["--batch", "4"], "sglang_ops_batch", "4"),
        (["--batch", "50%"], "sglang_ops_batch", "50%"),
        ([], "nvidia_driver_reboot", "unset"),
        (["--no-reboot"], "nvidia_driver_reboot", "False"),
    ],
)
def test_flags_reach_the_playbook(shell: Shell, words: list[str], variable: str, passed: str) -> None:
    shell.inventory("gpu-1")
    shell.playbook("provision", echo(variable))
    data = shell.json("provision", "-i", "hosts.yml", *words)
    assert data["hosts"][0]["parts"][0]["detail"] == passed


@pytest.mark.parametrize("batch", ["0", "-1", "half", "0%", "101%", ""])
def test_a_batch_that_is_none_is_refused(shell: Shell, batch: str) -> None:
    shell.inventory("gpu-1")
    assert shell.run("provision", "-i", "hosts.yml", f"--batch={batch}") == 7
    assert f"--batch: {batch} is no number of hosts." in shell.err


def test_check_with_detailed_exitcode_ends_with_two_where_something_is_to_be_done(shell: Shell) -> None:
    shell.inventory("gpu-1")
    words = ("provision", "-i", "hosts.yml", "--check", "--detailed-exitcode")
    shell.playbook("provision", *parts(changed=True))
    assert shell.run(*words) == 2
    assert "Next: sglang-ops provision -i hosts.yml" in shell.err
    shell.playbook("provision", *parts(changed=False))
    assert shell.run(*words) == 0
    assert "Nothing to do: 1 host is ready." in shell.out


def test_a_later_play_without_hosts_is_no_error(shell: Shell) -> None:
    shell.inventory("gpu-1")
    shell.playbook("provision", *parts(changed=False))
    path = shell.content / "playbooks" / "provision.yml"
    plays = [*json.loads(path.read_text()), {"hosts": "nobody", "gather_facts": False, "tasks": []}]
    path.write_text(json.dumps(plays))
    assert shell.json("provision", "-i", "hosts.yml")["ok"]


@pytest.fixture
def unfit(shell: Shell) -> Shell:
    """A host without a container engine, which `provision` mends: the doctor looks for the file that it leaves."""
    (shell.content / "plugins" / "modules" / "sglang_doctor.py").write_text(MODULE)
    shell.inventory("gpu-1")
    mark = shell.home / "mended"
    problem = {"check": "engine", "detail": "docker is missing", "remedy": "Install it."}
    bad = {"failed": True, "msg": "not fit", "exit_hint": 7, "sglang_ops": {"kind": "doctor", "problems": [problem]}}
    good = {"sglang_ops": {"kind": "doctor", "problems": []}}
    there = f"'{mark}' is exists"
    shell.playbook("doctor", task("sglang_doctor", bad, when=f"not ({there})"), task("sglang_doctor", good, when=there))
    touch = {"ansible.builtin.file": {"path": str(mark), "state": "touch", "mode": "0600"}}
    shell.playbook("provision", task("container_engine", {"changed": True, "sglang_ops": ENGINE}), touch)
    return shell


def test_fix_names_the_playbook_runs_it_and_looks_again(unfit: Shell) -> None:
    assert unfit.run("doctor", "-i", "hosts.yml", "--fix", "--yes") == 0
    assert "playbooks/provision.yml mends:" in unfit.err
    assert "engine: sglang-ops provision -i hosts.yml --limit gpu-1 --only engine" in unfit.err
    assert unfit.out.splitlines()[-1] == "1 host: 1 fit, 0 not fit."


def test_fix_keeps_stdout_for_the_result(unfit: Shell) -> None:
    assert unfit.json("doctor", "-i", "hosts.yml", "--fix", "--yes")["ok"] is True


def test_fix_does_nothing_without_a_yes(unfit: Shell) -> None:
    assert unfit.run("doctor", "-i", "hosts.yml", "--fix") == 7
    assert "there is no terminal" in unfit.err
    assert not (unfit.home / "mended").exists()
