"""What clients of the gateway notice while servers come and go: requests lost, and how long requests waited.

    python -m bench.gateway [--lab NAME] [--hosts N] [--requests N] [--clients N]

Brings up a lab with SGLang's real router and simulated servers, deploys, and while clients ask without a pause it
drains a server, restarts it and brings it back: of N servers, and of one alone, whose requests are held. Half of the
clients stream. `longest_seconds` less `usual_seconds` is the added wait; it may not exceed `swap_seconds`, the time for
which no server was behind the gateway.
A request is lost where the status is not 200, the connection breaks, or a stream ends without `[DONE]`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

TIMES = {"restart_delay": 1, "soak": 1, "start_timeout": 60, "drain_timeout": 60}
QUICK = [word for name, value in TIMES.items() for word in ("-e", f"sglang_server_{name}={value}")]
TOKENS = 16


@dataclass
class Load:
    """Clients that ask one gateway, each its next as soon as it has the answer to the last, or a `pause` later."""

    endpoint: str
    clients: int
    pause: float = 0.0  # seconds that a client takes from an answer to its next request
    key: str = ""
    answered: list[tuple[float, float, bool]] = field(default_factory=list)  # begun, seconds, streamed
    lost: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.threads = [threading.Thread(target=self._client, args=(number,)) for number in range(self.clients)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _client(self, number: int) -> None:
        streamed = number % 2 == 1
        while not self.over.is_set():
            began = time.monotonic()
            error = ask(self.endpoint, streamed=streamed, key=self.key)
            if error:
                self.lost.append(f"{'stream' if streamed else 'unary'}: {error}")
            self.answered.append((began, time.monotonic() - began, streamed))
            self.over.wait(self.pause)

    def longest(self) -> float:
        return max(seconds for _, seconds, _ in self.answered)

    def usual(self) -> float:
        """The median, in seconds."""
        return sorted(seconds for _, seconds, _ in self.answered)[len(self.answered) // 2]


def ask(endpoint: str, *, streamed: bool, tokens: int = TOKENS, key: str = "") -> str:
    """One request; "" where it was answered in full."""
    connection = http.client.HTTPConnection(endpoint.partition("://")[2], timeout=300)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    messages = [{"role": "user", "content": "Count."}]
    body = {"model": "tiny-llama", "messages": messages, "max_tokens": tokens, "stream": streamed}
    if tokens != TOKENS:
        body["ignore_eos"] = True  # or the simulator ends with its sentence
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()
    if answer.status != 200:
        return f"{answer.status} {text[:120]}"
    return "stream without [DONE]" if streamed and "data: [DONE]" not in text else ""


class Lab:
    """A lab of this measurement's own."""

    def __init__(self, name: str, hosts: int) -> None:
        self.name, self.hosts = name, hosts

    def ops(self, *words: str) -> str:
        command = [sys.executable, "-m", "sglang_ops", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(words[:2])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return done.stdout

    def up(self) -> None:
        self.inventory = self.ops(
            "lab", "up", "--name", self.name, "--hosts", str(self.hosts), "--server", "simulator", "--gateway"
        ).strip()
        path = Path(self.inventory).parent / "deployment.yaml"
        data = yaml.safe_load(path.read_text())
        data["deployment"]["env_vars"] = {"SGLANG_SIMULATOR_DRAIN_POLL": "0.2", "SGLANG_SIMULATOR_STARTUP_SECONDS": "3"}
        path.write_text(yaml.safe_dump(data))

    def verb(self, verb: str, *words: str) -> str:
        return self.ops(verb, *words, "--inventory", self.inventory)

    def endpoint(self) -> str:
        (gateway,) = json.loads(self.verb("status", "--output", "json"))["gateways"]
        return str(gateway["endpoint"])


def measure(lab: Lab, clients: int, least: int, work: Callable[[], float]) -> dict[str, Any]:
    """What the clients notice of `work`, which tells how long its server was away; until requests are enough."""
    load = Load(lab.endpoint(), clients)
    load.start()
    time.sleep(2)
    seconds = work()
    while len(load.answered) < least:
        time.sleep(0.2)
    load.stop()
    return {
        "requests": len(load.answered),
        "streamed": sum(1 for _, _, streamed in load.answered if streamed),
        "lost": len(load.lost),
        "errors": sorted(set(load.lost))[:5],
        "usual_seconds": round(load.usual(), 3),
        "longest_seconds": round(load.longest(), 2),
        "added_wait_seconds": round(load.longest() - load.usual(), 2),
        "swap_seconds": round(seconds, 2),
    }


def swap(lab: Lab, host: str) -> Callable[[], float]:
    """Drain a host, restart its server, bring it back; returns the seconds for which the gateway was to do without."""

    def work() -> float:
        left, _ = told_gateway(lab.verb("drain", host, "--output", "json"))
        lab.verb("restart", "--service", "tiny-llama", "--limit", host)
        _, had = told_gateway(lab.verb("undrain", host, "--output", "json"))
        return had - left

    return work


def told_gateway(result: str) -> tuple[float, float]:
    """When drain or undrain began to speak to the gateway and when it had ended, in seconds since the epoch."""
    times = []
    for line in (Path(json.loads(result)["run"]) / "events.ndjson").read_text().splitlines():
        event = json.loads(line)
        action = str(event["event_data"].get("resolved_action") or "").rpartition(".")[2]
        if action == "sglang_gateway" and event["event"].startswith("runner_"):
            times.append(datetime.fromisoformat(event["created"]).timestamp())
    return times[0], times[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", default="bench-gw")
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    figures = {}
    for hosts in dict.fromkeys((given.hosts, 1)):
        lab = Lab(given.lab, hosts)
        try:
            lab.up()
            lab.verb("deploy", "--yes", *QUICK)
            least = given.requests if hosts > 1 else 0
            name = f"drain, restart, undrain of one of {hosts}"
            figures[name] = measure(lab, given.clients, least, swap(lab, f"{given.lab}-1"))
            print(name, json.dumps(figures[name]), flush=True)
        finally:
            lab.ops("lab", "down", "--name", given.lab)


if __name__ == "__main__":
    main()
