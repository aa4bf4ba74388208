"""Whether a second server of a service fits beside the one that serves, and what it is: the other way to change it.

Behind a gateway a service can change without a gap: a second server with the new release starts on another port (and
other GPUs), passes the gate, takes requests; only then does the service itself stop, start and join; the second goes.
The service keeps its unit, port and GPUs, so nothing else needs to know. A release that is bad is found on the second
server, and the one that serves is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sglang_ops.planning import devices, gpus, topology
from sglang_ops.planning.beside import name_beside, port_beside
from sglang_ops.planning.command import arguments
from sglang_ops.planning.draft import Draft
from sglang_ops.planning.facts import HostFacts, Service
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.service import ServicePlan, resolve, service_plan
from sglang_ops.planning.settings import Settings
from sglang_ops.planning.sizes import present
from sglang_ops.spec import Deployment

GIB = 2**30
LEAST_RESERVE = GIB
RESERVED_PART = 20  # one part in so many of the host's memory stays free
# Ports that SGLang chooses itself unless it is told; two servers of one host cannot both have them.
OWN_PORTS = ("--nccl-port", "--dist-init-addr", "--grpc-port", "--engine-info-bootstrap-port")


@dataclass(frozen=True)
class Way:
    """How a service changes, and why so; `gpus` are those of the second server."""

    word: Literal["surge", "stop-start"]
    why: str
    gpus: tuple[int, ...] = ()


def left_over(name: str, facts: HostFacts) -> Service | None:
    """The second server of a change that did not end."""
    found = facts.service(name_beside(name))
    return found if found and found.record.get("kind") == "surge" else None


def way(
    service: ServicePlan, deployment: Deployment, facts: HostFacts, planned: Sequence[ServicePlan], settings: Settings
) -> Way:
    """How `service`, which serves now and is to change, does so. `planned` are all services of the host's plan."""
    reason = _impossible(service, deployment, facts, settings)
    if reason:
        return Way("stop-start", reason)
    return _on_gpus(service, facts, planned) if service.gpus else _in_memory(service, facts)


def _impossible(service: ServicePlan, deployment: Deployment, facts: HostFacts, settings: Settings) -> str:
    if not service.gateways:
        return "its host is drained" if deployment.gateway and facts.drained else "no gateway is in front of it"
    if settings.surge == "never":
        return "rollout.surge is never"
    if deployment.nodes > 1:
        return f"it spreads over {deployment.nodes} hosts"
    if deployment.command is not None:
        return "`command` says its port"
    if "CUDA_VISIBLE_DEVICES" in deployment.env_vars:
        return "CUDA_VISIBLE_DEVICES says its GPUs"
    fixed = next((flag for flag in OWN_PORTS if present(arguments(deployment), flag)), None)
    if fixed:
        return f"{fixed} gives it a port of its own"
    other = facts.service(name_beside(service.name))
    if other and not left_over(service.name, facts):
        return f"{other.name} is another service"
    return ""


def _on_gpus(service: ServicePlan, facts: HostFacts, planned: Sequence[ServicePlan]) -> Way:
    """GPUs that no service has, and as large as its own: SGLang takes nearly all memory of those that it gets."""
    beside = name_beside(service.name)
    used = {index for item in facts.services if item.name != beside for index in item.gpus}
    used |= {index for item in planned for index in item.gpus}
    ours = {index for item in facts.services for index in item.gpus}
    own = [gpu.memory_total_mib for gpu in facts.gpus if gpu.index in service.gpus]
    free = [
        gpu.index
        for gpu in facts.gpus
        if gpu.index not in used
        and (gpu.index in ours or gpu.memory_used_mib <= gpus.IDLE_MEMORY_MIB)
        and gpu.memory_total_mib >= min(own, default=0)
    ]
    needed = len(service.gpus)
    if len(free) < needed:
        there = f"{len(free)} of {len(facts.gpus)} are free"
        return Way("stop-start", f"a second one needs {_counted(needed)}, and {there}")
    chosen = topology.best(free, needed, topology.links(facts.topology))
    return Way("surge", f"GPU {', '.join(map(str, chosen))} free beside it", tuple(chosen))


