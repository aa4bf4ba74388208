"""How GPUs reach the container: by CDI name, or by the same edits spelled out for engines older than CDI.

The Container Device Interface is the way because a legacy-hook container loses its GPUs on
`systemctl daemon-reload`. Docker knows CDI from 25.0 on, podman from 4.1 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from sglang_ops.planning.facts import CdiSpec, HostFacts
from sglang_ops.planning.problems import Problem

KIND = "nvidia.com/gpu"
_CDI_SINCE = {"docker": (25, 0), "podman": (4, 1)}


def flags(gpus: Sequence[int], facts: HostFacts) -> tuple[tuple[str, ...], list[Problem]]:
    """`docker run`/`podman run` flags that hand over exactly `gpus`, or why that cannot be done."""
    if not gpus:
        return (), []
    specs = [_parse(spec) for spec in facts.cdi]
    devices = {device.get("name"): (spec, device) for spec in specs for device in spec.get("devices") or []}
    absent = [str(index) for index in gpus if str(index) not in devices]
    if absent:
        where = ", ".join(spec.path for spec in facts.cdi) or "no CDI specification"
        remedy = "Run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` on the host."
        message = f"{facts.host} has no CDI device {KIND}={', '.join(absent)} (found: {where}). {remedy}"
        return (), [Problem("cdi", message)]
    if knows_cdi(facts):
        return tuple(word for index in gpus for word in ("--device", f"{KIND}={index}")), []
    return _spelled_out([devices[str(index)] for index in gpus], facts)


def knows_cdi(facts: HostFacts) -> bool:
    """Whether the engine resolves CDI names itself. An engine not yet installed is judged by its candidate."""
    version = tuple(int(part) for part in (facts.engine.version or "0.0").split(".")[:2] if part.isdecimal())
    return version >= _CDI_SINCE[facts.engine.name]


def _parse(spec: CdiSpec) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = yaml.load(spec.text, Loader=loader)  # noqa: S506 (a safe loader)
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) and data.get("kind") == KIND else {}


def _spelled_out(
    chosen: Sequence[tuple[dict[str, Any], dict[str, Any]]], facts: HostFacts
) -> tuple[tuple[str, ...], list[Problem]]:
    edits = [device.get("containerEdits") or {} for _, device in chosen]
    edits.append(chosen[0][0].get("containerEdits") or {})
    if any(edit.get("hooks") for edit in edits):
        engine = facts.engine
        message = (
            f"{engine.name} {engine.version} on {facts.host} does not know CDI, and the GPU driver needs it. "
            "Install Docker 25 or newer, or set container_engine: podman."
        )
        return (), [Problem("cdi", message)]
    words: dict[tuple[str, str], None] = {}
    for edit in edits:
        for name in edit.get("env") or []:
            words["--env", name] = None
        for node in edit.get("deviceNodes") or []:
            words["--device", f"{node.get('hostPath') or node['path']}:{node['path']}"] = None
        for mount in edit.get("mounts") or []:
            read_only = ",readonly" if "ro" in (mount.get("options") or []) else ""
            source, target = mount["hostPath"], mount["containerPath"]
            words["--mount", f"type=bind,source={source},target={target}{read_only}"] = None
    return tuple(word for pair in words for word in pair), []
