"""Faults planted on real hosts, one after another: doctor finds each, with its remedy, and no other."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import yaml
from conftest import Lab
from snapshots import snapshot

pytestmark = pytest.mark.lab
ANSWERS = "/etc/sglang-ops-lab/gpus.json"
CDI = "/etc/cdi/nvidia.yaml"
# A lab host may not raise limits, and its engine comes with the first deploy.
ALWAYS = {"ulimits", "engine"}
FRESH_CONNECTION = ("-e", "ansible_control_path=none")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("t-doc", hosts=2, gpus=2, engine="docker", os="debian13", server="simulator")


def checks(result: dict[str, Any], host: str, kind: str = "problems") -> list[str]:
    (found,) = [item for item in result["hosts"] if item["host"] == host]
    return [item["check"] for item in found[kind]]


def problem(result: dict[str, Any], host: str) -> dict[str, str]:
    """The only problem of a host."""
    (found,) = [item for item in result["hosts"] if item["host"] == host]
    (only,) = found["problems"]
    return dict(only)


@contextmanager
def changed(lab: Lab, path: str, change: Callable[[Any], Any], host: str | None = None) -> Iterator[None]:
    """A JSON file of a host, the first one, changed for a while; `change` returns None for a file that is not there."""
    text = lab.ssh(f"cat {path}", host)
    made = change(json.loads(text))
    put(lab, path, None if made is None else json.dumps(made), host)
    try:
        yield
    finally:
        put(lab, path, text, host)


def put(lab: Lab, path: str, text: str | None, host: str | None) -> None:
    if text is None:
        lab.ssh(f"rm {path}", host)
    else:
        lab.ssh(f"echo {base64.b64encode(text.encode()).decode()} | base64 -d > {path}", host)


def with_gpu(**changes: Any) -> Callable[[Any], Any]:
    return lambda answers: answers | {"gpus": [answers["gpus"][0], answers["gpus"][1] | changes]}


def test_a_clean_host_is_fit_in_one_execution_and_unchanged(lab: Lab) -> None:
    before = [snapshot(lab, host) for host in lab.hosts]
    result = lab.json("doctor")
    assert (result["ok"], result["exit_code"]) == (True, 0), result
    assert [snapshot(lab, host) for host in lab.hosts] == before
    for host in lab.hosts:
        assert checks(result, host) == []
        assert set(checks(result, host, "warnings")) == ALWAYS
        executions = lab.ssh("journalctl -q --no-pager -o cat -t sudo | grep -c 'BECOME-SUCCES[S]'", host)
        assert executions.strip() == "1"


def test_without_a_deployment_the_hosts_are_judged(lab: Lab) -> None:
    own = lab.folder / "deployment.yaml"
    text = own.read_text()
    own.unlink()
    try:
        result = lab.json("doctor")
        with changed(lab, CDI, lambda _: None):
            found = lab.json("doctor")
    finally:
        own.write_text(text)
    assert (result["exit_code"], [host["ok"] for host in result["hosts"]]) == (0, [True, True])
    assert (found["exit_code"], problem(found, lab.hosts[0])["check"]) == (7, "cdi")


# Two hosts at a time, each with a fault of its own.
NO_DEVICES = (ANSWERS, lambda told: told | {"fault": "no-devices"}, "gpus", "No devices were found", "flavour")
NO_DRIVER = (ANSWERS, lambda told: told | {"fault": "no-driver"}, "driver", "couldn't communicate", "modprobe nvidia")
MISMATCH = (ANSWERS, lambda told: told | {"fault": "version-mismatch"}, "driver-mismatch", "mismatch", "reboot")
OLD_DRIVER = (ANSWERS, lambda told: told | {"driver_version": "570.86.15"}, "driver-version", "CUDA 13", "580")
NO_GPUS = (ANSWERS, lambda told: told | {"gpus": []}, "gpus", "No devices were found", "flavour")
LOST = (ANSWERS, with_gpu(lost=True), "gpu-lost", "GPU is lost", "reboot")
ECC = (ANSWERS, with_gpu(ecc_uncorrected=2), "ecc", "GPU 1 had uncorrectable", "--gpu-reset -i 1")
NO_CDI = (CDI, lambda _: None, "cdi", "no CDI device nvidia.com/gpu=0, 1", "nvidia-ctk cdi generate")
HALF_CDI = (CDI, lambda spec: spec | {"devices": spec["devices"][:1]}, "cdi", "nvidia.com/gpu=1 ", "nvidia-ctk cdi")
Fault = tuple[str, Callable[[Any], Any], str, str, str]


@pytest.mark.parametrize(
    ("first", "second"),
    [(NO_DEVICES, NO_DRIVER), (MISMATCH, OLD_DRIVER), (NO_GPUS, LOST), (ECC, NO_CDI), (HALF_CDI, None)],
    ids=["devices", "driver", "gpus", "ecc-cdi", "cdi"],
)
def test_faults_of_gpus(lab: Lab, first: Fault, second: Fault | None) -> None:
    with ExitStack() as planted:
        for host, fault in zip(lab.hosts, (first, second), strict=True):
            if fault:
                planted.enter_context(changed(lab, *fault[:2], host=host))
        result = lab.json("doctor")
    assert result["exit_code"] == 7
    for host, fault in zip(lab.hosts, (first, second), strict=True):
        assert set(checks(result, host, "warnings")) == ALWAYS
        if fault is None:
            assert checks(result, host) == []
            continue
        _, _, check, says, fix = fault
        found = problem(result, host)
        assert found["check"] == check
        assert says in found["detail"]
        assert fix in found["remedy"]


def test_a_port_taken_by_another_process(lab: Lab) -> None:
    lab.ssh("systemd-run --unit=taken python3 -m http.server 8000")
    result = lab.json("doctor")
    lab.ssh("systemctl stop taken")
    found = problem(result, lab.hosts[0])
    assert (found["check"], "taken by python3" in found["detail"]) == ("port", True)
    assert found["remedy"].startswith("Stop it")
    assert checks(result, lab.hosts[1]) == []


def test_a_small_disk_and_a_small_shared_memory(lab: Lab) -> None:
    lab.ssh("mkdir -p /small && mount -t tmpfs -o size=100k tmpfs /small; mount -o remount,size=64m /dev/shm")
    result = lab.json("doctor", "-o", "deployment.env_vars.HF_HOME=/small/hf")
    lab.ssh("umount /small; mount -o remount,size=2g /dev/shm")
    found = problem(result, lab.hosts[0])
    assert (found["check"], "GB free at /small/hf" in found["detail"]) == ("disk", True)
    assert found["remedy"].startswith("Free space")
    assert set(checks(result, lab.hosts[0], "warnings")) == {*ALWAYS, "shm"}
    assert checks(result, lab.hosts[1]) == []


@pytest.mark.parametrize(
    ("changes", "check", "says", "fix"),
    [
        ({"hf_model_handle": "lab/tiny-gated"}, "model", "is gated (401", "Set HF_TOKEN"),
        ({"hf_model_handle": "lab/tiny-gated", "env_vars": {"HF_TOKEN": "hf_wrong"}}, "model", "is gated", "HF_TOKEN"),
        ({"env_vars": {"HF_ENDPOINT": "http://127.0.0.1:9"}}, "model", "127.0.0.1:9 cannot be reached", "HF_ENDPOINT"),
        ({"image": "127.0.0.1:9/sglang:v0.5.23"}, "image", "127.0.0.1:9", ""),
        ({"tensor_parallel_size": 4}, "gpus", "needs 4 GPUs", "Lower tensor_parallel_size"),
        ({"env_vars": {"X_API_KEY": "host:SGLANG_OPS_TEST_NOT_SET"}}, "environment", "is not set where", "Export it"),
    ],
)
def test_what_the_deployment_lacks(lab: Lab, changes: dict[str, Any], check: str, says: str, fix: str) -> None:
    result = lab.json("doctor", "--config", str(lab.write("doctor", **changes)))
    assert result["exit_code"] == 7
    for host in lab.hosts:
        found = problem(result, host)
        assert found["check"] == check
        assert says in found["detail"]
        assert fix in found["remedy"]
        assert found["remedy"]


def test_everything_at_once_and_for_people(lab: Lab) -> None:
    lab.ssh("systemd-run --unit=taken python3 -m http.server 8000")
    config = lab.write("doctor", hf_model_handle="lab/no-such-model")
    with changed(lab, ANSWERS, lambda told: told | {"driver_version": "570.86.15"}), changed(lab, CDI, lambda _: None):
        result = lab.json("doctor", "--config", str(config))
        shown = lab.run("doctor", "--config", str(config))
    lab.ssh("systemctl stop taken")
    assert sorted(checks(result, lab.hosts[0])) == ["cdi", "driver-version", "model", "port"]
    assert checks(result, lab.hosts[1]) == ["model"]
    assert (shown.returncode, shown.stdout.count("    fix: ")) == (7, 5 + 2 * len(ALWAYS))
    assert f"{lab.hosts[0]}  not fit" in shown.stdout
    assert "2 hosts: 0 fit, 2 not fit, 5 problems." in shown.stdout


@pytest.fixture
def inventory(lab: Lab) -> Iterator[dict[str, Any]]:
    """The lab's inventory, to be changed by a test and put back."""
    text = lab.inventory.read_text()
    yield yaml.safe_load(text)
    lab.inventory.write_text(text)


