"""What one host is and runs, as the module `sglang_facts` reports it (read-only, one execution)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Gpu(_Fact):
    """One GPU as `nvidia-smi` names it; memory in MiB."""

    index: int
    uuid: str = ""
    name: str = ""
    memory_total_mib: int = 0
    memory_used_mib: int = 0
    driver: str = ""


class CdiSpec(_Fact):
    """One CDI specification file of kind nvidia.com/gpu, as text (JSON or YAML)."""

    path: str
    text: str


class Engine(_Fact):
    """The container engine asked for: what must be done before it is usable, or why that cannot be done."""

    name: str = "docker"
    path: str = ""
    version: str | None = None
    running: bool = False
    data_root: str = "/var/lib/docker"
    pending: tuple[str, ...] = ()
    refusal: str = ""


class ModelFiles(_Fact):
    """What memory planning reads of a model: its `config.json`, None where that is unreadable; weights in bytes."""

    config: dict[str, Any] | None = None
    weight_bytes: int = 0


class Model(_Fact):
    """A hub model in the host's cache, or what the hub said of it when it is not there. Sizes in bytes.

    `offered`: it is not there, and another host of the run has it. `out_of_reach`: the hub neither gave nor refused it.
    """

    repo: str
    revision: str = "main"
    hub: str = ""
    commit: str | None = None
    cached: bool = False
    offered: bool = False
    bytes: int = 0
    error: str | None = None
    out_of_reach: bool = False
    files: ModelFiles | None = None


class Listener(_Fact):
    """Who listens on a port that we want."""

    port: int
    pid: int | None = None
    process: str = ""


class Disk(_Fact):
    """Free space below a path; `device` tells which paths share a file system."""

    path: str
    free_bytes: int
    device: int


class Memory(_Fact):
    """The host's own memory, in bytes; `available` can be had without swapping."""

    total: int
    available: int


class Probe(_Fact):
    """What a deployed service answered to the gate's questions, asked once without waiting."""

    ok: bool = False
    layers: tuple[dict[str, Any], ...] = ()


class Service(_Fact):
    """A service that this tool deployed: its release record, the unit file found, its state.

    `rollout` is the record of a roll-out that has not finished here, `failed_rollouts` names those that failed here.
    """

    name: str
    release: str | None = None
    stable: str | None = None
    start_seconds: int | None = None
    record: dict[str, Any] = {}
    unit: str | None = None
    state: str = "inactive"
    probe: Probe = Probe()
    # Of a gateway: the servers that it lists (None while it does not answer), and those it has been told of.
    workers: tuple[dict[str, Any], ...] | None = None
    members: dict[str, str] = {}
    rollout: dict[str, Any] | None = None
    failed_rollouts: tuple[str, ...] = ()
    # What a server without GPUs holds of the host's memory; None where it was not looked at.
    resident_bytes: int | None = None

    @property
    def gpus(self) -> tuple[int, ...]:
        return tuple(self.record.get("gpus", ()))

    @property
    def port(self) -> int | None:
        return self.record.get("port")

    @property
    def shares_gpus(self) -> bool:
        return bool(self.record.get("content", {}).get("share_gpus"))


class Evaluation(_Fact):
    """An evaluation at work on the host, the releases of its services, and how far it is."""

    run: str
    releases: dict[str, str] = {}
    done: int | None = None
    total: int | None = None
    seconds_left: int | None = None


class HostFacts(_Fact):
    """Everything planning needs to know of one host. `topology` is what `nvidia-smi topo -m` says, if it was asked.

    `drained` is set while an operator has taken the host out of its gateways. `interface` leads to the other hosts of
    its group, where a deployment spreads over several. `loaded` has images by digest, by the tag under which they came
    from files: the tags whose registry did not answer.
    `kernels` are the directories below the cache of compiled kernels that hold any, `machine` the mark of the processor
    that they were compiled for.
    """

    host: str
    address: str
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str | None = None
    topology: str = ""
    cdi: tuple[CdiSpec, ...] = ()
    engine: Engine = Engine()
    images: dict[str, bool] = {}
    loaded: dict[str, str] = {}
    models: tuple[Model, ...] = ()
    checkpoints: dict[str, ModelFiles | None] = {}
    arguments: dict[str, dict[str, Any]] = {}
    listeners: tuple[Listener, ...] = ()
    disks: tuple[Disk, ...] = ()
    memory: Memory | None = None
    services: tuple[Service, ...] = ()
    runtime: dict[str, str | None] = {}
    machine: str = ""
    kernels: tuple[str, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    drained: bool = False
    interface: str = ""
    infiniband: bool = False

    def service(self, name: str) -> Service | None:
        return next((service for service in self.services if service.name == name), None)

    def model(self, repo: str, revision: str, hub: str) -> Model | None:
        """The hub model as it was asked for."""
        wanted = (repo, revision, hub)
        return next((item for item in self.models if (item.repo, item.revision, item.hub) == wanted), None)

    def disk(self, path: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.path == path), None)
