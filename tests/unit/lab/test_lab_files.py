"""The files that a lab writes: inventory, deployment, SSH configuration, a host's own files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from lab_plans import make_plan

from sglang_ops.lab import hosts, inventory, services, ssh
from sglang_ops.lab.settings import Folder
from sglang_ops.spec import model as spec_model


@pytest.fixture
def lab(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "lab")
    folder.root.mkdir()
    return folder


def test_inventory_is_what_deploy_needs(lab: Folder) -> None:
    plan = make_plan(hosts=2, engine="podman")
    everything = yaml.safe_load(inventory.inventory(lab, plan))["all"]
    assert everything["hosts"] == {
        "lab-1": {"ansible_host": "198.18.7.11"},
        "lab-2": {"ansible_host": "198.18.7.12"},
    }
    variables = everything["vars"]
    assert variables["ansible_user"] == "ops"
    assert variables["container_engine"] == "podman"
    assert variables["container_engine_insecure_registries"] == ["198.18.7.2:5000"]
    assert variables["sglang_server_hf_endpoint"] == "http://198.18.7.2:8080"
    assert variables["sglang_server_ulimits"] == []
    assert f"UserKnownHostsFile={lab.ssh / 'known_hosts'}" in variables["ansible_ssh_common_args"]
    assert "StrictHostKeyChecking=yes" in variables["ansible_ssh_common_args"]


@pytest.mark.parametrize(
    ("server", "image"), [("real", "sglang:v0.5.23-cpu"), ("simulator", "sglang-simulator:v0.5.23")]
)
def test_deployment_is_valid_and_names_the_labs_image(server: str, image: str) -> None:
    content = yaml.safe_load(inventory.deployment(make_plan(server=server)))
    deployment = spec_model.Deployment(**content["deployment"])
    assert deployment.image == f"198.18.7.2:5000/{image}"
    assert deployment.hf_model_handle == "lab/tiny-llama"


def test_ssh_knows_every_host_before_the_first_connection(lab: Folder) -> None:
    plan = make_plan(hosts=2)
    ssh.make_keys(lab, plan)
    known = ssh.known_hosts(lab).read_text().splitlines()
    assert [line.split()[0] for line in known] == ["lab-1,198.18.7.11", "lab-2,198.18.7.12"]
    assert known[0].split()[2] == ssh.host_key(lab, "lab-1").with_suffix(".pub").read_text().split()[1]
    assert ssh.private_key(lab).stat().st_mode & 0o077 == 0
    assert "HostName 198.18.7.12" in ssh.configuration(lab, plan)


def test_under_sudo_the_key_is_given_to_the_caller(lab: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Path, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((path, uid)))
    monkeypatch.setenv("SUDO_UID", "1234")
    ssh.make_keys(lab, make_plan(hosts=1))
    assert (ssh.private_key(lab), 1234) in given


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_hosts_own_files(lab: Folder, monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(os, "chown", lambda *_: None)
    plan = make_plan(hosts=2, gpus=gpus)
    ssh.make_keys(lab, plan)
    old_mask = os.umask(0o077)
    try:
        for host in plan.hosts:
            hosts.prepare(lab, plan, host, resolv_conf="nameserver 192.0.2.53\n")
    finally:
        os.umask(old_mask)
    first, second = (lab.host(host.name) / "upper" for host in plan.hosts)
    assert (first / "etc/hostname").read_text() == "lab-1\n"
    assert "Address=198.18.7.11/24\nGateway=198.18.7.1\n" in (first / "etc/systemd/network/10-lab.network").read_text()
    assert (first / "etc/resolv.conf").read_text() == "nameserver 192.0.2.53\n"
    assert (first / "etc/machine-id").read_text() != (second / "etc/machine-id").read_text()
    assert (first / "etc").stat().st_mode & 0o777 == 0o755  # whatever the umask: it becomes the host's /etc
    assert (first / "etc/ssh/ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert ssh.public_key(lab) == (first / "home/nosudo/.ssh/authorized_keys").read_text()
    assert (first / "usr/bin/nvidia-smi").exists() == (first / "etc/cdi/nvidia.yaml").exists() == bool(gpus)


def test_registry_serves_at_the_labs_address(lab: Folder) -> None:
    services.prepare(lab, make_plan())
    command = services.service_commands(lab, make_plan())["registry"]
    configuration = yaml.safe_load(Path(command[-1]).read_text())
    assert configuration["http"]["addr"] == "198.18.7.2:5000"
    assert Path(configuration["storage"]["filesystem"]["rootdirectory"]).is_dir()
