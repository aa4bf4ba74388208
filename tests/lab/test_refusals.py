"""Mistakes that only a host or a registry can show: one clear message, the right exit code, nothing touched."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Lab

pytestmark = pytest.mark.lab
# Without it SSH goes on using the connection that an earlier test opened with the right key.
FRESH_CONNECTION = ("-e", "ansible_control_path=none")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("t-bad", hosts=2, gpus=2, engine="docker", os="debian13", server="simulator")


@pytest.fixture
def inventory(lab: Lab) -> Iterator[dict[str, Any]]:
    """The lab's inventory, to be changed by a test and put back."""
    text = lab.inventory.read_text()
    yield yaml.safe_load(text)
    lab.inventory.write_text(text)


def cause(result: dict[str, Any], host: str) -> str:
    (found,) = [item for item in result["hosts"] if item["host"] == host]
    return str(found["failure"]["cause"])


def untouched(lab: Lab) -> bool:
    return "docker" not in lab.ssh("ls /etc /usr/bin /var/lib/sglang-ops 2>/dev/null", lab.hosts[0])


# Mistakes that are found together are told together: a service for each of them, and what is said of it.
NO_TAG = [({"image": "IMAGE:no-such-tag"}, "no-such-tag")]
NO_REGISTRY = [({"image": "127.0.0.1:9/x:y"}, "127.0.0.1:9")]
MODELS = [
    ({"hf_model_handle": "lab/no-such-model"}, "does not exist"),
    ({"hf_model_handle": "lab/tiny-gated"}, "Set HF_TOKEN in env_vars"),
    ({"hf_model_handle": None, "checkpoint_path": "/nowhere"}, "holds no model"),
]
HOST = [
    ({"tensor_parallel_size": 4}, "needs 4 GPUs (tensor 4 × data 1)"),
    ({"data_parallel_size": 2, "env_vars": {"CUDA_VISIBLE_DEVICES": "0"}}, "names 1 of 2"),
    ({"env_vars": {"CUDA_VISIBLE_DEVICES": "0,7"}}, "names GPU 7"),
    ({"env_vars": {"X": "runtime:NOT_THERE"}}, "runtime:NOT_THERE"),
    ({"port": 22}, "port 22"),
]
SECRET = [({"env_vars": {"X_API_KEY": "host:SGLANG_OPS_TEST_NOT_SET"}}, "SGLANG_OPS_TEST_NOT_SET is not set")]


@pytest.mark.parametrize(
    "mistakes",
    [NO_TAG, NO_REGISTRY, MODELS, HOST, SECRET],
    ids=["tag", "registry", "models", "host", "secret"],
)
def test_what_a_host_cannot_take_is_refused(lab: Lab, mistakes: list[tuple[dict[str, Any], str]]) -> None:
    body = lab.deployment["deployment"]
    repository = body["image"].rpartition(":")[0]
    services = {}
    for number, (changes, _) in enumerate(mistakes):
        wanted = body | {"served_model_name": f"bad-{number}", "port": 8100 + number} | changes
        wanted["image"] = wanted["image"].replace("IMAGE", repository)
        services[f"bad-{number}"] = {key: value for key, value in wanted.items() if value is not None}
    path = lab.folder / "bad.yaml"
    path.write_text(yaml.safe_dump({"deployments": services}))
    result = lab.deploy(path)
    assert result["exit_code"] == 7, result
    for _, says in mistakes:
        assert says in cause(result, lab.hosts[0])
    assert untouched(lab)


def test_one_host_that_refuses_stops_all_while_nothing_is_touched(lab: Lab) -> None:
    lab.ssh(
        "echo '{\"gpus\": []}' > /etc/sglang-ops-lab/gpus.json.new; cp /etc/sglang-ops-lab/gpus.json /root/kept; "
        "mv /etc/sglang-ops-lab/gpus.json.new /etc/sglang-ops-lab/gpus.json",
        lab.hosts[1],
    )
    result = lab.deploy()
    lab.ssh("cp /root/kept /etc/sglang-ops-lab/gpus.json", lab.hosts[1])
    assert result["exit_code"] == 7
    assert untouched(lab)


