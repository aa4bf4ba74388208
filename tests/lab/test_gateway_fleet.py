"""A gateway and its servers on several hosts: kept up to date, drained, rebooted, rolled back, with replicas."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Lab, ops
from gateways import KEY, QUICK, actions, addresses, ask, door, gateway, states, written
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.lab, pytest.mark.slow]

# What an operator may do by hand, or a router by mistake.
LOSE = """
import json, sys, urllib.request as http
key = open("/var/lib/sglang-ops/services/sglang-tiny-llama-gateway/gateway/control-plane.key").read().strip()
base, headers = "http://127.0.0.1:30000/workers", {"Authorization": "Bearer " + key}
workers = json.load(http.urlopen(http.Request(base, headers=headers)))["workers"]
(gone,) = [worker["id"] for worker in workers if worker["url"] == sys.argv[1]]
http.urlopen(http.Request(base + "/" + gone, headers=headers, method="DELETE"))
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-b-fleet", hosts=2, gpus=2, engine="docker", os="debian13", server="simulator", gateway=True)
    made.env["GATEWAY_KEY"] = KEY
    assert made.deploy(written(made), *QUICK)["ok"]
    return made


def test_gateway_of_no_host_is_refused(lab: Lab) -> None:
    refused = lab.deploy(written(lab, {"hosts": "edge"}), *QUICK)
    assert refused["exit_code"] == 7
    assert "gateway.hosts: 'edge' of sglang-tiny-llama matches no host" in refused["hosts"][0]["failure"]["cause"]


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


def test_server_that_was_out_when_the_gateways_host_rebooted_comes_back_by_itself(lab: Lab) -> None:
    """Whoever took it out has died meanwhile."""
    url = f"http://{addresses(lab)[0]}:8000"
    told = {"service": "sglang-tiny-llama-gateway", "state": "left", "workers": [url], "rejoin": 20}
    words = [door(lab), "-i", str(lab.inventory), "-b", "-m", "sglang_gateway", "-a", json.dumps(told)]
    subprocess.run([Path(sys.executable).with_name("ansible"), *words], cwd=ROOT, check=True, timeout=60)
    assert url not in {row["url"] for row in gateway(lab)["workers"] if row["healthy"]}
    assert ops("lab", "reboot", door(lab), "--name", lab.name, "--hard").returncode == 0
    wait_until(lambda: gateway(lab)["workers"] is not None and states(lab).get(url) == "healthy", 120)
    assert lab.ssh("ls /etc/systemd/system | grep -c rejoin || true", door(lab)).strip() == "0"
    assert [step["step"] for step in lab.deploy(written(lab), *QUICK)["steps"]] == []


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


def test_several_gateways_change_one_at_a_time(lab: Lab) -> None:
    lab.clear()
    two = {"hosts": f"{lab.hosts[0]},gateways"}
    assert lab.deploy(written(lab, two), *QUICK)["ok"]
    fronts = [row["endpoint"] for row in lab.json("status")["gateways"]]
    assert len(fronts) == 2
    stop, seen = threading.Event(), []

    def look() -> None:
        while not stop.wait(0.05):
            seen.append([listens(front) for front in fronts])

    looking = threading.Thread(target=look)
    looking.start()
    changed = lab.deploy(written(lab, two | {"policy": "round_robin"}), *QUICK)
    stop.set()
    looking.join()
    assert changed["ok"], changed
    assert {name.rpartition("/")[2]: word for name, word in actions(changed).items()} == {
        "sglang-tiny-llama": "none", "sglang-tiny-llama-gateway": "restart",
    }  # fmt: skip
    assert [False, True] in seen
    assert [True, False] in seen
    assert [False, False] not in seen
    bad = lab.deploy(written(lab, two | {"extra_args": "--no-such-flag"}), *QUICK)
    assert bad["exit_code"] == 3
    assert sorted(word for name, word in actions(bad).items() if "gateway" in name) == ["pending", "restart"]
    assert all(ask(front)[0] == 200 for front in fronts)


def listens(endpoint: str) -> bool:
    """Whether somebody takes connections there."""
    host, _, port = endpoint.partition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True
