"""The hosts: one lab, brought up blank and removed again, a part of it for each contender."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.process import BenchError, call
from sglang_ops import registry
from sglang_ops.spec import Gateway

NAME = "bench"
SHAPE = {"engine": "docker", "os": "debian13", "server": "simulator", "gpus": "1"}


@dataclass(frozen=True)
class Lab:
    """A running lab: its inventory file with what is in it, and the deployment that fits it."""

    inventory: Path
    content: Mapping[str, Any]
    deployment: Path

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(self.content["all"]["hosts"])

    @property
    def gateway(self) -> str:
        """Where the lab's gateway answers."""
        (name,) = self.content["gateways"]["hosts"]
        gateway = Gateway.model_validate(yaml.safe_load(self.deployment.read_text())["deployment"]["gateway"])
        return f"http://{self.content['all']['hosts'][name]['ansible_host']}:{gateway.port}"

    @property
    def ssh_config(self) -> Path:
        return self.inventory.parent / "ssh" / "config"

    @property
    def known_hosts(self) -> Path:
        return self.inventory.parent / "ssh" / "known_hosts"


@contextmanager
def lab(cli: str, hosts: int, say: Callable[[str], None], *, gateway: bool = False) -> Iterator[Lab]:
    """A lab of blank hosts for as long as the block lasts. Raises BenchError if there is one of its name already."""
    if json.loads(call(cli, "lab", "status", "--name", NAME, "--output", "json"))["running"]:
        raise BenchError(f"a lab called {NAME} is up already. End it with: {cli} lab down --name {NAME}")
    shape = [word for option, value in SHAPE.items() for word in (f"--{option}", value)]
    say(f"bringing up {hosts} blank lab hosts")
    try:
        front = ["--gateway"] if gateway else []
        call(cli, "lab", "up", "--name", NAME, "--hosts", str(hosts), *shape, *front)
        status = json.loads(call(cli, "lab", "status", "--name", NAME, "--output", "json"))
        inventory = Path(status["inventory"])
        content = yaml.safe_load(inventory.read_text())
        yield Lab(inventory, content, inventory.parent / "deployment.yaml")
    finally:
        say("removing the lab")
        call(cli, "lab", "down", "--name", NAME)


def slices(hosts: Sequence[str], parts: int) -> list[tuple[str, ...]]:
    """The hosts in equal parts, neighbours in different ones, so that none has only the hosts that booted last."""
    return [tuple(hosts[part::parts]) for part in range(parts)]


def variables(running: Lab) -> dict[str, Any]:
    """What the peers are told, so that they run the same server as sglang-ops: variables of the plain role."""
    lab_variables = running.content["all"]["vars"]
    deployment = yaml.safe_load(running.deployment.read_text())["deployment"]
    insecure = lab_variables["container_engine_insecure_registries"]
    return {
        "sglang_image": registry.resolve(deployment["image"], insecure=insecure).digest_ref,
        "sglang_model": deployment["hf_model_handle"],
        "sglang_served_model_name": deployment["served_model_name"],
        "sglang_service": "sglang",
        "sglang_port": deployment["port"],
        "sglang_gpu": "0",
        "sglang_hf_home": "/var/lib/sglang/huggingface",
        "sglang_hf_endpoint": lab_variables["sglang_server_hf_endpoint"],
        "sglang_insecure_registries": insecure,
        "sglang_min_free_bytes": 1_000_000_000,
        "sglang_start_timeout": 120,
        "bench_known_hosts": str(running.known_hosts),
    }


def write_inventory(path: Path, running: Lab, hosts: Sequence[str], extra: Mapping[str, Any]) -> Path:
    """An inventory of some of the hosts, in JSON: Ansible reads it as YAML, pyinfra's inventory as it is."""
    everything = running.content["all"]
    content = {
        "all": {
            "hosts": {name: everything["hosts"][name] for name in hosts},
            "vars": {**everything["vars"], **extra},
        }
    }
    path.write_text(json.dumps(content, indent=2))
    return path
