"""The container engine and how it hands out GPUs. Each check is pure and says nothing of a host that is fit."""

from __future__ import annotations

import re

from sglang_ops.planning import devices
from sglang_ops.planning.doctor_facts import Examined, Finding, listed, numbers

# The first whose systemd units write the CDI specification anew at every boot and driver change.
TOOLKIT_REFRESHES_SINCE = (1, 18)
_INSTALL_TOOLKIT = (
    "Install nvidia-container-toolkit-base (docs.nvidia.com/datacenter/cloud-native/container-toolkit), which "
    "writes /var/run/cdi/nvidia.yaml by itself"
)
_GENERATE = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
# The driver's libraries in a specification carry its version in their names.
_LIBRARY = re.compile(r"lib(?:cuda|nvidia-ml)\.so\.(\d+\.\d+(?:\.\d+)?)")


def engine(seen: Examined) -> Finding | None:
    """What keeps `deploy` from making the engine ready."""
    told = seen.facts.engine.refusal
    return Finding("engine", *split(told)) if told else None


def engine_pending(seen: Examined) -> Finding | None:
    facts = seen.facts.engine
    if facts.refusal or not facts.pending:
        return None
    remedy = "deploy does it; nothing needs to be done beforehand"
    return Finding("engine", f"{facts.name} is not ready: {', '.join(facts.pending)}", remedy, warning=True)


def cdi(seen: Examined) -> Finding | None:
    """Every GPU can be handed to a container by this engine."""
    if not seen.facts.gpus:
        return None  # without a working driver there is nothing to specify
    _, problems = devices.flags([gpu.index for gpu in seen.facts.gpus], seen.facts)
    if not problems:
        return None
    detail, remedy = split(problems[0].message)
    lacking = "no CDI device" in detail and not seen.machine.nvidia.toolkit
    remedy = f"{_INSTALL_TOOLKIT}; or: {_GENERATE}" if lacking else remedy
    return Finding("cdi", detail.replace(f"{seen.host} has", "there is", 1), remedy)


def cdi_stale(seen: Examined) -> Finding | None:
    """The specification that counts (the last directory wins) was made for the driver that runs."""
    named: set[str] = set()
    path = ""
    for spec in seen.facts.cdi:
        versions = set(_LIBRARY.findall(spec.text))
        named, path = (versions, spec.path) if versions else (named, path)
    if not seen.driver or not named or seen.driver in named:
        return None
    detail = f"{path} was made for driver {listed(sorted(named))}, and {seen.driver} runs"
    remedy = "sudo systemctl restart nvidia-cdi-refresh" if path.startswith(("/run", "/var/run")) else _GENERATE
    return Finding("cdi", detail, remedy.replace("/etc/cdi/nvidia.yaml", path))


def toolkit(seen: Examined) -> Finding | None:
    """The programs that a CDI specification has the engine run are there, and keep it current."""
    nvidia = seen.machine.nvidia
    if nvidia.hooks_missing:
        detail = f"the CDI specification runs {listed(nvidia.hooks_missing)}, which is not installed"
        return Finding("toolkit", detail, f"{_INSTALL_TOOLKIT}.")
    if nvidia.toolkit and numbers(nvidia.toolkit) < TOOLKIT_REFRESHES_SINCE:
        detail = f"container toolkit {nvidia.toolkit} does not renew the CDI specification when the driver changes"
        remedy = f"Install 1.18 or newer, or after every driver update: {_GENERATE}"
        return Finding("toolkit", detail, remedy, warning=True)
    return None


def engine_without_cdi(seen: Examined) -> Finding | None:
    facts = seen.facts
    if not facts.gpus or not facts.engine.version or devices.knows_cdi(facts) or cdi(seen):
        return None
    detail = f"{facts.engine.name} {facts.engine.version} knows no CDI: the GPUs' devices are handed over one by one"
    remedy = "Install Docker 25 or newer, or set container_engine: podman."
    return Finding("engine", detail, remedy, warning=True)


def cgroups(seen: Examined) -> Finding | None:
    """Containers of the legacy hook lose their GPUs at every `systemctl daemon-reload`; those of this tool use CDI."""
    found = seen.machine.cgroups
    if found.default_runtime == "nvidia" and found.driver == "systemd":
        detail = (
            "docker's default runtime is nvidia under the systemd cgroup driver: containers of others lose their "
            "GPUs at every systemctl daemon-reload"
        )
        remedy = (
            'Take "default-runtime" out of /etc/docker/daemon.json and start those containers with '
            '--device nvidia.com/gpu=N, or set "exec-opts": ["native.cgroupdriver=cgroupfs"].'
        )
        return Finding("cgroups", detail, remedy, warning=True)
    if found.version < 2:
        remedy = "sudo grubby --update-kernel=ALL --args=systemd.unified_cgroup_hierarchy=1 && sudo reboot"
        return Finding("cgroups", "control groups are version 1, which is going away", remedy, warning=True)
    return None


def split(message: str) -> tuple[str, str]:
    """A sentence of planning as what is wrong and what to change: the remedy is what follows the first full stop."""
    parts = re.split(r"(?<=[^.])\.\s+(?=[A-Z])", message, maxsplit=1)
    remedy = parts[1] if len(parts) > 1 else "Change the deployment file, or choose another host with --limit."
    return parts[0].rstrip("."), remedy


CHECKS = (engine, engine_pending, cdi, cdi_stale, toolkit, engine_without_cdi, cgroups)
# Those that make no sense on a host that serves without GPUs.
GPU_CHECKS = (cdi, cdi_stale, toolkit, engine_without_cdi)