def _counted(number: int) -> str:
    return "1 GPU" if number == 1 else f"{number} GPUs"


def _in_memory(service: ServicePlan, facts: HostFacts) -> Way:
    """A second one takes what the first does; some of the host's memory stays free."""
    deployed = facts.service(service.name)
    held = deployed.resident_bytes if deployed else None
    if facts.memory is None or held is None:
        return Way("stop-start", "how much memory it takes is not known")
    reserve = max(LEAST_RESERVE, facts.memory.total // RESERVED_PART)
    said = f"{facts.memory.available / GIB:.1f} GiB are free, {held / GIB:.1f} GiB in use by it"
    if facts.memory.available < held + reserve:
        return Way("stop-start", f"{said}, and {reserve / GIB:.1f} GiB stay free")
    return Way("surge", said)


def with_way(
    service: ServicePlan, made: Draft, facts: HostFacts, planned: Sequence[ServicePlan], settings: Settings
) -> tuple[ServicePlan, list[Problem]]:
    """The service with the way in which it changes, its second server included, or why that cannot be."""
    stray = left_over(service.name, facts)
    left = list(stray.record.get("gateways") or ()) if stray else []
    if stray:
        service = replace(service, aside={"name": stray.name, "gateways": left})
        if service.action == "none":
            why = "a second server is left beside it from a change that did not end"
            service = replace(service, action="check", why=why)
    if service.action != "restart":
        return service, []
    chosen = way(service, made.deployment, facts, planned, settings)
    service = replace(service, way=chosen.word, way_why=chosen.why)
    if chosen.word != "surge":
        return service, []
    second, problems = _second(service, made, chosen, facts, planned, settings)
    entries = [entry for entry in left if entry not in second.gateways]
    aside = {"name": second.name, "gateways": [*entries, *second.gateways]}
    return replace(service, surge=second, aside=aside, outage="none"), problems


def _second(
    service: ServicePlan,
    made: Draft,
    chosen: Way,
    facts: HostFacts,
    planned: Sequence[ServicePlan],
    settings: Settings,
) -> tuple[ServicePlan, list[Problem]]:
    port, name = port_beside(service.port), name_beside(service.name)
    flags, problems = devices.flags(chosen.gpus, facts) if chosen.gpus else (made.flags, [])
    deployment = made.deployment.model_copy(update={"name": name.removeprefix("sglang-"), "port": port})
    placed = replace(
        made,
        wanted=replace(made.wanted, deployment=deployment),
        fit=replace(made.fit, deployment=deployment, gpus=chosen.gpus),
        flags=flags,
    )
    second = service_plan(resolve(placed, facts, settings), facts)
    entries = tuple({**entry, "url": f"{entry['url'].rpartition(':')[0]}:{port}"} for entry in service.gateways)
    gate = {**second.gate, "beside": service.name}
    problems = [*problems, *_clash(service.name, port, facts, planned)]
    return replace(second, kind="surge", gateways=entries, gate=gate), problems


def _clash(name: str, port: int, facts: HostFacts, planned: Sequence[ServicePlan]) -> list[Problem]:
    beside = name_beside(name)
    owner = next((item.name for item in planned if item.port == port), None)
    owner = owner or next((item.name for item in facts.services if item.port == port and item.name != beside), None)
    what = f"belongs to {owner}" if owner else ""
    for listener in facts.listeners if not owner and not left_over(name, facts) else ():
        if listener.port == port:
            who = f"{listener.process} (pid {listener.pid})" if listener.pid else "another process"
            what = f"is taken by {who}"
    if not what:
        return []
    message = f"port {port} on {facts.host}, on which a second {name} would serve while the first one changes, {what}."
    return [Problem("port", f"{message} Free it, or deploy with --no-surge (rollout.surge: never).")]
