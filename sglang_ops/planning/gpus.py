"""Which GPUs a service gets: those the file names, those it has already, else the lowest free ones."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_ops.planning.command import option
from sglang_ops.planning.facts import HostFacts, Service
from sglang_ops.planning.problems import Problem
from sglang_ops.spec import Deployment

# A GPU without work shows a few MiB to a few hundred MiB of driver and context memory.
IDLE_MEMORY_MIB = 1024


def choose(deployment: Deployment, facts: HostFacts) -> tuple[tuple[int, ...], list[Problem]]:
    """The host's GPU numbers for the service of `deployment`, or why it cannot have them."""
    needed = deployment.gpus_needed
    if option(deployment.extra_args, "--device") == "cpu" and not facts.gpus:
        return (), []
    if facts.gpu_error and not facts.gpus:
        return (), [Problem("gpus", f"{facts.host} shows no GPUs: {facts.gpu_error}.")]
    own = facts.service(deployment.service_name)
    others = [service for service in facts.services if service.name != deployment.service_name]
    named = deployment.env_vars.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return _named(named.value, needed, facts, others)
    present = [gpu.index for gpu in facts.gpus]
    if own and len(own.gpus) == needed and set(own.gpus) <= set(present) and not _users(own.gpus, others):
        return own.gpus, []
    free = [index for index in present if not _users([index], others) and not _foreign(facts, index, own)]
    if len(free) < needed:
        return (), [Problem("gpus", _too_few(deployment, facts, others, free))]
    return tuple(free[:needed]), []


def _named(
    value: str, needed: int, facts: HostFacts, others: Sequence[Service]
) -> tuple[tuple[int, ...], list[Problem]]:
    by_uuid = {gpu.uuid: gpu.index for gpu in facts.gpus}
    present = set(by_uuid.values())
    words = [word.strip() for word in value.split(",") if word.strip()]
    indices = [by_uuid[word] if word in by_uuid else int(word) if word.isdecimal() else -1 for word in words]
    host, count = facts.host, len(facts.gpus)
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
    for user in _users(indices, others):
        clash = ", ".join(str(index) for index in indices if index in user.gpus)
        message = f"GPU {clash} of {host} is used by {user.name}."
        problems.append(Problem("gpus", f"{message} Choose others in CUDA_VISIBLE_DEVICES, or remove it."))
    return tuple(indices), problems


def _users(indices: Sequence[int], others: Sequence[Service]) -> list[Service]:
    return [service for service in others if set(service.gpus) & set(indices)]


def _foreign(facts: HostFacts, index: int, own: Service | None) -> bool:
    """Whether something that we did not deploy holds memory on the GPU."""
    if own and index in own.gpus:
        return False
    gpu = next(gpu for gpu in facts.gpus if gpu.index == index)
    return gpu.memory_used_mib > IDLE_MEMORY_MIB


def _too_few(
    deployment: Deployment, facts: HostFacts, others: Sequence[Service], free: Sequence[int]
) -> str:
    sizes = f"tensor {deployment.tensor_parallel_size} × data {deployment.data_parallel_size}"
    if deployment.pipeline_parallel_size > 1:
        sizes += f" × pipeline {deployment.pipeline_parallel_size}"
    used = [f"{service.name} uses {_numbers(service.gpus)}" for service in others if service.gpus]
    taken = [gpu for gpu in facts.gpus if gpu.index not in free and not _users([gpu.index], others)]
    used += [f"GPU {gpu.index} has {gpu.memory_used_mib} MiB in use by another process" for gpu in taken]
    because = f" ({'; '.join(used)})" if used else ""
    return (
        f"the deployment needs {deployment.gpus_needed} GPUs ({sizes}), {facts.host} has {len(free)} free of "
        f"{len(facts.gpus)}{because}. Lower tensor_parallel_size or data_parallel_size, or free GPUs."
    )


def _numbers(indices: Sequence[int] | set[int]) -> str:
    return "GPU " + ", ".join(str(index) for index in sorted(indices)) if indices else "no GPUs"
