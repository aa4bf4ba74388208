"""GPUs that are not there: a CDI specification, device nodes and a stand-in for nvidia-smi.

The engines resolve `--device nvidia.com/gpu=N` for real and refuse a GPU that is not in the specification.
What the stand-in answers is read from a file at every call, so tests can take memory, lose a GPU or age the
driver by changing that file.
"""

from __future__ import annotations

import json
import uuid
from importlib import resources
from typing import Any

SMI = "/usr/bin/nvidia-smi"
ANSWERS = "/etc/sglang-ops-lab/gpus.json"
CDI_SPEC = "/etc/cdi/nvidia.yaml"

_MODEL = "NVIDIA H200"
_MEMORY_MIB = 143771
_DRIVER = "580.95.05"
_CUDA = "13.0"  # the highest that this driver runs
_COMPUTE_CAPABILITY = "9.0"
_NULL_DEVICE = "1:3"  # major and minor number: opens, reads as empty, harmless


def cdi_spec(gpus: int) -> str:
    """The CDI specification of a host with `gpus` GPUs, as nvidia-ctk names things but without hooks.

    Every device brings its node and the variable SGLANG_LAB_GPU_<n>=1, by which a test sees what a container
    was given. JSON is YAML, so it needs no library on any side.
    """
    devices = [{"name": str(gpu), "containerEdits": _device_edits([gpu])} for gpu in range(gpus)]
    devices.append({"name": "all", "containerEdits": _device_edits(range(gpus))})
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "containerEdits": {
            "deviceNodes": [{"path": "/dev/nvidiactl"}],
            "mounts": [_read_only(SMI), _read_only(ANSWERS)],
        },
        "devices": devices,
    }
    return json.dumps(spec, indent=2) + "\n"


def device_nodes(gpus: int) -> str:
    """Lines for tmpfiles.d that make the device nodes at every boot."""
    names = ["nvidiactl", *(f"nvidia{gpu}" for gpu in range(gpus))]
    return "".join(f"c /dev/{name} 0666 root root - {_NULL_DEVICE}\n" for name in names)


def answers(host: str, gpus: int) -> str:
    """What nvidia-smi says on `host` at first: idle GPUs and a driver that is new enough. Memory in MiB.

    `fault` may be set to "no-devices", "no-driver" or "version-mismatch"; a GPU's `lost` to true. NVLink joins all
    GPUs, or those of each of the `islands`, [[0, 2], [1, 3]] say.
    """
    devices: list[dict[str, Any]] = [
        {
            "index": gpu,
            "uuid": f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{gpu}.{host}')}",
            "name": _MODEL,
            "bus_id": f"00000000:{0x1B + 0x08 * gpu:02X}:00.0",
            "memory_total": _MEMORY_MIB,
            "memory_used": 0,
            "utilization": 0,
            "temperature": 31,
            "power": 76.5,
            "ecc_uncorrected": 0,
            "lost": False,
            "processes": [],
        }
        for gpu in range(gpus)
    ]
    facts = {
        "driver_version": _DRIVER,
        "cuda_version": _CUDA,
        "compute_cap": _COMPUTE_CAPABILITY,
        "fault": None,
        "islands": None,
        "gpus": devices,
    }
    return json.dumps(facts, indent=2) + "\n"


def smi() -> str:
    """The program that stands in for nvidia-smi."""
    return (resources.files("sglang_ops.lab") / "assets" / "nvidia-smi").read_text()


def _device_edits(gpus: Any) -> dict[str, Any]:
    return {
        "deviceNodes": [{"path": f"/dev/nvidia{gpu}"} for gpu in gpus],
        "env": [f"SGLANG_LAB_GPU_{gpu}=1" for gpu in gpus],
    }


def _read_only(path: str) -> dict[str, Any]:
    return {"hostPath": path, "containerPath": path, "options": ["ro", "nosuid", "nodev", "bind"]}
