"""SGLang's real router in front of servers that simulate: deployed, gated, kept up to date, with keys and replicas."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Lab, ops

pytestmark = pytest.mark.lab

TIMES = {"restart_delay": 1, "soak": 1, "start_timeout": 30, "drain_timeout": 10}
QUICK = tuple(word for name, value in TIMES.items() for word in ("-e", f"sglang_server_{name}={value}"))
# What an operator may do by hand, or a router by mistake.
LOSE = """
import json, sys, urllib.request as http
key = open("/var/lib/sglang-ops/services/sglang-tiny-llama-gateway/gateway/control-plane.key").read().strip()
base, headers = "http://127.0.0.1:30000/workers", {"Authorization": "Bearer " + key}
workers = json.load(http.urlopen(http.Request(base, headers=headers)))["workers"]
(gone,) = [worker["id"] for worker in workers if worker["url"] == sys.argv[1]]
http.urlopen(http.Request(base + "/" + gone, headers=headers, method="DELETE"))
"""
KEY = "canary-gateway-4c1e"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-b-gw", hosts=2, gpus=2, engine="docker", os="debian13", server="simulator", gateway=True)
    made.env["GATEWAY_KEY"] = KEY
    return made


def written(lab: Lab, gateway: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The lab's own deployment with changes of its gateway."""
    front = lab.deployment["deployment"]["gateway"] | {"api_key": "host:GATEWAY_KEY", "hold": 30} | (gateway or {})
    return lab.write("gateway", **{"gateway": front, **changes})


def door(lab: Lab) -> str:
    """The gateway's host."""
    return lab.hosts[-1]


def ask(url: str, key: str = KEY, path: str = "/v1/chat/completions") -> tuple[int, str]:
    """A client's request: status and body."""
    body = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    request = urllib.request.Request(url + path, json.dumps(body).encode() if path.endswith("completions") else None)
    request.add_header("Content-Type", "application/json")
    request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def gateway(lab: Lab) -> dict[str, Any]:
    (only,) = lab.json("status")["gateways"]
    assert isinstance(only, dict)
    return only


def states(lab: Lab) -> dict[str, str]:
    """By server what its gateway says of it."""
    return {row["url"]: "healthy" if row["healthy"] else row["state"] for row in gateway(lab)["workers"]}


def actions(result: dict[str, Any]) -> dict[str, str]:
    return {f"{host['host']}/{item['name']}": item["action"] for host in result["hosts"] for item in host["services"]}


def test_gateway_of_no_host_is_refused(lab: Lab) -> None:
    refused = lab.deploy(written(lab, {"hosts": "edge"}), *QUICK)
    assert refused["exit_code"] == 7
    assert "gateway.hosts: 'edge' of sglang-tiny-llama matches no host" in refused["hosts"][0]["failure"]["cause"]


def test_first_deploy_serves_through_the_gateway_and_the_second_changes_nothing(lab: Lab) -> None:
    result = lab.deploy(written(lab), *QUICK)
    assert result["ok"], result
    assert max(host["module_executions"] for host in result["hosts"]) <= 12
    front = gateway(lab)
    assert front["host"] == door(lab)
    assert states(lab) == {f"http://{address}:8000": "healthy" for address in addresses(lab)[:-1]}
    assert ask(front["endpoint"])[0] == 200
    again = lab.deploy(written(lab), *QUICK)
    assert [(host["changed"], host["module_executions"]) for host in again["hosts"]] == [(0, 1)] * 3


def addresses(lab: Lab) -> list[str]:
    hosts = yaml.safe_load(lab.inventory.read_text())["all"]["hosts"]
    return [hosts[name]["ansible_host"] for name in lab.hosts]


