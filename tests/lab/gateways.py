"""What tests of gateways ask: the gateway as a client does, and what it says of its servers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from conftest import Lab

from bench.gateway import Load

TIMES = {"restart_delay": 1, "soak": 1, "start_timeout": 60, "drain_timeout": 10}
QUICK = tuple(word for name, value in TIMES.items() for word in ("-e", f"sglang_server_{name}={value}"))
KEY = "canary-gateway-4c1e"


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


def addresses(lab: Lab) -> list[str]:
    hosts = yaml.safe_load(lab.inventory.read_text())["all"]["hosts"]
    return [hosts[name]["ansible_host"] for name in lab.hosts]


@contextmanager
def clients(lab: Lab) -> Iterator[Load]:
    """Clients that ask without a pause while something happens; nothing may be lost."""
    load = Load(gateway(lab)["endpoint"], 4, 0.02, KEY)
    load.start()
    try:
        yield load
    finally:
        load.stop()
    assert load.answered
    assert not load.lost, load.lost[:5]
