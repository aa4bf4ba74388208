"""What `plan` prints, returns and keeps, from what the hosts report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from conftest import Shell, task

from sglang_ops.commands._plan_view import spans
from sglang_ops.planning.fit import as_mapping
from sglang_ops.planning.memory import MemoryPlan

OLD = "[Service]\nExecStart=/usr/bin/docker run \\\n    --env A=old\n"
NEW = OLD.replace("old", "new")
GIB = 2**30
MEMORY = as_mapping(
    MemoryPlan(
        gpus=2,
        gpu_total=80 * GIB,
        free_before=78 * GIB,
        weights=15 * GIB,
        weights_known=True,
        mem_fraction_static=0.8,
        mem_fraction_given=True,
        kv_cache=47 * GIB,
        states=0,
        kv_bytes_per_token=131072,
        tokens=385024,
        context_length=131072,
        max_running_requests=2048,
        request_table=GIB,
        reserve=0,
        graphs=0,
        fidelity="estimate",
    )
)


def service(host: str, *, action: str = "none", **changes: Any) -> dict[str, Any]:
    return {
        "name": "sglang-tiny", "release": "0123456789ab", "action": action, "why": "" if action == "none" else "why so",
        "image": "registry.example/sglang:v0.5.23", "image_digest": "sha256:" + "a" * 64, "gpus": [0, 1],
        "port": 8000, "endpoint": f"http://{host}.example:8000", "healthy": action == "none",
        "outage": "none" if action == "none" else "about 40 s", "unit": NEW,
        "deployed_unit": NEW if action == "none" else OLD, "memory": None,
    } | changes  # fmt: skip


def found(host: str, *, steps: list[dict[str, str]] | None = None, **changes: Any) -> dict[str, Any]:
    """The result of planning a host."""
    made = {"errors": [], "warnings": [], "steps": steps or [], "engine": "docker", "services": [], **changes}
    return {"sglang_ops": {"kind": "plan", "plan": made}}


def refused(host: str, message: str) -> dict[str, Any]:
    errors = [{"check": "gpus", "message": message}]
    return {"failed": True, "msg": message, "exit_hint": 7, **found(host, errors=errors)}


def fleet(shell: Shell, results: Mapping[str, Mapping[str, Any]]) -> None:
    shell.inventory(*results)
    tasks = (task("sglang_plan", result, when=f"inventory_hostname == '{host}'") for host, result in results.items())
    shell.playbook("plan", *tasks)


def restarting(host: str, **changes: Any) -> dict[str, Any]:
    steps = [
        {"step": "image", "subject": "registry.example/sglang:v0.5.23", "why": "sha256:aaaa is not on the host"},
        {"step": "restart", "subject": "sglang-tiny", "why": "why so"},
    ]
    return found(host, steps=steps, services=[service(host, action="restart", **changes)])


@pytest.fixture
def converged(shell: Shell) -> Shell:
    fleet(shell, {"one": found("one", services=[service("one")])})
    return shell


@pytest.fixture
def changing(shell: Shell) -> Shell:
    hosts = ("gpu-1", "gpu-2", "gpu-3")
    fleet(shell, {**{host: restarting(host) for host in hosts}, "gpu-4": found("gpu-4", services=[service("gpu-4")])})
    return shell


def test_json_is_as_agreed(changing: Shell) -> None:
    data = changing.json("plan", "-i", "hosts.yml")
    assert set(data) == {"ok", "exit_code", "pending", "hosts"}
    assert (data["ok"], data["exit_code"], data["pending"], changing.code) == (True, 0, True, 0)
    first, *_, last = data["hosts"]
    assert set(first) == {"host", "errors", "warnings", "steps", "services"}
    assert [(step["step"], step["subject"]) for step in first["steps"]] == [
        ("image", "registry.example/sglang:v0.5.23"), ("restart", "sglang-tiny"),
    ]  # fmt: skip
    (shown,) = first["services"]
    assert {key: shown[key] for key in ("name", "action", "why", "gpus", "port", "outage", "memory")} == {
        "name": "sglang-tiny", "action": "restart", "why": "why so", "gpus": [0, 1], "port": 8000,
        "outage": "about 40 s", "memory": None,
    }  # fmt: skip
    assert shown["unit_diff"].splitlines() == [
        "--- /etc/systemd/system/sglang-tiny.service (deployed)",
        "+++ /etc/systemd/system/sglang-tiny.service (planned)",
        "@@ -1,3 +1,3 @@",
        " [Service]",
        " ExecStart=/usr/bin/docker run \\",
        "-    --env A=old",
        "+    --env A=new",
    ]
    assert (last["steps"], last["services"][0]["unit_diff"]) == ([], "")
    assert last["services"][0]["why"]


def test_detailed_exitcode_tells_whether_there_is_something_to_do(changing: Shell) -> None:
    assert changing.run("plan", "-i", "hosts.yml", "--detailed-exitcode") == 2
    assert changing.run("plan", "-i", "hosts.yml", "--limit", "gpu-4", "--detailed-exitcode") == 0
    assert "nothing to do" in changing.out


def test_hosts_with_the_same_plan_are_shown_once(changing: Shell) -> None:
    assert changing.run("plan", "-i", "hosts.yml") == 0
    assert changing.out.count("+    --env A=new") == 1
    heads = [line for line in changing.out.splitlines() if line.startswith("gpu-")]
    assert heads == ["gpu-1 … gpu-3 (3 hosts, all the same)", "gpu-4"]
    assert "pull" in changing.out
    assert "outage: about 40 s" in changing.out
    assert "4 hosts: 3 to change, 1 unchanged." in changing.out
    assert "Next: sglang-ops deploy -i hosts.yml" in changing.err


def test_a_host_that_differs_is_shown_for_itself(shell: Shell) -> None:
    plans = {host: restarting(host) for host in ("gpu-1", "gpu-2", "gpu-3")}
    fleet(shell, plans | {"gpu-2": restarting("gpu-2", gpus=[2, 3])})
    assert shell.run("plan", "-i", "hosts.yml") == 0
    heads = [line for line in shell.out.splitlines() if line.startswith("gpu-")]
    assert heads == ["gpu-1, gpu-3 (2 hosts, all the same)", "gpu-2"]


def test_a_refusal_is_told_with_the_plans_of_the_others_and_seven(shell: Shell) -> None:
    fleet(shell, {"gpu-1": refused("gpu-1", "gpu-1 has 1 free of 4."), "gpu-2": restarting("gpu-2")})
    assert shell.run("plan", "-i", "hosts.yml", "--detailed-exitcode") == 7
    assert "refused (gpus): gpu-1 has 1 free of 4." in shell.out
    assert "restart" in shell.out
    assert "Next:" not in shell.err
    data = shell.json("plan", "-i", "hosts.yml")
    assert (data["ok"], data["exit_code"]) == (False, 7)
    assert data["hosts"][0]["errors"] == [{"check": "gpus", "message": "gpu-1 has 1 free of 4."}]


def test_a_host_out_of_reach_is_told_and_six(shell: Shell) -> None:
    fleet(shell, {"gpu-1": restarting("gpu-1"), "gpu-9": restarting("gpu-9")})
    away = shell.home / "away"
    away.write_text("gpu-9 ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1\n")
    assert shell.run("plan", "-i", "hosts.yml", "-i", "away") == 6
    assert "not reached:" in shell.out
    assert "2 hosts: 1 to change, 1 refused or not reached." in shell.out


def test_memory_is_a_table(shell: Shell) -> None:
    fleet(shell, {"gpu-1": restarting("gpu-1", memory=MEMORY)})
    assert shell.run("plan", "-i", "hosts.yml") == 0
    lines = [line.split() for line in shell.out.splitlines()]
    assert ["weights", "15.0"] in lines
    (cache,) = [line for line in shell.out.splitlines() if "KV cache" in line]
    assert "47.0" in cache
    assert "about 385,024 tokens: 2.9 requests of 131,072 tokens" in cache
    assert ["left", "14.9"] in [line[:2] for line in lines]
    assert shell.json("plan", "-i", "hosts.yml")["hosts"][0]["services"][0]["memory"] == MEMORY


def test_warnings_are_shown_with_their_hosts(shell: Shell) -> None:
    fleet(shell, {"gpu-1": found("gpu-1", warnings=["image x:latest moves."], services=[service("gpu-1")])})
    assert shell.run("plan", "-i", "hosts.yml") == 0
    assert "Warning: image x:latest moves." in shell.out


def test_the_run_is_kept_without_secrets(converged: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-of-the-test")
    assert converged.run("plan", "-i", "hosts.yml", "-e", "deployment.env_vars.MY_TOKEN=host:MY_TOKEN") == 0
    kept = json.loads((converged.last_run() / "result.json").read_text())
    assert kept["hosts"][0]["services"][0]["name"] == "sglang-tiny"
    assert not [path for path in converged.last_run().iterdir() if "s3cr3t-of-the-test" in path.read_text()]


def test_a_mistake_in_the_file_ends_before_any_host_is_asked(converged: Shell) -> None:
    (converged.home / "deployment.yaml").write_text("deployment: {served_model_name: m}\n")
    assert converged.run("plan", "-i", "hosts.yml") == 7
    assert "names no model" in converged.err


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["a"], "a"),
        (["n1", "n2"], "n1, n2"),
        (["n1", "n2", "n3", "x"], "n1 … n3, x"),
        (["n08", "n09", "n10", "n12"], "n08 … n10, n12"),
        (["n9", "n10", "n11"], "n9 … n11"),
        (["n1.dc", "n2.dc", "n3.dc", "n4.other"], "n1.dc … n3.dc, n4.other"),
        ([f"h{'x' * index}" for index in range(10)], "h, hx, hxx, hxxx, hxxxx, hxxxxx, hxxxxxx, hxxxxxxx, …"),
    ],
)
def test_names_of_many_hosts_take_little_room(names: list[str], shown: str) -> None:
    assert spans(names) == shown
