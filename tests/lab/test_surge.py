"""Servers of one host change behind their gateway, under load: one by one, or with a second one beside each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Lab
from gateways import KEY, QUICK, addresses, clients, states, written

pytestmark = [pytest.mark.lab, pytest.mark.slow]
NAME = "sglang-tiny-llama"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-b-surge", hosts=1, gpus=2, engine="docker", os="debian13", server="simulator", gateway=True)
    made.env["GATEWAY_KEY"] = KEY
    return made


def release(lab: Lab, number: int, fault: str = "", fault_port: int = 0, **keys: Any) -> Path:
    """A release that differs from the others by its number; a fault may be that of one port alone."""
    faults = {"SGLANG_SIMULATOR_FAULT": fault, "SGLANG_SIMULATOR_FAULT_PORT": str(fault_port)} if fault else {}
    variables = {"RELEASE_NUMBER": str(number), "SGLANG_SIMULATOR_DRAIN_POLL": "0.2", **faults}
    return written(lab, env_vars=variables, **keys)


def running(lab: Lab) -> dict[str, str]:
    return {row["name"]: row["release"] for row in lab.json("status")["services"] if row["kind"] == "server"}


def in_order(lab: Lab, config: Path) -> None:
    """Nothing is left: the next deploy does nothing, and the gateway has the servers of the inventory alone."""
    again = lab.deploy(config, *QUICK)
    assert [(host["changed"], host["module_executions"]) for host in again["hosts"]] == [(0, 1)] * 2, again
    assert all("-surge" not in row["name"] for row in lab.json("status")["services"])
    assert set(states(lab).values()) == {"healthy"}
    assert all(":9" not in url for url in states(lab))


def ways(lab: Lab, config: Path) -> list[tuple[str, str]]:
    services = [item for host in lab.json("plan", "--config", str(config))["hosts"] for item in host["services"]]
    return [(item["way"], item["way_why"]) for item in services if item["way"]]


def test_a_single_server_changes_without_a_gap(lab: Lab) -> None:
    assert lab.deploy(release(lab, 1), *QUICK)["ok"]
    config = release(lab, 2)
    assert ways(lab, config) == [("surge", "GPU 1 free beside it")]
    with clients(lab) as load:
        assert lab.deploy(config, *QUICK)["ok"]
    assert load.longest() < 5
    in_order(lab, config)


def test_a_release_that_is_bad_never_reaches_the_server(lab: Lab) -> None:
    before, started = running(lab), lab.ssh(f"systemctl show -P InvocationID {NAME}")
    with clients(lab) as load:
        result = lab.deploy(release(lab, 3, "garbage"), *QUICK)
    assert (result["exit_code"], result["rollout"]["result"]) == (3, "rolled-back")
    assert (
        f"Nothing else changed: {NAME} goes on with release {before[NAME]}." in result["hosts"][0]["failure"]["cause"]
    )
    assert load.longest() < 5
    assert (running(lab), lab.ssh(f"systemctl show -P InvocationID {NAME}")) == (before, started)
    (last, *_) = lab.json("history", "--releases")["releases"]
    assert (last["verb"], last["result"]) == ("deploy", "failed")
    in_order(lab, release(lab, 2))


def test_a_server_that_fails_in_the_end_goes_back_while_the_second_one_serves(lab: Lab) -> None:
    before = running(lab)
    with clients(lab) as load:
        result = lab.deploy(release(lab, 4, "garbage", 8000), *QUICK)
    assert result["exit_code"] == 3, result
    assert load.longest() < 5
    assert running(lab) == before
    in_order(lab, release(lab, 2))


def test_a_port_that_is_taken_is_refused(lab: Lab) -> None:
    lab.ssh("systemd-run --quiet --unit taken python3 -m http.server 9000")
    refused = lab.deploy(release(lab, 5), *QUICK)
    assert refused["exit_code"] == 7
    assert "is taken by python3" in refused["hosts"][0]["failure"]["cause"]
    lab.ssh("systemctl stop taken")


@pytest.mark.parametrize("step", ["gate", "gateway", "last"])
def test_whoever_dies_in_the_middle_leaves_nothing_that_the_next_deploy_does_not_mend(lab: Lab, step: str) -> None:
    config = release(lab, {"gate": 6, "gateway": 7, "last": 8}[step])
    with clients(lab) as load:
        killed(lab, config, step)
        again = lab.deploy(config, "--lock-wait", "60", *QUICK)
    assert again["ok"], again
    assert load.longest() < 5
    in_order(lab, config)


def killed(lab: Lab, config: Path, step: str) -> None:
    """A deploy that is killed with all its processes where it comes to a step; "last" is the second start."""
    words = ["deploy", "-i", str(lab.inventory), "-c", str(config), "--yes", *QUICK]
    environment = os.environ | lab.env | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "sglang_ops", *words], env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    starts = 0
    for line in process.stdout:
        starts += f"{lab.hosts[0]} start" in line
        if (step == "last" and starts == 2) or (starts == 1 and f"{lab.hosts[0]} {step}" in line):
            break
    else:
        pytest.fail(f"the deploy ended before '{step}'")
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_two_replicas_change_one_by_one(lab: Lab) -> None:
    lab.run("remove", "--yes", "--limit", lab.hosts[0])
    two = {"data_parallel_size": 2}
    first = lab.deploy(release(lab, 1, **two), *QUICK)
    assert first["ok"], first
    config = release(lab, 2, **two)
    assert {way for way, _ in ways(lab, config)} == {"stop-start"}
    with clients(lab) as load:
        assert lab.deploy(config, *QUICK)["ok"]
    assert load.longest() < 5
    in_order(lab, config)


def test_a_failure_of_the_second_replica_takes_the_first_one_back(lab: Lab) -> None:
    before = running(lab)
    with clients(lab) as load:
        result = lab.deploy(release(lab, 3, "garbage", 8001, data_parallel_size=2), *QUICK)
    assert result["exit_code"] == 3, result
    assert load.longest() < 5
    assert running(lab) == before
    in_order(lab, release(lab, 2, data_parallel_size=2))


def test_another_port_is_changed_to_without_a_gap(lab: Lab) -> None:
    config = release(lab, 2, data_parallel_size=2, port=8100)
    with clients(lab) as load:
        assert lab.deploy(config, *QUICK)["ok"]
    assert load.longest() < 5
    assert sorted(states(lab)) == [f"http://{addresses(lab)[0]}:{port}" for port in (8100, 8101)]
    in_order(lab, config)
