"""What `doctor` prints, returns and keeps, from what the hosts report."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import MODULE, Shell, task

OLD = {"check": "driver-version", "detail": "driver 570 is too old", "remedy": "Install 580.", "warning": False}
SLOW = {"check": "storage", "detail": "it rotates", "remedy": "Move it.", "warning": True}


@pytest.fixture
def hosts(shell: Shell) -> Shell:
    """Two hosts that are not fit, one that is, and one that is with a warning."""
    (shell.content / "plugins" / "modules" / "sglang_doctor.py").write_text(MODULE)
    bad, fit, slow = examined(OLD), examined(), examined(warnings=[SLOW])
    results = {"gpu-1": bad, "gpu-2": bad, "gpu-3": fit, "gpu-4": slow}
    shell.inventory(*results)
    tasks = (task("sglang_doctor", told, when=f"inventory_hostname == '{host}'") for host, told in results.items())
    shell.playbook("doctor", *tasks)
    return shell


def examined(*problems: dict[str, Any], warnings: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    own = {"kind": "doctor", "problems": list(problems), "warnings": warnings or []}
    refused = {"failed": True, "msg": "not fit", "exit_hint": 7} if problems else {}
    return {"sglang_ops": own, **refused}


def test_json_is_as_agreed(hosts: Shell) -> None:
    data = hosts.json("doctor", "-i", "hosts.yml")
    assert (data["ok"], data["exit_code"], hosts.code) == (False, 7, 7)
    assert [(host["host"], host["ok"]) for host in data["hosts"]] == [
        ("gpu-1", False), ("gpu-2", False), ("gpu-3", True), ("gpu-4", True),
    ]  # fmt: skip
    told = {"check": "driver-version", "detail": "driver 570 is too old", "remedy": "Install 580."}
    assert data["hosts"][0]["problems"] == [told]
    assert [warning["check"] for warning in data["hosts"][3]["warnings"]] == ["storage"]


def test_hosts_with_the_same_problems_are_shown_once_with_the_remedy(hosts: Shell) -> None:
    assert hosts.run("doctor", "-i", "hosts.yml") == 7
    assert hosts.out.splitlines() == [
        "gpu-1, gpu-2  not fit", "  driver-version  driver 570 is too old", "    fix: Install 580.",
        "gpu-3  fit",
        "gpu-4  fit", "  warning: storage  it rotates", "    fix: Move it.",
        "4 hosts: 2 fit, 2 not fit, 2 problems.",
    ]  # fmt: skip
    assert "Next: sglang-ops doctor -i hosts.yml" in hosts.err


def test_fit_hosts_end_with_zero(hosts: Shell) -> None:
    assert hosts.run("doctor", "-i", "hosts.yml", "--limit", "gpu-3,gpu-4") == 0
    assert "Next:" not in hosts.err
    kept = json.loads((hosts.last_run() / "result.json").read_text())
    assert (kept["ok"], [host["host"] for host in kept["hosts"]]) == (True, ["gpu-3", "gpu-4"])


def test_it_works_without_a_deployment_file_and_refuses_a_wrong_one(hosts: Shell) -> None:
    (hosts.home / "deployment.yaml").unlink()
    assert hosts.run("doctor", "-i", "hosts.yml", "--limit", "gpu-3") == 0
    (hosts.home / "deployment.yaml").write_text("deployment: {served_model_name: m}\n")
    assert hosts.run("doctor", "-i", "hosts.yml") == 7
    assert "names no model" in hosts.err


def test_a_host_out_of_reach_is_a_problem_and_six(hosts: Shell) -> None:
    away = hosts.home / "away"
    away.write_text("gpu-3 ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1\n")
    data = hosts.json("doctor", "-i", "hosts.yml", "-i", "away")
    (gone,) = [host for host in data["hosts"] if host["host"] == "gpu-3"]
    assert (data["exit_code"], [problem["check"] for problem in gone["problems"]]) == (6, ["ssh"])
    assert "127.0.0.1 port 1" in gone["problems"][0]["detail"]
    assert gone["problems"][0]["remedy"]


def test_nobody_asked_is_an_error(hosts: Shell) -> None:
    assert hosts.run("doctor", "-i", "hosts.yml", "--limit", "nobody") == 7
    assert "No host in the inventory matches 'nobody'" in hosts.err
