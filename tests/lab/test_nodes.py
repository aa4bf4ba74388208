"""One model over two hosts: started, gated, restarted and stopped together. The simulator stands for the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Lab

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("t-dnodes", hosts=2, gpus=1, engine="docker", os="debian13", server="simulator")


def deployed(lab: Lab, **changes: Any) -> dict[str, Any]:
    return lab.deploy(lab.write("spread", nodes=2, tensor_parallel_size=2, **changes))


def test_refusals_touch_nothing(lab: Lab) -> None:
    config = lab.write("spread", nodes=2, tensor_parallel_size=2)
    for words, says in (
        (("--limit", lab.hosts[0]), f"leaves out {lab.hosts[1]}"),
        (("-o", "deployment.nodes=3", "-o", "deployment.tensor_parallel_size=3"), "2 hosts are meant for it"),
        (("-o", "deployment.tensor_parallel_size=3"), "not divisible by 2 nodes"),
    ):
        done = lab.run("deploy", "--yes", "-c", str(config), *words)
        assert (done.returncode, says in done.stderr) == (7, True), done.stderr
    assert "sglang-" not in lab.ssh("ls /etc/systemd/system")


def test_two_hosts_serve_one_model(lab: Lab) -> None:
    result = deployed(lab)
    assert result["ok"], result
    first, second = (host["services"] for host in result["hosts"])
    assert first[0]["endpoint"] == second[0]["endpoint"], "requests go to the first host alone"
    units = [lab.ssh("cat /etc/systemd/system/sglang-tiny-llama.service", host) for host in lab.hosts]
    for rank, unit in enumerate(units):
        assert f"--node-rank {rank}" in unit
        assert "--nnodes 2" in unit
        assert "NCCL_SOCKET_IFNAME=host0" in unit
        assert "GLOO_SOCKET_IFNAME=host0" in unit
    meet = [unit.partition("--dist-init-addr ")[2].split()[0] for unit in units]
    assert meet[0] == meet[1]
    assert meet[0].endswith(":18000")
    models = lab.ssh("python3 -c \"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/v1/models').read())\"")
    assert "tiny" in models
    again = deployed(lab)
    assert [(host["changed"], host["module_executions"]) for host in again["hosts"]] == [(0, 1), (0, 1)]
    verified = lab.run("verify")
    assert verified.returncode == 0, verified.stdout


def test_a_change_restarts_both_and_they_meet_again(lab: Lab) -> None:
    result = deployed(lab, extra_args="--log-level info")
    assert result["ok"], result
    assert [[service["action"] for service in host["services"]] for host in result["hosts"]] == [["restart"]] * 2


def test_a_follower_that_dies_takes_the_first_with_it_and_both_come_back(lab: Lab) -> None:
    lab.ssh("docker kill sglang-tiny-llama", lab.hosts[1])
    result = json.loads(lab.run("restart", "--service", "tiny-llama", "--output", "json").stdout)
    assert result["ok"], result


def test_stop_ends_both(lab: Lab) -> None:
    assert lab.json("stop", "--service", "tiny-llama")["ok"]
    assert [lab.ssh("systemctl is-active sglang-tiny-llama", host).strip() for host in lab.hosts] == ["inactive"] * 2