def test_a_host_out_of_reach_is_a_problem_and_the_others_are_judged(lab: Lab, inventory: dict[str, Any]) -> None:
    inventory["all"]["hosts"]["gone"] = {"ansible_host": "127.0.0.1", "ansible_port": 9}
    lab.inventory.write_text(yaml.safe_dump(inventory))
    with changed(lab, CDI, lambda _: None):
        result = lab.json("doctor")
    found = problem(result, "gone")
    assert (result["exit_code"], found["check"]) == (6, "ssh")
    assert "127.0.0.1 port 9 (connection refused)" in found["detail"]
    assert "ssh -v" in found["remedy"]
    assert [checks(result, host) for host in lab.hosts] == [["cdi"], []]


def test_a_user_without_sudo(lab: Lab, inventory: dict[str, Any]) -> None:
    inventory["all"]["hosts"][lab.hosts[0]]["ansible_user"] = "nosudo"
    lab.inventory.write_text(yaml.safe_dump(inventory))
    result = lab.json("doctor", *FRESH_CONNECTION)
    found = problem(result, lab.hosts[0])
    assert (result["exit_code"], found["check"]) == (7, "sudo")
    assert "-K" in found["remedy"]
    assert checks(result, lab.hosts[1]) == []


def test_a_host_that_serves_is_fit_and_its_own_service_is_no_obstacle(share_lab: Callable[..., Lab]) -> None:
    lab = share_lab(hosts=2)
    assert lab.deploy()["ok"]
    result = lab.json("doctor")
    assert result["exit_code"] == 0, result
    for host in lab.hosts:
        assert checks(result, host) == []
        # Docker's bridge has the usual MTU, which may be more than that of the machine the lab is on.
        assert {"ulimits"} <= set(checks(result, host, "warnings")) <= {"ulimits", "mtu"}
