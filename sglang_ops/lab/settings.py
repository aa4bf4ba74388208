"""What a lab is: its shape, where it lies on disk, and the plan its supervisor carries out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sglang_ops.errors import UsageError

ENGINES = ("docker", "podman")
SYSTEMS = ("debian12", "debian13")
SERVERS = ("real", "simulator")

# Every process that belongs to a lab has this in its environment: the lab's state directory.
MARK = "SGLANG_OPS_LAB"
REGISTRY_PORT = 5000
MODEL_SOURCE_PORT = 8080
MODEL_SOURCE_TOKEN = "hf_lab_token"  # noqa: S105 - opens the lab's gated model and nothing else
USER = "ops"
USERS = {USER: 1000, "nosudo": 1001}  # uids, the same in every host
FIRST_HOST = 11  # last byte of the address of host 1
MAX_HOSTS = 200
MAX_GPUS = 16

_NAME = re.compile(r"^[a-z][a-z0-9-]{0,14}$")


@dataclass(frozen=True)
class Shape:
    """What was asked for; two labs of the same shape are interchangeable."""

    name: str = "lab"
    hosts: int = 2
    gpus: int = 2
    engine: str = "docker"
    os: str = "debian13"
    server: str = "real"
    gateway: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for a shape that cannot be built."""
        if not _NAME.match(self.name):
            raise UsageError(
                f"A lab cannot be called '{self.name}'.",
                fix="Use up to 15 lower-case letters, digits and dashes, beginning with a letter.",
            )
        _within("--hosts", self.hosts, 1, MAX_HOSTS)
        _within("--gpus", self.gpus, 0, MAX_GPUS)
        _one_of("--engine", self.engine, ENGINES)
        _one_of("--os", self.os, SYSTEMS)
        _one_of("--server", self.server, SERVERS)

    def __str__(self) -> str:
        return (
            f"{self.hosts} {self.os} hosts with {self.gpus} pretended GPUs each, "
            f"for {self.engine}, serving with the {self.server} server"
            f"{', and a host for gateways' if self.gateway else ''}"
        )

    @property
    def machines(self) -> int:
        """How many hosts are booted."""
        return self.hosts + self.gateway


@dataclass(frozen=True)
class Host:
    """One host of a lab; `gpus` is how many it pretends to have."""

    name: str
    address: str
    gpus: int = 0


@dataclass(frozen=True)
class Plan:
    """Everything the supervisor needs to know; kept as JSON in the state directory.

    `network` is the /24 as its first three bytes ("198.18.4"), `mtu` in bytes that of the machine's uplink.
    `tree`, `registry` and `models` are the read-only directories that hosts, registry and model source show.
    """

    shape: Shape
    network: str
    mtu: int
    tree: str
    registry: str
    models: str

    @property
    def gateway(self) -> str:
        """The machine's address in the lab."""
        return f"{self.network}.1"

    @property
    def services(self) -> str:
        """The address of registry and model source."""
        return f"{self.network}.2"

    @property
    def subnet(self) -> str:
        return f"{self.network}.0/24"

    @property
    def uplink(self) -> str:
        """The machine's end of the cable into the lab; interface names have 15 characters at most."""
        return "sglab-" + self.network.split(".", 1)[1].replace(".", "-")

    @property
    def registry_address(self) -> str:
        return f"{self.services}:{REGISTRY_PORT}"

    @property
    def model_source(self) -> str:
        return f"http://{self.services}:{MODEL_SOURCE_PORT}"

    @property
    def hosts(self) -> tuple[Host, ...]:
        return (*self.servers, self.gateway_host) if self.gateway_host else self.servers

    @property
    def servers(self) -> tuple[Host, ...]:
        """The hosts that have GPUs."""
        return tuple(
            Host(f"{self.shape.name}-{number}", f"{self.network}.{FIRST_HOST + number - 1}", self.shape.gpus)
            for number in range(1, self.shape.hosts + 1)
        )

    @property
    def gateway_host(self) -> Host | None:
        """A host without GPUs that gateways run on; None where the lab has none."""
        address = f"{self.network}.{FIRST_HOST + self.shape.hosts}"
        return Host(f"{self.shape.name}-gw", address) if self.shape.gateway else None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """A plan as another version may have written it, too: what is not known here is left out."""
        data: dict[str, Any] = json.loads(text)
        shape = {field.name: data["shape"][field.name] for field in fields(Shape) if field.name in data["shape"]}
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        return cls(**{**known, "shape": Shape(**shape)})


@dataclass(frozen=True)
class Folder:
    """The state directory of one lab and the things in it."""

    root: Path

    @property
    def plan(self) -> Path:
        """What the supervisor is to build."""
        return self.root / "plan.json"

    @property
    def status(self) -> Path:
        """How far it is; written by the supervisor alone."""
        return self.root / "status.json"

    @property
    def control(self) -> Path:
        """The supervisor's socket, for requests."""
        return self.root / "control"

    @property
    def inventory(self) -> Path:
        """For Ansible and for `sglang-ops deploy --inventory`."""
        return self.root / "inventory.yml"

    @property
    def deployment(self) -> Path:
        """A deployment file that works as it is."""
        return self.root / "deployment.yaml"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def ssh(self) -> Path:
        """The key made for this lab, known_hosts and a configuration for `ssh -F`."""
        return self.root / "ssh"

    @property
    def disk_image(self) -> Path:
        """The file that holds all that hosts and registry write."""
        return self.root / "disk.img"

    @property
    def disk(self) -> Path:
        """Where the supervisor, and nobody else, sees the content of the disk."""
        return self.root / "disk"

    @property
    def registry(self) -> Path:
        """The registry's layers and its configuration."""
        return self.disk / "registry"

    def host(self, name: str) -> Path:
        """Where the layers of a host lie."""
        return self.disk / "hosts" / name

    def log(self, name: str) -> Path:
        """The console of a host, or the output of a service."""
        return self.logs / f"{name}.log"

    def load_plan(self) -> Plan | None:
        """The plan, or None where there is no lab or only the beginning of one."""
        try:
            return Plan.from_json(self.plan.read_text())
        except FileNotFoundError:
            return None


def state_root() -> Path:
    """The directory of all labs' state directories ($SGLANG_OPS_LAB_STATE)."""
    return Path(os.environ.get("SGLANG_OPS_LAB_STATE", "/var/lib/sglang-ops/labs")).absolute()


def cache_root() -> Path:
    """What labs share and keep: trees, images, models ($SGLANG_OPS_LAB_CACHE)."""
    return Path(os.environ.get("SGLANG_OPS_LAB_CACHE", "/var/cache/sglang-ops/lab")).absolute()


def folder(name: str) -> Folder:
    return Folder(state_root() / name)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.chmod(mode)
    partial.replace(path)


def _within(option: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{option} {value} is out of range.", fix=f"Use {low} to {high}.")


def _one_of(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{option} {value} is not known.", fix=f"Use {' or '.join(choices)}.")
