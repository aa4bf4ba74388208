"""What `doctor` judges: the facts that plans are made of, and what the module `sglang_doctor` says of the machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from sglang_ops.planning import gpus
from sglang_ops.planning.facts import HostFacts
from sglang_ops.planning.settings import Settings
from sglang_ops.spec import Deployment


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class System(_Fact):
    """The distribution by its os-release names; `secure_boot` is None without EFI. `modules` are loaded."""

    distribution: str = ""
    version: str = ""
    name: str = ""
    kernel: str = ""
    container: bool = False
    headers: bool = True
    dkms: bool = False
    secure_boot: bool | None = None
    modules: tuple[str, ...] = ()


class Clock(_Fact):
    """Seconds since the epoch; `synchronised` is None where the host cannot say."""

    seconds: float = 0.0
    synchronised: bool | None = None


class Limits(_Fact):
    """Bytes; `memlock` is None where there is no limit."""

    memlock: int | None = None
    shm: int = 0


class Cgroups(_Fact):
    version: int = 2
    driver: str = ""
    default_runtime: str = ""


class Storage(_Fact):
    """The file system of a path; `rotational` is None where nothing reliable says."""

    path: str
    type: str = ""
    source: str = ""
    rotational: bool | None = None


class Network(_Fact):
    """The interface of the default route; MTUs in bytes by name of the link."""

    interface: str
    mtu: int
    lower: Mapping[str, int] = {}
    bridges: Mapping[str, int] = {}


class Firewall(_Fact):
    """What drops packets that are not allowed (of nftables: in which chain), and the wanted ports that it allows."""

    program: str
    chain: str = ""
    open: tuple[int, ...] = ()


class PciDevice(_Fact):
    address: str
    driver: str = ""


class GpuHealth(_Fact):
    """What nvidia-smi says of a GPU, in its own words; "" where the driver does not know the question."""

    bus_id: str = ""
    persistence: str = ""
    ecc_uncorrected: str = ""
    remap_pending: str = ""
    remap_failed: str = ""
    fabric: str = ""
    capability: str = ""


class DriverVersions(_Fact):
    module: str = ""
    library: str = ""


class FabricManager(_Fact):
    version: str = ""
    state: str = "inactive"


class Nvidia(_Fact):
    pci: tuple[PciDevice, ...] = ()
    switches: tuple[PciDevice, ...] = ()
    health: Mapping[int, GpuHealth] = {}
    driver: DriverVersions = DriverVersions()
    fabric_manager: FabricManager = FabricManager()
    toolkit: str = ""
    hooks: tuple[str, ...] = ()
    hooks_missing: tuple[str, ...] = ()
    log: tuple[str, ...] = ()


class Machine(_Fact):
    system: System = System()
    clock: Clock = Clock()
    limits: Limits = Limits()
    cgroups: Cgroups = Cgroups()
    storage: tuple[Storage, ...] = ()
    network: Network | None = None
    firewall: Firewall | None = None
    nvidia: Nvidia = Nvidia()


@dataclass(frozen=True)
class Examined:
    """A host and what it is to serve; `in_front` tells that it runs a gateway. `asked` and `answered` are the
    controller's clock around the examination, in seconds since the epoch."""

    facts: HostFacts
    machine: Machine
    settings: Settings
    deployments: tuple[Deployment, ...] = ()
    asked: float = 0.0
    answered: float = 0.0
    in_front: bool = False

    @property
    def host(self) -> str:
        return self.facts.host

    @property
    def driver(self) -> str:
        """The version of the driver that works, "" where none does."""
        return self.facts.gpus[0].driver if self.facts.gpus else ""

    @property
    def for_gpus(self) -> bool:
        """Whether GPUs are wanted of this host, or there."""
        if self.in_front and not self.deployments:
            return False
        wanted = not self.deployments or not all(gpus.on_cpu(item) for item in self.deployments)
        return wanted or bool(self.facts.gpus or self.machine.nvidia.pci)


@dataclass(frozen=True)
class Finding:
    """Something wrong with a host, or with `warning` worth knowing; `check` is a stable word, `remedy` what to do."""

    check: str
    detail: str
    remedy: str
    warning: bool = False


def numbers(version: str) -> tuple[int, ...]:
    """A version for comparing; what is no number ends it."""
    parts = []
    for part in version.split("."):
        digits = "".join(character for character in part if character.isdecimal())
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words))
