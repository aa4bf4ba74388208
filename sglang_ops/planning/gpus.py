"""Which GPUs a service gets: those the file names, those it has already, else the free ones that are joined best."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_ops.planning import topology
from sglang_ops.planning.command import arguments, option
from sglang_ops.planning.facts import HostFacts, Service
from sglang_ops.planning.problems import Problem
from sglang_ops.spec import Deployment

# A GPU without work shows a few MiB to a few hundred MiB of driver and context memory.
IDLE_MEMORY_MIB = 1024


def choose(
    deployment: Deployment, facts: HostFacts, now: HostFacts | None = None
) -> tuple[tuple[int, ...], list[Problem]]:
    """The host's GPU numbers for the service of `deployment`, or why it cannot have them.

    `facts` has the services that stay or were placed already, `now` those that run at this moment.
    """
    now = now or facts
    needed = deployment.gpus_needed
    if on_cpu(deployment) and not facts.gpus:
        return (), []
    if facts.gpu_error and not facts.gpus:
        return (), [Problem("gpus", f"{facts.host} shows no GPUs: {facts.gpu_error}.")]
    others = [service for service in facts.services if service.name != deployment.service_name]
    named = deployment.env_vars.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return _named(named.value, deployment, facts, others)
    present = [gpu.index for gpu in facts.gpus]
    own = now.service(deployment.service_name)
    if own and len(own.gpus) == needed and set(own.gpus) <= set(present) and not _users(own.gpus, deployment, others):
        return own.gpus, []
    free = _free(deployment, facts, now, others)
    if len(free) < needed:
        return (), [Problem("gpus", _too_few(deployment, facts, others, free))]
    return topology.best(free, needed, topology.links(facts.topology)), []


def available(deployment: Deployment, facts: HostFacts, now: HostFacts) -> tuple[int, ...]:
    """Every GPU that the service could have: those that the file names, else those that nobody else has."""
    others = [service for service in facts.services if service.name != deployment.service_name]
    named = deployment.env_vars.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return _named(named.value, deployment, facts, others)[0]
    return tuple(_free(deployment, facts, now, others))


def advice(gpus: Sequence[int], deployment: Deployment, facts: HostFacts, now: HostFacts) -> list[str]:
    """A warning where the file names GPUs that only the system bus joins, while better joined ones are free."""
    if "CUDA_VISIBLE_DEVICES" not in deployment.env_vars:
        return []
    links = topology.links(facts.topology)
    others = [service for service in facts.services if service.name != deployment.service_name]
    better = topology.best(_free(deployment, facts, now, others), deployment.gpus_needed, links)
    slow, fast = (topology.joining(some, links) for some in (gpus[: deployment.gpus_needed], better))
    if slow != topology.WORST or topology.rank(fast) <= topology.rank(slow):
        return []
    message = f"CUDA_VISIBLE_DEVICES names {_numbers(gpus)}, which only the system bus joins ({slow})."
    return [f"{message} {_numbers(better)} are free and joined by {fast}: name those, or none."]


def _free(deployment: Deployment, facts: HostFacts, now: HostFacts, others: Sequence[Service]) -> list[int]:
    ours = {index for service in now.services for index in service.gpus}
    present = [gpu.index for gpu in facts.gpus]
    return [index for index in present if not _users([index], deployment, others) and not _foreign(facts, index, ours)]


def on_cpu(deployment: Deployment) -> bool:
    return option(arguments(deployment), "--device") == "cpu"


def neighbours(gpus: Sequence[int], deployment: Deployment, facts: HostFacts) -> list[Service]:
    """Other services on the same GPUs."""
    return [item for item in facts.services if item.name != deployment.service_name and set(item.gpus) & set(gpus)]


def _named(
    value: str, deployment: Deployment, facts: HostFacts, others: Sequence[Service]
) -> tuple[tuple[int, ...], list[Problem]]:
    by_uuid = {gpu.uuid: gpu.index for gpu in facts.gpus}
    present = set(by_uuid.values())
    words = [word.strip() for word in value.split(",") if word.strip()]
    indices = [by_uuid[word] if word in by_uuid else int(word) if word.isdecimal() else -1 for word in words]
    host, count, needed = facts.host, len(facts.gpus), deployment.gpus_needed
    problems = []
    absent = [word for word, index in zip(words, indices, strict=True) if index not in present]
    if absent:
        message = f"CUDA_VISIBLE_DEVICES names GPU {', '.join(absent)}, but {host} has {_numbers(present)}."
        problems.append(Problem("gpus", f"{message} Name GPUs of this host by number or UUID."))
    elif len(set(indices)) != len(indices):
        problems.append(Problem("gpus", f"CUDA_VISIBLE_DEVICES is '{value}' and names a GPU twice."))
    elif len(indices) < needed:
        message = f"the deployment needs {needed} GPUs, CUDA_VISIBLE_DEVICES names {len(indices)} of {count}."
        problems.append(Problem("gpus", f"{message} Name {needed}, or lower tensor_parallel_size."))
    for user in _users(indices, deployment, others):
        clash = ", ".join(str(index) for index in indices if index in user.gpus)
        message = f"GPU {clash} of {host} is used by {user.name}."
        remedy = "Choose others in CUDA_VISIBLE_DEVICES, remove it, or set share_gpus: true in both deployments."
        problems.append(Problem("gpus", f"{message} {remedy}"))
    return tuple(indices), problems


def _users(indices: Sequence[int], deployment: Deployment, others: Sequence[Service]) -> list[Service]:
    """Services that have one of these GPUs to themselves, or that this one will not share with."""
    return [
        service
        for service in others
        if set(service.gpus) & set(indices) and not (deployment.share_gpus and service.shares_gpus)
    ]


def _foreign(facts: HostFacts, index: int, ours: set[int]) -> bool:
    """Whether something that we did not deploy holds memory on the GPU."""
    gpu = next(gpu for gpu in facts.gpus if gpu.index == index)
    return index not in ours and gpu.memory_used_mib > IDLE_MEMORY_MIB


def _too_few(deployment: Deployment, facts: HostFacts, others: Sequence[Service], free: Sequence[int]) -> str:
    sizes = f"tensor {deployment.tensor_parallel_size} × data {deployment.data_parallel_size}"
    if deployment.pipeline_parallel_size > 1:
        sizes += f" × pipeline {deployment.pipeline_parallel_size}"
    used = [f"{service.name} uses {_numbers(service.gpus)}" for service in others if service.gpus]
    users = _users([gpu.index for gpu in facts.gpus], deployment, others)
    held = {index for service in users for index in service.gpus}
    taken = [gpu for gpu in facts.gpus if gpu.index not in free and gpu.index not in held]
    used += [f"GPU {gpu.index} has {gpu.memory_used_mib} MiB in use by another process" for gpu in taken]
    because = f" ({'; '.join(used)})" if used else ""
    return (
        f"the deployment needs {deployment.gpus_needed} GPUs ({sizes}), {facts.host} has {len(free)} free of "
        f"{len(facts.gpus)}{because}. Lower tensor_parallel_size or data_parallel_size, or free GPUs."
    )


def _numbers(indices: Sequence[int] | set[int]) -> str:
    return "GPU " + ", ".join(str(index) for index in sorted(indices)) if indices else "no GPUs"
