"""Hosts and deployments to plan for, close to what real ones report."""

from __future__ import annotations

from typing import Any

from sglang_ops.planning import HostFacts, HostPlan, ResolvedImage, Secrets, Settings, Wanted, plan
from sglang_ops.spec import Deployment, load_mapping

DIGEST = "sha256:" + "ab" * 32
IMAGE = ResolvedImage("lmsysorg/sglang:v0.5.23", f"lmsysorg/sglang@{DIGEST}", 1_000_000, "0.5.23")
COMMIT = "c" * 40
HUB = "/var/lib/sglang-ops/huggingface/hub"
MODEL = {"repo": "org/m", "hub": HUB, "commit": COMMIT, "cached": True, "bytes": 500}


def cdi(count: int, *, hooks: bool = False) -> list[dict[str, str]]:
    rows = "".join(
        f'  - name: "{index}"\n    containerEdits:\n      deviceNodes:\n        - path: /dev/nvidia{index}\n'
        for index in range(count)
    )
    extra = "containerEdits:\n  env: [A=1]\n"
    extra += "  hooks:\n    - hookName: createContainer\n      path: /usr/bin/nvidia-cdi-hook\n" if hooks else ""
    return [{"path": "/etc/cdi/nvidia.yaml", "text": f"kind: nvidia.com/gpu\ndevices:\n{rows}{extra}"}]


def host(*, gpus: int = 4, **changes: Any) -> HostFacts:
    """A host with everything in place and nothing deployed."""
    facts: dict[str, Any] = {
        "host": "gpu-1",
        "address": "192.0.2.1",
        "gpus": [{"index": index, "uuid": f"GPU-{index}", "memory_total_mib": 81559} for index in range(gpus)],
        "cdi": cdi(gpus),
        "engine": {"name": "docker", "path": "/usr/bin/docker", "version": "28.2.2", "running": True},
        "images": {IMAGE.digest_ref: True},
        "models": [MODEL],
        "disks": [
            {"path": "/var/lib/docker", "free_bytes": 10**12, "device": 1},
            {"path": HUB, "free_bytes": 10**12, "device": 1},
        ],
    }
    return HostFacts.model_validate(facts | changes)


def deployment(**changes: Any) -> Deployment:
    base = {"served_model_name": "m", "hf_model_handle": "org/m", "image": IMAGE.ref}
    return load_mapping({"deployment": base | changes}, "test").deployment


def planned(
    wanted: Deployment, facts: HostFacts, settings: Settings | None = None, secrets: Secrets | None = None
) -> HostPlan:
    return plan([Wanted(wanted, IMAGE, secrets or Secrets())], facts, settings or Settings())


def deployed(made: HostPlan, **changes: Any) -> dict[str, Any]:
    """The facts of a service as they are after `made` was applied and answers."""
    service = made.services[0]
    record = {
        "gpus": list(service.gpus), "port": service.port, "image": service.image, "content": service.content,
    }
    return {
        "name": service.name, "release": service.release, "stable": service.release, "record": record,
        "unit": service.unit, "state": "active", "probe": {"ok": True},
    } | changes
