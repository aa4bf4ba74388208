"""The main job on real hosts, with both engines on both systems: blank, converged, drifted, removed."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Lab, ops
from snapshots import snapshot
from waiting import wait_until

pytestmark = pytest.mark.lab


def kind(engine: str, system: str, *marks: pytest.MarkDecorator) -> object:
    return pytest.param((engine, system), id=f"{engine}-{system}", marks=marks)


# `make test` walks one way through the matrix (and test_interrupted.py, with podman, another). On every kind it is the
# way to a first answer, and on two all of it; the rest is the same code on all of them.
FIRST, LAST = kind("docker", "debian13"), kind("podman", "debian12", pytest.mark.slow)
OTHERS = [kind("podman", "debian13", pytest.mark.slow), kind("docker", "debian12", pytest.mark.slow)]
FULL = pytest.mark.parametrize("lab", [FIRST, LAST], indirect=True, scope="module")
EVERY = pytest.mark.parametrize("lab", [FIRST, *OTHERS, LAST], indirect=True, scope="module")


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    engine, system = request.param
    made = make_lab(f"t-{engine[0]}{system[-2:]}", hosts=1, gpus=3, engine=engine, os=system, server="simulator")
    yield made
    ops("lab", "down", "--name", made.name)


def ask(endpoint: str) -> dict[str, object]:
    body = json.dumps({"model": "any", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}).encode()
    request = urllib.request.Request(f"{endpoint}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, object] = json.load(response)
    return answer


def engine_of(lab: Lab) -> str:
    return "docker" if "-d" in lab.name else "podman"


def environment(lab: Lab, service: str) -> str:
    """Environment of the container's first process, devices' variables included."""
    pid = lab.ssh(f"{engine_of(lab)} inspect --format '{{{{.State.Pid}}}}' {service}").strip()
    return lab.ssh(f"tr '\\000' '\\012' < /proc/{pid}/environ")


@EVERY
def test_dry_run_on_a_blank_host_changes_nothing_and_announces_everything(lab: Lab) -> None:
    (host,) = lab.hosts
    before = snapshot(lab, host)
    announced = lab.deploy(None, "--check")
    assert snapshot(lab, host) == before
    assert announced["exit_code"] == 0
    assert [step["step"] for step in announced["steps"]] == ["engine", "engine", "image", "model", "start"] or [
        step["step"] for step in announced["steps"]
    ] == ["engine", "engine", "engine", "image", "model", "start"]
    assert lab.run("deploy", "--check", "--detailed-exitcode").returncode == 2


@EVERY
def test_first_deploy_serves_within_twelve_executions(lab: Lab) -> None:
    result = lab.deploy(None, "-e", "sglang_server_soak=5")  # as it is by default
    assert result["ok"], json.dumps(result, indent=1)
    (host,) = result["hosts"]
    assert host["changed"] >= 1
    assert host["module_executions"] <= 12
    (service,) = host["services"]
    assert service["healthy"]
    assert service["gpus"] == [0]
    assert ask(service["endpoint"])["choices"]


@EVERY
def test_second_deploy_changes_nothing_with_one_execution(lab: Lab) -> None:
    pid = lab.ssh("systemctl show -p InvocationID 'sglang-*'")
    result = lab.deploy()
    (host,) = result["hosts"]
    assert (host["changed"], host["module_executions"]) == (0, 1)
    assert lab.ssh("systemctl show -p InvocationID 'sglang-*'") == pid


@FULL
def test_dry_run_on_a_converged_host_announces_nothing(lab: Lab) -> None:
    before = snapshot(lab, lab.hosts[0])
    announced = lab.deploy(None, "--check")
    assert announced["steps"] == []
    assert lab.run("deploy", "--check", "--detailed-exitcode").returncode == 0
    assert snapshot(lab, lab.hosts[0]) == before


@FULL
def test_plain_ansible_is_the_same_door(lab: Lab) -> None:
    playbook = [str(Path(sys.executable).with_name("ansible-playbook")), "playbooks/deploy.yml"]
    command = [*playbook, "-i", str(lab.inventory), "-e", f"@{lab.folder}/deployment.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout
    assert lab.deploy()["hosts"][0]["changed"] == 0


@FULL
def test_drift_is_announced_truthfully_and_mended(lab: Lab) -> None:
    unit = lab.ssh("ls /etc/systemd/system/sglang-*.service").strip()
    lab.ssh(f"echo '# by hand' >> {unit}")
    before = snapshot(lab, lab.hosts[0])
    announced = lab.deploy(None, "--check", "--diff")
    assert snapshot(lab, lab.hosts[0]) == before
    assert [(step["step"], "by hand" in step["why"]) for step in announced["steps"]] == [("restart", True)]
    mended = lab.deploy()
    assert [service["action"] for service in mended["hosts"][0]["services"]] == ["restart"]
    assert "by hand" not in lab.ssh(f"cat {unit}")
    assert lab.deploy()["hosts"][0]["changed"] == 0


@FULL
def test_second_deployment_shares_the_host_with_gpus_of_its_own(lab: Lab) -> None:
    other = lab.write("other", served_model_name="other", port=8100, tensor_parallel_size=2)
    result = lab.deploy(other)
    assert result["ok"], json.dumps(result, indent=1)
    (service,) = [item for item in result["hosts"][0]["services"] if item["name"] == "sglang-other"]
    assert service["gpus"] == [1, 2]
    inside = environment(lab, "sglang-other")
    assert "SGLANG_LAB_GPU_1=" in inside
    assert "SGLANG_LAB_GPU_2=" in inside
    assert "SGLANG_LAB_GPU_0=" not in inside
    assert "CUDA_VISIBLE_DEVICES" not in inside


@FULL
def test_named_gpus_are_passed_exactly(lab: Lab) -> None:
    other = lab.write("other", served_model_name="other", port=8100, env_vars={"CUDA_VISIBLE_DEVICES": "2"})
    result = lab.deploy(other)
    assert result["ok"], json.dumps(result, indent=1)
    inside = environment(lab, "sglang-other")
    assert ["SGLANG_LAB_GPU_2=" in inside, "SGLANG_LAB_GPU_1=" in inside] == [True, False]


@FULL
def test_status_verify_and_logs_tell_what_runs(lab: Lab) -> None:
    services = {service["name"]: service for service in lab.json("status")["services"]}
    assert len(services) == 2
    assert all(service["healthy"] and service["state"] == "active" for service in services.values())
    assert services["sglang-other"]["gpus"] == [2]
    assert services["sglang-other"]["gpu_memory"][0]["total_mib"] > 0
    assert services["sglang-other"]["running"] == 0
    checks = lab.json("verify")
    assert checks["ok"]
    assert {check["name"] for check in checks["checks"]} == {"unit", "port", "ready", "model", "answer", "capacity"}
    logs = lab.run("logs", "-n", "50")
    assert "fired up" in logs.stdout


@FULL
def test_stop_restart_remove(lab: Lab) -> None:
    assert lab.json("stop", "--service", "other")["ok"]
    states = {service["name"]: service["state"] for service in lab.json("status")["services"]}
    assert states["sglang-other"] == "inactive"
    assert not lab.json("verify")["ok"]
    assert lab.json("restart", "--service", "other")["ok"]
    assert lab.json("verify")["ok"]
    refused = lab.run("remove", "--service", "other")
    assert refused.returncode == 7
    assert lab.json("remove", "--service", "other", "--yes")["ok"]
    names = [service["name"] for service in lab.json("status")["services"]]
    assert "sglang-other" not in names
    assert len(names) == 1
    assert "sglang-other" not in lab.ssh("ls /etc/systemd/system /var/lib/sglang-ops/services")


@FULL
def test_crash_is_restarted_by_systemd(lab: Lab) -> None:
    name = lab.json("status")["services"][0]["name"]
    lab.ssh(f"{engine_of(lab)} kill {name}")

    def back() -> bool:
        row = lab.json("status")["services"][0]
        return bool(row["healthy"]) and row["restarts"] == 1

    wait_until(back, what="a crashed server back")


@EVERY
def test_reboot_brings_the_service_back_with_the_same_image_and_gpus(lab: Lab) -> None:
    before = lab.json("status")["services"][0]
    boot = lab.ssh("cat /proc/sys/kernel/random/boot_id")
    lab.ssh("systemctl reboot")

    def rebooted() -> bool:
        told = lab.ssh("cat /proc/sys/kernel/random/boot_id")
        return len(told) == len(boot) and told != boot  # else it is what ssh says

    wait_until(rebooted, what="a reboot")

    def healthy() -> dict[str, object] | None:
        return next((row for row in lab.json("status")["services"] if row["healthy"]), None)

    row = wait_until(healthy, what="a healthy server after the reboot") or {}
    same = ("release", "image_digest", "gpus", "endpoint", "healthy")
    assert {key: row.get(key) for key in same} == {key: before[key] for key in same}
    assert lab.deploy()["hosts"][0]["changed"] == 0


@FULL
def test_removing_the_last_service_with_purge_takes_the_image_too(lab: Lab) -> None:
    name = lab.json("status")["services"][0]["name"]
    assert lab.json("remove", "--service", name, "--purge", "--yes")["ok"]
    assert lab.json("status")["services"] == []
    assert "sglang" not in lab.ssh(f"{engine_of(lab)} images")
