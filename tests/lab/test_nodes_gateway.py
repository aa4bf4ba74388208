"""Two groups of two hosts behind a gateway: one after the other changes as one, and no request is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Lab

from bench import matrix
from bench.faults import Fleet
from bench.gateway import Load

pytestmark = [pytest.mark.lab, pytest.mark.slow]
QUICK = ("--soak", "1")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-cgroups", hosts=4, gpus=1, engine="docker", os="debian13", server="simulator", gateway=True)
    first = made.deploy(release(made, 1), *QUICK)
    assert first["ok"], first
    return made


def release(lab: Lab, number: int, fault: str = "") -> Path:
    """A deployment file whose release differs from the others by its number."""
    variables = {"RELEASE_NUMBER": str(number)} | ({"SGLANG_SIMULATOR_FAULT": fault} if fault else {})
    return lab.write(f"r{number}", nodes=2, tensor_parallel_size=2, env_vars=variables)


@contextmanager
def load(lab: Lab) -> Iterator[Load]:
    """Clients at the gateway, as long as something else goes on."""
    (front,) = lab.json("status")["gateways"]
    clients = Load(front["endpoint"], 8)
    clients.start()
    try:
        yield clients
    finally:
        clients.stop()


def releases(lab: Lab) -> dict[str, str]:
    return {row["host"]: row["release"] for row in lab.json("status")["services"] if row["kind"] == "server"}


def processes(lab: Lab) -> list[str]:
    """Of each host's server, which start of it runs."""
    ask = "systemctl show --value -p InvocationID sglang-tiny-llama"
    return [lab.ssh(ask, host).strip() for host in lab.hosts[:4]]


def pairs(lab: Lab) -> list[list[str]]:
    return [lab.hosts[:2], lab.hosts[2:4]]


def test_the_gateway_asks_the_first_of_each_group(lab: Lab) -> None:
    status = lab.json("status")
    servers = {row["endpoint"] for row in status["services"] if row["kind"] == "server"}
    (front,) = status["gateways"]
    assert {row["url"] for row in front["workers"] if row["healthy"]} == servers
    assert len(servers) == 2
    again = lab.deploy(release(lab, 1), *QUICK)
    assert [(host["changed"], host["module_executions"]) for host in again["hosts"]] == [(0, 1)] * 5


def test_groups_change_one_after_the_other_and_no_request_is_lost(lab: Lab) -> None:
    with load(lab) as clients:
        result = lab.deploy(release(lab, 2), *QUICK)
    assert result["ok"], result
    assert result["rollout"]["batches"] == pairs(lab)
    assert (len(clients.answered) > 100, clients.lost) == (True, [])


@pytest.mark.parametrize("fault", ["crash-at-start", "garbage"])
def test_a_bad_release_touches_one_group_which_goes_back(lab: Lab, fault: str) -> None:
    before = releases(lab)
    with load(lab) as clients:
        result = lab.deploy(release(lab, 3, fault), *QUICK)
    assert (result["exit_code"], clients.lost) == (3, []), result
    assert result["rollout"]["batches"] == pairs(lab)[:1]
    assert releases(lab) == before
    (front,) = lab.json("status")["gateways"]
    assert [row["healthy"] for row in front["workers"]] == [True, True]


def test_a_group_whose_first_host_cannot_leave_the_gateway_stays_as_it_is(lab: Lab, tmp_path: Path) -> None:
    key, front = "/var/lib/sglang-ops/services/*-gateway/gateway/control-plane.key", lab.json("status")["gateways"][0]
    fleet, before = Fleet(lab.inventory, tmp_path), processes(lab)
    wrong = f"for key in {key}; do cp -p $key /run/key; echo wrong > $key; done"
    right = f"for key in {key}; do cp -p /run/key $key; done"
    with load(lab) as clients:
        deploy = fleet.begin(release(lab, 4), *QUICK)
        try:
            for event in deploy.events():
                data = event.get("event_data") or {}
                first = data.get("host") == lab.hosts[0] and matrix.in_turn(data)
                if event["event"] == "runner_on_start" and first and wrong:
                    lab.ssh(wrong, front["host"])
                    wrong = ""
                if event["event"] == "runner_item_on_failed" and first:
                    break
        finally:
            lab.ssh(right, front["host"])
        result = deploy.result()
    assert (result["exit_code"], clients.lost) == (3, []), result
    assert processes(lab) == before
    told = {host["host"]: host.get("failure") for host in result["hosts"]}
    for host in lab.hosts[:2]:
        assert "answers 401" in told[host]["cause"], told
        assert "sglang-tiny-llama goes on with release" in told[host]["cause"], told
    assert told[lab.hosts[2]] is None
    (gateway,) = lab.json("status")["gateways"]
    assert [row["healthy"] for row in gateway["workers"]] == [True, True]


def test_a_member_changed_by_hand_mends_its_group_alone(lab: Lab) -> None:
    lab.ssh("echo '# mine' >> /etc/systemd/system/sglang-tiny-llama.service; systemctl daemon-reload", lab.hosts[3])
    with load(lab) as clients:
        result = lab.deploy(release(lab, 2), *QUICK)
    done = {host["host"]: host["services"][0]["action"] for host in result["hosts"]}
    assert (result["ok"], clients.lost) == (True, []), result
    assert [done[name] for name in lab.hosts] == ["none", "none", "restart", "restart", "none"]


def test_drain_takes_a_whole_group_out(lab: Lab) -> None:
    named = ("-c", str(release(lab, 1)))  # it says that hosts serve together, and so who is asked
    half = lab.run(f"drain {lab.hosts[1]}", *named)
    assert (half.returncode, "together" in half.stderr) == (7, True), half.stderr
    whole = ",".join(lab.hosts[:2])
    with load(lab) as clients:
        assert lab.json(f"drain {whole}", *named)["ok"]
        (front,) = lab.json("status")["gateways"]
        assert sorted(row["healthy"] for row in front["workers"]) == [False, True], front
        assert lab.json(f"undrain {whole}", *named)["ok"]
    assert clients.lost == []


def test_the_dry_run_counts_no_host_without_a_server(lab: Lab) -> None:
    shown = lab.run("deploy", "--yes", "--check", "-c", str(release(lab, 4)), *QUICK)
    assert "Roll-out: 2 × 2 hosts at a time." in shown.stderr + shown.stdout
    refused = lab.run("deploy", "--yes", "-c", str(release(lab, 4)), "--canary", "5")
    assert (refused.returncode, "there are 4 hosts" in refused.stderr) == (7, True), refused.stderr
