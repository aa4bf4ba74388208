"""From a blank host to one that is ready, in one command; the dry run before it changes nothing.

Debian 12 with docker here, Debian 13 with podman in test_interrupted.py; the other two pairs are slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Lab, ops
from snapshots import snapshot

pytestmark = pytest.mark.lab
# The lab's GPUs are pretended: there is nothing on the PCI bus that a driver could be for, only nvidia-smi to ask.
PRETENDED = ("-e", "nvidia_driver_source=preinstalled", "-e", "container_engine_toolkit=false")
CACHE = ("-e", "hf_cache_path=/data/huggingface", "-e", "hf_cache_mode=0750")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("t-prov", hosts=2, gpus=1, engine="docker", os="debian12", server="simulator")


def parts(result: dict[str, Any]) -> list[tuple[str, bool]]:
    """What became of the parts, the same on all hosts."""
    told = [[(part["name"], part["changed"]) for part in host["parts"]] for host in result["hosts"]]
    assert all(host == told[0] for host in told), result
    return told[0]


def test_a_dry_run_on_blank_hosts_goes_to_the_end_and_changes_nothing(lab: Lab) -> None:
    before = snapshot(lab, lab.hosts[0])
    announced = lab.json("provision", "--check", *PRETENDED, *CACHE)
    assert announced["ok"], announced
    assert parts(announced) == [("driver", False), ("engine", True), ("cache", True)]
    assert "docker.io" in announced["hosts"][0]["parts"][1]["detail"]
    assert snapshot(lab, lab.hosts[0]) == before
    assert lab.json("provision", "--check", "--detailed-exitcode", *PRETENDED)["exit_code"] == 2


def test_provision_makes_them_ready_and_a_second_run_changes_nothing(lab: Lab) -> None:
    result = lab.json("provision", *PRETENDED, *CACHE)
    assert result["ok"], result
    assert parts(result) == [("driver", False), ("engine", True), ("cache", True)]
    assert max(host["module_executions"] for host in result["hosts"]) == 4  # the lock, and one for each part
    for host in lab.hosts:
        assert lab.ssh("docker info --format '{{.ServerVersion}}'", host).startswith("20.10")
        assert lab.ssh("stat -c %a /data/huggingface", host).strip() == "750"
    again = lab.json("provision", *PRETENDED, *CACHE)
    assert [host["changed"] for host in again["hosts"]] == [0, 0], again
    assert [host["reboot"] for host in again["hosts"]] == ["", ""]


def test_only_one_part(lab: Lab) -> None:
    lab.ssh("rm -rf /data/huggingface")
    result = lab.json("provision", "--only", "cache", "--limit", lab.hosts[0], *CACHE)
    assert parts(result) == [("cache", True)]
    assert result["hosts"][0]["module_executions"] == 2


def test_a_host_without_a_gpu_is_refused_and_says_so(lab: Lab) -> None:
    result = lab.json("provision", "--only", "driver", "--limit", lab.hosts[0])
    assert result["exit_code"] == 7, result
    assert "nvidia_driver_require_gpu" in result["hosts"][0]["failure"]["cause"]


def test_what_was_provisioned_is_what_deploy_needs(lab: Lab) -> None:
    result = lab.deploy(lab.write("after"), "--limit", lab.hosts[0])
    assert result["ok"], result
    assert "engine" not in [step["step"] for step in result["steps"]]


@pytest.mark.slow
@pytest.mark.parametrize(("system", "engine"), [("debian13", "docker"), ("debian12", "podman")])
def test_the_other_pairs(make_lab: Callable[..., Lab], system: str, engine: str) -> None:
    other = make_lab(f"t-prov-{system[-2:]}", hosts=1, gpus=1, engine=engine, os=system, server="simulator")
    before = snapshot(other, other.hosts[0])
    announced = other.json("provision", "--check", *PRETENDED, *CACHE)
    assert parts(announced) == [("driver", False), ("engine", True), ("cache", True)]
    assert snapshot(other, other.hosts[0]) == before
    assert parts(other.json("provision", *PRETENDED, *CACHE)) == parts(announced), "what was announced was done"
    assert [host["changed"] for host in other.json("provision", *PRETENDED, *CACHE)["hosts"]] == [0]
    assert other.deploy()["ok"]
    ops("lab", "down", "--name", other.name)
