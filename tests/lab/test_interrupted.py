"""Blank Debian 13 hosts become ready with podman and serve, however often the host or its link fails on the way.

What was begun is completed by the same command once more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Lab, ops
from snapshots import snapshot
from waiting import wait_until

pytestmark = pytest.mark.lab
PRETENDED = ("-e", "nvidia_driver_source=preinstalled", "-e", "container_engine_toolkit=false")
REPO = "lab/tiny-llama"
WEIGHTS = 221_096  # bytes
BLOBS = "/var/lib/sglang-ops/huggingface/hub/models--lab--tiny-llama/blobs"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("t-int", hosts=1, gpus=1, engine="podman", os="debian13", server="simulator")
    yield made
    ops("lab", "down", "--name", made.name)


def begin(lab: Lab, verb: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a command as a user does, without waiting for it."""
    command = [sys.executable, "-m", "sglang_ops", verb, "-i", str(lab.inventory), "--output", "json", *arguments]
    environment = os.environ | lab.env | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=150)
    assert output.startswith("{"), output + errors
    answer: dict[str, Any] = json.loads(output)
    return answer


def pull_the_plug(lab: Lab) -> None:
    done = ops("lab", "reboot", lab.hosts[0], "--name", lab.name, "--hard")
    assert done.returncode == 0, done.stderr


def slow_hub(lab: Lab, seconds: float) -> None:
    """The weights take so long; 0 takes that back."""
    faults = [{"path": "*.safetensors", "bytes_per_second": int(WEIGHTS / seconds)}] if seconds else []
    address = yaml.safe_load(lab.inventory.read_text())["all"]["vars"]["sglang_server_hf_endpoint"]
    body = json.dumps(faults).encode()
    urllib.request.urlopen(urllib.request.Request(f"{address}/-/faults/{REPO}", body, method="PUT"), timeout=10).close()


def arriving(lab: Lab) -> bool:
    return "incomplete" in lab.ssh(f"ls {BLOBS} 2>&1")


def test_a_dry_run_on_a_blank_host_goes_to_the_end_and_changes_nothing(lab: Lab) -> None:
    before = snapshot(lab, lab.hosts[0])
    announced = lab.json("provision", "--check", *PRETENDED)
    assert announced["ok"], announced
    assert [part["changed"] for part in announced["hosts"][0]["parts"]] == [False, True, True]
    assert "podman" in announced["hosts"][0]["parts"][1]["detail"]
    assert snapshot(lab, lab.hosts[0]) == before


def test_a_host_that_loses_power_while_packages_are_installed(lab: Lab) -> None:
    first = begin(lab, "provision", "--yes", *PRETENDED)
    wait_until(lambda: lab.ssh("pgrep -x dpkg").strip())
    pull_the_plug(lab)
    failed = end(first)
    assert not failed["ok"]
    assert failed["hosts"][0]["failure"], failed
    again = lab.json("provision", "--yes", *PRETENDED)
    assert again["ok"], again
    assert lab.ssh("podman --version").startswith("podman version 5")
    assert lab.ssh("dpkg --audit") == ""
    assert [host["changed"] for host in lab.json("provision", "--yes", *PRETENDED)["hosts"]] == [0]


def test_a_host_that_loses_power_while_the_model_is_downloaded(lab: Lab) -> None:
    slow_hub(lab, 20)
    first = begin(lab, "deploy", "--yes")
    wait_until(lambda: arriving(lab))
    pull_the_plug(lab)
    failed = end(first)
    assert failed["exit_code"] in (1, 6), failed
    slow_hub(lab, 0)
    announced = lab.json("plan")
    assert "model" in [step["step"] for step in announced["hosts"][0]["steps"]], "half a model is none"
    assert lab.deploy()["ok"]
    assert not arriving(lab)
    assert [host["changed"] for host in lab.deploy()["hosts"]] == [0]


def test_a_link_that_is_cut_for_a_while_costs_no_more_than_that(lab: Lab) -> None:
    lab.run("remove", "--yes")
    lab.ssh(f"rm -rf {Path(BLOBS).parent}")
    slow_hub(lab, 6)
    deploying = begin(lab, "deploy", "--yes")
    wait_until(lambda: arriving(lab))
    cut = "ip link set host0 down; sleep 10; ip link set host0 up; networkctl reconfigure host0"
    lab.ssh(f"systemd-run --quiet --collect sh -c '{cut}'")
    done = end(deploying)
    slow_hub(lab, 0)
    assert done["ok"], done
    assert not arriving(lab)
    assert [host["changed"] for host in lab.deploy()["hosts"]] == [0]
