"""What may happen in the middle: the controller dies, the operator interrupts, a neighbour is changed by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Lab
from waiting import at_most, wait_until

pytestmark = pytest.mark.lab
STEPS = ("plan", "engine", "image", "model", "start", "gate")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("t-surv", hosts=1, gpus=2, engine="docker", os="debian13", server="simulator")


def start(lab: Lab, config: Path) -> subprocess.Popen[str]:
    """A deploy in a session of its own, so that it can be killed whole or interrupted like a terminal does."""
    command = [sys.executable, "-m", "sglang_ops", "deploy", "-i", str(lab.inventory), "-c", str(config), "--yes"]
    environment = os.environ | lab.env | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def wait_for_step(process: subprocess.Popen[str], step: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[2:3] == [step]:
            return
    pytest.fail(f"the deploy ended before step {step}")


def busy(lab: Lab) -> str:
    """Processes on the host that belong to a run: modules, package manager, pulls, fetches."""
    pattern = "AnsiballZ|ansible|apt-get|docker pull|sglang-ops-fetch|hf download"
    return lab.ssh(f"ps -eo args --no-headers | grep -E '{pattern}' | grep -vE 'grep|sh -c'")


def test_controller_killed_at_every_step_is_continued_by_the_next_run(lab: Lab) -> None:
    slow = {"SGLANG_SIMULATOR_FAULT": "slow-start:5"}  # or a killed run has nothing left to do
    config = lab.write("survive", env_vars=slow)
    for step in STEPS:
        process = start(lab, config)
        wait_for_step(process, step)
        time.sleep(0.5)
        for pid in [process.pid, *children(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    result = lab.deploy(config)
    assert result["ok"], result
    assert lab.deploy(config)["hosts"][0]["changed"] == 0
    assert lab.json("remove", "--service", "tiny-llama", "--yes")["ok"]


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    direct = [int(word) for word in found.stdout.split()]
    return direct + [deeper for child in direct for deeper in children(child)]


def test_interrupt_ends_within_a_second_and_leaves_nothing_running(lab: Lab) -> None:
    config = lab.write("slow", env_vars={"SGLANG_SIMULATOR_FAULT": "never-healthy"}, port=8600)
    process = start(lab, config)
    wait_for_step(process, "gate")
    time.sleep(2)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert time.monotonic() - started < at_most(1.5)
    assert process.returncode == 130
    assert "nterrupted" in output
    assert lab.hosts[0] in output
    wait_until(lambda: busy(lab) == "", 30, what="a quiet host", every=0.5)
    mended = lab.deploy(lab.write("slow", port=8600))
    assert mended["ok"], mended


def test_state_files_survive_and_the_model_is_not_fetched_twice(lab: Lab) -> None:
    result = lab.deploy(lab.write("slow", port=8600))
    assert result["steps"] == []
    lab.ssh("rm /etc/systemd/system/sglang-tiny-llama.service")
    announced = lab.deploy(lab.write("slow", port=8600), "--check")
    assert [(step["step"], step["why"]) for step in announced["steps"]] == [("restart", "its unit file is gone")]
    assert lab.deploy(lab.write("slow", port=8600))["ok"]
