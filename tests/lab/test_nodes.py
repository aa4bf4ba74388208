"""One model over two hosts: started, gated, restarted and stopped together. The simulator stands for the engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import ROOT, Lab

pytestmark = pytest.mark.lab
QUICK = ("--soak", "0")
UNIT = "/etc/systemd/system/sglang-tiny-llama.service"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("t-dnodes", hosts=2, gpus=1, engine="docker", os="debian13", server="simulator")


def deployed(lab: Lab, *words: str, **changes: Any) -> dict[str, Any]:
    return lab.deploy(lab.write("spread", nodes=2, tensor_parallel_size=2, **changes), *QUICK, *words)


def actions(result: dict[str, Any]) -> list[list[str]]:
    return [[service["action"] for service in host["services"]] for host in result["hosts"]]


def test_two_hosts_serve_one_model_and_neither_is_acted_on_alone(lab: Lab) -> None:
    config = lab.write("spread", nodes=2, tensor_parallel_size=2)
    cut = lab.run("deploy", "--yes", "-c", str(config), "--limit", lab.hosts[0])
    assert (cut.returncode, f"leaves out {lab.hosts[1]}" in cut.stderr) == (7, True), cut.stderr
    result = deployed(lab)
    assert result["ok"], result
    assert max(host["module_executions"] for host in result["hosts"]) <= 14
    first, second = (host["services"] for host in result["hosts"])
    assert first[0]["endpoint"] == second[0]["endpoint"], "requests go to the first host alone"
    units = [lab.ssh(f"cat {UNIT}", host) for host in lab.hosts]
    for rank, unit in enumerate(units):
        for words in (f"--node-rank {rank}", "--nnodes 2", "NCCL_SOCKET_IFNAME=host0", "GLOO_SOCKET_IFNAME=host0"):
            assert words in unit
        assert unit.partition("--dist-init-addr ")[2].split()[0].endswith(".11:18000")
    again = deployed(lab)
    assert [(host["changed"], host["module_executions"]) for host in again["hosts"]] == [(0, 1), (0, 1)]
    rows = lab.json("status")["services"]
    assert [(row["rank"], row["group"], row["healthy"]) for row in rows] == [(n, lab.hosts, True) for n in (0, 1)]


@pytest.mark.slow
def test_refusals_touch_nothing(lab: Lab) -> None:
    assert deployed(lab)["ok"]
    config = lab.write("spread", nodes=2, tensor_parallel_size=2)
    for words, says in (
        (("-o", "deployment.nodes=3", "-o", "deployment.tensor_parallel_size=3"), "2 hosts are meant for it"),
        (("-o", "deployment.tensor_parallel_size=3"), "not divisible by 2 nodes"),
    ):
        done = lab.run("deploy", "--yes", "-c", str(config), *words)
        assert (done.returncode, says in done.stderr) == (7, True), done.stderr
    alone = ("--limit", lab.hosts[1])
    for verb, words in (
        ("restart", ("--service", "tiny-llama", *alone)),
        ("stop", ("--service", "tiny-llama", *alone)),
        ("remove", ("--yes", *alone)),
        ("rollback", alone),
        (f"drain {lab.hosts[1]}", ()),
    ):
        done = lab.run(verb, *words)
        assert done.returncode == 7, (verb, done.stderr)
        assert f"runs on {lab.hosts[0]}, {lab.hosts[1]} together" in done.stderr
    result = lab.json("status")
    assert [(row["healthy"], row["restarts"], row["drained"]) for row in result["services"]] == [(True, 0, False)] * 2


@pytest.mark.slow
def test_a_change_restarts_both_and_they_meet_again(lab: Lab) -> None:
    assert deployed(lab)["ok"]
    result = deployed(lab, extra_args="--log-level info")
    assert result["ok"], result
    assert actions(result) == [["restart"]] * 2
    timers = [lab.ssh("systemctl list-timers --all --no-legend 'sglang-ops-again-*'", host) for host in lab.hosts]
    assert timers == ["", ""]


@pytest.mark.slow
def test_a_controller_that_dies_leaves_no_group_at_rest(lab: Lab) -> None:
    assert deployed(lab)["ok"]
    config = lab.write("spread", nodes=2, tensor_parallel_size=2, env_vars={"RELEASE": "died"})
    words = ["deploy", "-i", str(lab.inventory), "-c", str(config), "--yes", "--drain-timeout", "1", *QUICK]
    process = subprocess.Popen(
        [sys.executable, "-m", "sglang_ops", *words],
        env=os.environ | lab.env | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if f"{lab.hosts[0]} start" in line:
            break
    limit = time.monotonic() + 30
    while "inactive" not in lab.ssh("systemctl is-active sglang-tiny-llama") and time.monotonic() < limit:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    limit = time.monotonic() + 200
    while not all(row["healthy"] for row in lab.json("status")["services"]):
        assert time.monotonic() < limit, "the group stays at rest"
        time.sleep(5)
    result = lab.deploy(config, *QUICK, "--lock-wait", "60")
    assert result["ok"], result


@pytest.mark.slow
def test_a_member_that_was_changed_by_hand_is_named_and_the_whole_group_restarts(lab: Lab) -> None:
    assert deployed(lab)["ok"]
    lab.ssh(f"echo '# mine' >> {UNIT}; systemctl daemon-reload", lab.hosts[1])
    assert [(item["host"], item["what"]) for item in lab.json("status")["drift"]] == [
        (lab.hosts[1], "its unit was changed by hand")
    ]
    config = lab.write("spread", nodes=2, tensor_parallel_size=2)
    planned = lab.json("plan", "-c", str(config))
    assert [host["services"][0]["action"] for host in planned["hosts"]] == ["restart"] * 2
    assert f"{lab.hosts[1]}, which serves it together with this host" in planned["hosts"][0]["services"][0]["why"]
    result = deployed(lab)
    assert (result["ok"], actions(result)) == (True, [["restart"]] * 2), result
    assert lab.json("status")["drift"] == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_member_that_was_reinstalled_is_named_and_the_whole_group_starts(lab: Lab, rank: int) -> None:
    assert deployed(lab)["ok"]
    wipe = f"rm -rf /var/lib/sglang-ops {UNIT}; systemctl daemon-reload"
    lab.ssh(f"systemctl stop --no-block sglang-tiny-llama; docker kill sglang-tiny-llama; {wipe}", lab.hosts[rank])
    named = [(item["host"], item["what"]) for item in lab.json("status")["drift"]]
    mate = lab.hosts[1 - rank]
    assert named == [
        (lab.hosts[rank], f"is not deployed here, and {mate} would serve it together with this host"),
    ]
    result = deployed(lab)
    assert result["ok"], result
    assert actions(result)[1 - rank] == ["restart"]
    assert all(row["healthy"] for row in lab.json("status")["services"])


@pytest.mark.slow
def test_a_member_that_cannot_be_reached_holds_its_group(lab: Lab) -> None:
    assert deployed(lab)["ok"]
    before = [row["release"] for row in lab.json("status")["services"]]
    away = "systemctl stop ssh.socket ssh; pkill sshd; sleep 25; systemctl start ssh.socket ssh"  # connections, too
    lab.ssh(f"systemd-run --quiet sh -c '{away}'", lab.hosts[1])
    time.sleep(2)
    result = deployed(lab, env_vars={"RELEASE": "unreached"})
    assert result["exit_code"] == 6
    assert f"{lab.hosts[1]} has dropped out" in result["hosts"][0]["failure"]["cause"]
    for _ in range(30):
        rows = lab.json("status")["services"]
        if len(rows) == 2:
            break
    assert [row["release"] for row in rows] == before
    assert all(row["healthy"] for row in rows)


@pytest.mark.slow
def test_members_that_are_told_different_things_are_refused(lab: Lab) -> None:
    inventory = lab.inventory.read_text()
    try:
        own = f"    {lab.hosts[1]}:\n      deployment_overrides: {{port: 8100}}\n"
        lab.inventory.write_text(inventory.replace(f"    {lab.hosts[1]}:\n", own))
        refused = deployed(lab)
    finally:
        lab.inventory.write_text(inventory)
    assert refused["exit_code"] == 7
    assert "differ: port" in refused["hosts"][0]["failure"]["cause"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["crash-at-start", "garbage"])
def test_a_bad_release_goes_back_on_both(lab: Lab, fault: str) -> None:
    assert deployed(lab)["ok"]
    before = [row["release"] for row in lab.json("status")["services"]]
    result = deployed(lab, env_vars={"SGLANG_SIMULATOR_FAULT": fault})
    assert result["exit_code"] == 3, result
    assert [host["release"] for host in result["hosts"]] == before
    rows = lab.json("status")["services"]
    assert [(row["release"], row["healthy"], row["stable"]) for row in rows] == [(old, True, True) for old in before]


@pytest.mark.slow
def test_a_release_is_taken_back_on_both(lab: Lab) -> None:
    assert deployed(lab)["ok"]
    before = [row["release"] for row in lab.json("status")["services"]]
    assert deployed(lab, env_vars={"RELEASE": "next"})["ok"]
    back = lab.json("rollback")
    assert back["ok"], back
    assert [row["release"] for row in lab.json("status")["services"]] == before


@pytest.mark.slow
def test_a_follower_that_dies_takes_the_first_with_it_and_both_come_back(lab: Lab) -> None:
    assert deployed(lab)["ok"]
    lab.ssh("docker kill sglang-tiny-llama", lab.hosts[1])
    result = lab.json("restart", "--service", "tiny-llama")
    assert result["ok"], result


@pytest.mark.slow
def test_stop_ends_both(lab: Lab) -> None:
    assert deployed(lab)["ok"]
    assert lab.json("stop", "--service", "tiny-llama")["ok"]
    assert [lab.ssh("systemctl is-active sglang-tiny-llama", host).strip() for host in lab.hosts] == ["inactive"] * 2