def test_full_disk_is_seen_before_anything_is_pulled(lab: Lab) -> None:
    for host in lab.hosts:
        lab.ssh("mkdir -p /small && mount -t tmpfs -o size=100k tmpfs /small", host)
    result = lab.deploy(lab.write("small", env_vars={"HF_HOME": "/small/hf"}))
    for host in lab.hosts:
        lab.ssh("umount /small", host)
    assert result["exit_code"] == 7
    assert "GB free at /small/hf" in cause(result, lab.hosts[0])
    assert untouched(lab)


def test_user_without_sudo_is_told_so(lab: Lab, inventory: dict[str, Any]) -> None:
    inventory["all"]["vars"]["ansible_user"] = "nosudo"
    lab.inventory.write_text(yaml.safe_dump(inventory))
    result = lab.deploy()
    assert not result["ok"]
    assert "sudo" in cause(result, lab.hosts[0])


def test_wrong_key_is_unreachable_with_the_reason(lab: Lab, inventory: dict[str, Any], tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    inventory["all"]["vars"]["ansible_ssh_private_key_file"] = str(key)
    lab.inventory.write_text(yaml.safe_dump(inventory))
    result = lab.deploy(None, *FRESH_CONNECTION)
    assert result["exit_code"] == 6
    assert "permission denied" in cause(result, lab.hosts[0])


def test_changed_host_key_is_not_accepted(lab: Lab) -> None:
    known = lab.folder / "ssh" / "known_hosts"
    text = known.read_text()
    lines = [line for line in text.splitlines() if line]
    first, second = lines[0].split(), lines[-1].split()
    known.write_text(
        "\n".join([*(line for line in lines if line.split()[0] != first[0]), " ".join([first[0], *second[1:]])]) + "\n"
    )
    try:
        result = lab.deploy(None, "--limit", lab.hosts[0], *FRESH_CONNECTION)
    finally:
        known.write_text(text)
    assert result["exit_code"] == 6
    assert "host key" in cause(result, lab.hosts[0])


@pytest.fixture(scope="module")
def serving(share_lab: Callable[..., Lab]) -> Lab:
    """Two hosts that are no longer blank."""
    return share_lab(hosts=2)


def test_unreachable_host_is_named_and_the_others_are_served(serving: Lab) -> None:
    lab, text = serving, serving.inventory.read_text()
    inventory = yaml.safe_load(text)
    inventory["all"]["hosts"]["gone"] = {"ansible_host": "127.0.0.1", "ansible_port": 9}
    lab.inventory.write_text(yaml.safe_dump(inventory))
    result = lab.deploy()
    lab.inventory.write_text(text)
    assert result["exit_code"] == 6
    assert "127.0.0.1 port 9" in cause(result, "gone")
    served = {item["host"]: item["services"][0]["healthy"] for item in result["hosts"] if item["services"]}
    assert served == dict.fromkeys(lab.hosts, True)


def test_taken_port_and_gpu_are_named_on_a_serving_host(serving: Lab) -> None:
    lab = serving
    lab.ssh("systemd-run --unit=taken python3 -m http.server 8300", lab.hosts[0])
    result = lab.deploy(lab.write("taken", served_model_name="other", port=8300))
    assert "taken by python3" in cause(result, lab.hosts[0])
    lab.ssh("systemctl stop taken", lab.hosts[0])
    result = lab.deploy(lab.write("clash", served_model_name="other", port=8000))
    assert "belongs to sglang-tiny-llama" in cause(result, lab.hosts[0])
    wanted = lab.write("clash", served_model_name="other", port=8301, env_vars={"CUDA_VISIBLE_DEVICES": "0"})
    result = lab.deploy(wanted)
    assert "is used by sglang-tiny-llama" in cause(result, lab.hosts[0])
    assert all(service["healthy"] for service in lab.json("status")["services"])


def test_gated_model_is_fetched_with_the_token(serving: Lab) -> None:
    lab = serving
    wanted = lab.write(
        "gated",
        served_model_name="gated",
        hf_model_handle="lab/tiny-gated",
        port=8400,
        env_vars={"HF_TOKEN": "host:LAB_TOKEN"},
    )
    lab.env["LAB_TOKEN"] = "hf_lab_token"
    result = lab.deploy(wanted)
    del lab.env["LAB_TOKEN"]
    assert result["ok"], result
    for host in lab.hosts:
        assert "hf_lab_token" not in lab.ssh("docker inspect sglang-gated; systemctl cat sglang-gated", host)
