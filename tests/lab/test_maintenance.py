"""Hosts that must be rebooted while clients ask: each leaves the gateway, reboots, and joins it again; groups as one.

The driver and its repository are stand-ins (see test_driver); reboots, lock, gateway and clients are real.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Lab
from test_driver import GPUS, GPUS_UNIT, pin, publish
from vendor import Vendor

from bench.gateway import Load

pytestmark = [pytest.mark.lab, pytest.mark.slow]
FIRST, SECOND, THIRD = "580.95.05", "580.126.09", "580.142.01"
TIMES = {"restart_delay": 1, "soak": 1, "start_timeout": 120, "drain_timeout": 30}
QUICK = tuple(word for name, value in TIMES.items() for word in ("-e", f"sglang_server_{name}={value}"))


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-maint", hosts=4, gpus=1, engine="docker", os="debian12", server="simulator", gateway=True)
    assert made.deploy(None, *QUICK)["ok"]
    return made


@pytest.fixture(scope="module")
def vendor(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendor]:
    address = re.sub(r"\d+$", "1", lab.ssh("hostname -I").split()[0])
    made = Vendor(tmp_path_factory.mktemp("vendor"), address)
    made.publish(f"linux-headers-{lab.ssh('uname -r').strip()}", "1")
    for version in (FIRST, SECOND, THIRD):
        pin(made, version)
        publish(made, version)
    assert provision(lab, made, FIRST, "-e", "nvidia_driver_require_gpu=false", limit="servers")["ok"]
    for host in lab.hosts[:4]:  # from now on there is a GPU, and at boot the module of the installed driver is loaded
        lab.ssh(f"printf %s {shlex.quote(GPUS)} >/usr/local/sbin/gpus; chmod +x /usr/local/sbin/gpus; "
                f"printf %s {shlex.quote(GPUS_UNIT)} >/etc/systemd/system/gpus.service; "
                "systemctl enable --now gpus", host)  # fmt: skip
    yield made
    made.close()


def boots(lab: Lab) -> list[str]:
    return [lab.ssh("cat /proc/sys/kernel/random/boot_id; stat -c %Y /proc/1", host) for host in lab.hosts[:4]]


def serving(lab: Lab) -> int:
    """How many servers the gateway sends requests to."""
    (gateway,) = lab.json("status")["gateways"]
    return sum(bool(row["healthy"]) for row in gateway["workers"])


def provision(lab: Lab, vendor: Vendor, version: str, *words: str, limit: str) -> dict[str, Any]:
    driver = {"repository": vendor.url, "repository_key": vendor.key, "version": version, "under_load": True}
    given = [word for name, value in driver.items() for word in ("-e", json.dumps({f"nvidia_driver_{name}": value}))]
    return lab.json("provision", "--yes", "--only", "driver", "--limit", limit, *given, *words)


def steps(run: Path) -> list[tuple[str, str, float]]:
    """(host, "reboot" or "sglang_gateway", when it had ended), in the order and the time of the controller."""
    found = []
    for line in (run / "events.ndjson").read_text().splitlines():
        event = json.loads(line)
        data = event.get("event_data") or {}
        action = str(data.get("resolved_action") or "").rpartition(".")[2]
        if event["event"] == "runner_on_ok" and action in ("reboot", "sglang_gateway"):
            found.append((data["host"], action, datetime.fromisoformat(event["created"]).timestamp()))
    return found


def reboots(run: Path) -> dict[str, tuple[float, float]]:
    """By host when its reboot had ended, and when the gateway had it back."""
    found: dict[str, list[float]] = {}
    for host, _, ended in steps(run):
        found.setdefault(host, []).append(ended)
    return {host: (times[-2], times[-1]) for host, times in found.items()}


def test_reboots_go_one_first_then_in_batches_and_lose_no_request(lab: Lab, vendor: Vendor) -> None:
    before, three = boots(lab), ",".join(lab.hosts[:3])
    load = Load(lab.json("status")["gateways"][0]["endpoint"], 4)
    load.start()
    try:
        done = provision(lab, vendor, SECOND, "--batch", "2", limit=three)
    finally:
        load.stop()
    assert done["ok"], done
    assert {host["host"]: host["reboot"] for host in done["hosts"]} == dict.fromkeys(lab.hosts[:3], "done")
    assert [now != then for now, then in zip(boots(lab), before, strict=True)] == [True, True, True, False]
    assert len(load.answered) > 100
    assert load.lost == []
    times = reboots(Path(done["run"]))
    canary, *others = (times[host] for host in lab.hosts[:3])
    assert all(canary[1] < booted for booted, _ in others), "the first is back before another one is taken away"
    booted = [ended for ended, _ in others]
    assert max(booted) - min(booted) < 15, "the rest goes together"
    assert lab.json("status")["drift"] == []
    assert serving(lab) == 4


def test_a_drained_host_is_rebooted_and_stays_drained(lab: Lab, vendor: Vendor) -> None:
    host = lab.hosts[0]
    assert lab.run("drain", host).returncode == 0
    done = provision(lab, vendor, THIRD, limit=host)
    assert done["ok"], done
    assert [item["reboot"] for item in done["hosts"]] == ["done"]
    rows = [row for row in lab.json("status")["services"] if row["host"] == host]
    assert all(row.get("drained") for row in rows), rows
    assert serving(lab) == 3
    assert lab.run("undrain", host).returncode == 0
    assert serving(lab) == 4


def test_hosts_that_serve_together_stop_together_and_lose_no_request(lab: Lab, vendor: Vendor) -> None:
    first, second, *others = lab.hosts[:4]  # the first of the first group has the driver already
    made = lab.deploy(lab.write("groups", nodes=2, tensor_parallel_size=2), *QUICK)
    assert (made["ok"], serving(lab)) == (True, 2), made
    before = boots(lab)
    alone = provision(lab, vendor, THIRD, limit=second)
    (told,) = alone["hosts"]
    assert f"this run leaves out {first}. Name all of them in --limit" in told["failure"]["cause"], told
    assert (alone["exit_code"], boots(lab)) == (1, before), "the driver is installed, and nothing was stopped"
    load = Load(lab.json("status")["gateways"][0]["endpoint"], 4)
    load.start()
    try:
        done = provision(lab, vendor, THIRD, limit="servers")
    finally:
        load.stop()
    assert done["ok"], done
    assert {host["host"]: host["reboot"] for host in done["hosts"]} == {first: ""} | dict.fromkeys(
        (second, *others), "done"
    )
    assert [now != then for now, then in zip(boots(lab), before, strict=True)] == [False, True, True, True]
    assert (len(load.answered) > 100, load.lost) == (True, [])
    order = [(host, action) for host, action, _ in steps(Path(done["run"]))]
    assert order[:3] == [(first, "sglang_gateway"), (second, "reboot"), (first, "sglang_gateway")]
    assert order[3] == (others[0], "sglang_gateway")
    assert sorted(order[4:6]) == [(host, "reboot") for host in others]
    assert order[6:] == [(others[0], "sglang_gateway")]
    assert (lab.json("status")["drift"], serving(lab)) == ([], 2)
