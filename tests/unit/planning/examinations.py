"""Hosts as `doctor` sees them: one that is fit, to be spoilt by a test."""

from __future__ import annotations

from typing import Any

from situations import HUB, cdi, host

from sglang_ops.planning import HostFacts, Settings
from sglang_ops.planning.doctor_facts import Examined, Machine
from sglang_ops.spec import Deployment

DRIVER = "580.95.05"
GPUS = [{"index": i, "uuid": f"GPU-{i}", "memory_total_mib": 81559, "driver": DRIVER} for i in range(4)]
PCI = [{"address": f"0000:{i:02x}:00.0", "driver": "nvidia"} for i in range(4)]
NOUVEAU = [device | {"driver": "nouveau"} for device in PCI]
HEALTH = {
    i: {"bus_id": f"00000000:0{i}:00.0", "persistence": "Enabled", "ecc_uncorrected": "0", "remap_pending": "No",
        "remap_failed": "No", "fabric": "N/A"}
    for i in range(4)
}  # fmt: skip
SMI = "nvidia-smi says: "
SWITCHES = [{"address": "0000:05:00.0"}] * 4
XID = "NVRM: Xid (PCI:0000:1b:00): {}, pid=1, name=python3"


def seen(
    *, deployments: tuple[Deployment, ...] = (), settings: Settings | None = None, asked: float = 1000,
    facts: dict[str, Any] | None = None, **parts: Any,
) -> Examined:  # fmt: skip
    """A fit host, of which `parts` are merged into the machine's and `facts` replace the host's."""
    machine: dict[str, Any] = {
        "system": {"distribution": "ubuntu", "version": "24.04", "name": "Ubuntu 24.04 LTS", "kernel": "6.8.0-1",
                   "secure_boot": True, "dkms": True, "modules": ["nvidia"]},
        "clock": {"seconds": 1001, "synchronised": True},
        "limits": {"memlock": 8 * 2**20, "shm": 64 * 2**30},
        "cgroups": {"version": 2, "driver": "systemd", "default_runtime": "runc"},
        "storage": [{"path": HUB, "type": "ext4", "source": "/dev/nvme0n1", "rotational": False}],
        "network": {"interface": "bond0", "mtu": 1500, "lower": {"eth0": 1500}, "bridges": {"docker0": 1500}},
        "firewall": None,
        "nvidia": {"pci": PCI, "health": HEALTH, "driver": {"module": DRIVER, "library": DRIVER}, "toolkit": "1.20.1"},
    }  # fmt: skip
    for name, change in parts.items():
        both = isinstance(change, dict) and isinstance(machine[name], dict)
        machine[name] = machine[name] | change if both else change
    found = HostFacts.model_validate(host().model_dump() | {"gpus": GPUS} | (facts or {}))
    return Examined(found, Machine.model_validate(machine), settings or Settings(), deployments, asked, asked + 2)


def health(**changes: str) -> dict[str, Any]:
    return {"nvidia": {**NVIDIA, "health": {**HEALTH, 2: HEALTH[2] | changes}}}


NVIDIA = {"pci": PCI, "health": HEALTH, "driver": {"module": DRIVER, "library": DRIVER}, "toolkit": "1.20.1"}
BARE = {"secure_boot": False, "modules": []}
NO_DRIVER = {"gpus": [], "gpu_error": SMI + "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA "
             "driver. Make sure that the latest NVIDIA driver is installed and running."}  # fmt: skip


def made_for(driver: str, path: str) -> dict[str, str]:
    """A specification as `nvidia-ctk cdi generate` writes it: libraries carry the driver's version."""
    return {"path": path, "text": cdi(4)[0]["text"] + f"  mounts:\n    - hostPath: /usr/lib/libcuda.so.{driver}\n"}