def test_clients_need_the_key_and_nobody_sees_it(lab: Lab) -> None:
    endpoint = gateway(lab)["endpoint"]
    assert ask(endpoint, key="wrong")[0] == 401
    assert ask(endpoint, path="/workers")[0] in (401, 403)  # the clients' key opens no control plane
    control = lab.ssh("cat /var/lib/sglang-ops/services/*/gateway/control-plane.key", door(lab)).strip()
    assert len(control) == 48
    assert ask(endpoint, key=control, path="/workers")[0] == 200
    looked = lab.ssh(
        "docker inspect $(docker ps -aq); systemctl cat 'sglang-*'; ps -eo args; "
        "journalctl --no-pager -t sglang-tiny-llama-gateway; cat /proc/[0-9]*/cmdline | tr '\\000' ' '",
        door(lab),
    )
    assert "sglang-tiny-llama-gateway" in looked
    for secret in (KEY, control):
        assert secret not in looked
        first, last = secret[:9], secret[9:]  # in two pieces, because sudo logs the commands that this test runs
        holding = lab.ssh(f"grep -srl {first}'{last}' /etc /var/lib/sglang-ops /tmp /root", door(lab)).split()
        modes = {lab.ssh(f"stat -c '%a %U' {path}", door(lab)).strip() for path in holding}
        assert modes == {"600 root"}, holding
    assert not lab.ssh(f"grep -rl {control} /var/lib/sglang-ops /etc 2>/dev/null", lab.hosts[0]).strip()


def test_server_that_the_router_lost_is_registered_again(lab: Lab) -> None:
    url = f"http://{addresses(lab)[0]}:8000"
    lab.ssh(f"cat > /root/lose.py << 'END'\n{LOSE}\nEND\npython3 /root/lose.py {url}", door(lab))
    assert states(lab)[url] == "lost"
    mended = lab.deploy(written(lab), *QUICK)
    assert [step["step"] for step in mended["steps"]] == ["join"]
    assert states(lab)[url] == "healthy"


def test_gateway_that_reboots_finds_its_servers(lab: Lab) -> None:
    assert ops("lab", "reboot", door(lab), "--name", lab.name, "--hard").returncode == 0
    limit = time.monotonic() + 90
    while (gateway(lab)["workers"] is None or len(states(lab)) < 2) and time.monotonic() < limit:
        time.sleep(1)
    assert set(states(lab).values()) == {"healthy"}


def test_drained_host_gets_nothing_until_it_is_undrained(lab: Lab) -> None:
    first, url = lab.hosts[0], f"http://{addresses(lab)[0]}:8000"
    config = str(written(lab))
    drained = lab.json("drain", first, "--config", config)
    assert drained["ok"], drained
    assert states(lab)[url] == "drained"
    assert {row["host"]: row["drained"] for row in lab.json("status")["services"]}[first]
    changed = lab.deploy(written(lab, extra_args="--log-level warning"), *QUICK)
    assert changed["ok"], changed
    assert states(lab)[url] == "drained"
    assert ask(gateway(lab)["endpoint"])[0] == 200
    undrained = lab.json("undrain", first, "--config", config)
    assert undrained["ok"], undrained
    assert set(states(lab).values()) == {"healthy"}


def test_bad_gateway_goes_back_and_the_servers_stay(lab: Lab) -> None:
    before = {row["name"]: row["release"] for row in lab.json("status", "--limit", door(lab))["services"]}
    result = lab.deploy(written(lab, {"extra_args": "--no-such-flag"}), *QUICK)
    assert result["exit_code"] == 3, result
    after = {row["name"]: row["release"] for row in lab.json("status", "--limit", door(lab))["services"]}
    assert after == before
    assert ask(gateway(lab)["endpoint"])[0] == 200


def test_replicas_are_services_of_their_own_behind_the_gateway(lab: Lab) -> None:
    lab.clear()
    result = lab.deploy(written(lab, {"policy": "power_of_two"}, data_parallel_size=2), *QUICK)
    assert result["ok"], result
    rows = lab.json("status")["services"]
    mine = {row["name"]: (row["gpus"], row["endpoint"][-4:]) for row in rows if row["host"] == lab.hosts[0]}
    assert mine == {"sglang-tiny-llama-1": ([0], "8000"), "sglang-tiny-llama-2": ([1], "8001")}
    assert list(states(lab).values()) == ["healthy"] * 4
    assert ask(gateway(lab)["endpoint"])[0] == 200
