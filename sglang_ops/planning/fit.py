"""Whether a service fits the host: how many GPUs it takes, which, and what their memory holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sglang_ops.planning import capacity, gpus
from sglang_ops.planning.architecture import Architecture, UnknownArchitecture
from sglang_ops.planning.command import ModelSource, server_argv
from sglang_ops.planning.constraints import constraints
from sglang_ops.planning.facts import Gpu, HostFacts, ModelFiles, Service
from sglang_ops.planning.memory import CONTEXT_BYTES, MIB, NCCL_BYTES, GpuMemory, MemoryPlan
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.sizes import Sizes, overrides
from sglang_ops.spec import Deployment

AUTO = "auto"


@dataclass(frozen=True)
class Fit:
    """`deployment` with its size settled; `memory` is None where nothing can be computed. `context` in tokens."""

    deployment: Deployment
    gpus: tuple[int, ...] = ()
    memory: MemoryPlan | None = None
    context: int | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Model:
    """What is known of the model; `architecture` is None where its configuration says too little."""

    architecture: Architecture | None
    weight_bytes: int
    doubt: str = ""


def fit(
    deployment: Deployment,
    source: ModelSource,
    files: ModelFiles | None,
    facts: HostFacts,
    now: HostFacts,
    release: str | None,
) -> Fit:
    """Choose GPUs and count their memory. `facts` is the host as the service will find it, `now` as it is."""
    model = _model(deployment, source, files)
    try:
        settled = _settle(deployment, source, model, facts, now, release)
        if isinstance(settled, Problem):
            return Fit(deployment, problems=(settled,))
        sizes = Sizes.of(server_argv(settled, source))
    except ValueError as error:
        return Fit(deployment, problems=(Problem("arguments", f"{error} Give it a number."),))
    chosen, problems = gpus.choose(settled, facts, now)
    problems += constraints(model.architecture, server_argv(settled, source), nodes=settled.nodes)
    context = sizes.context_length or (model.architecture.context_length if model.architecture else None)
    advice = [f"{settled.service_name}: {text}" for text in gpus.advice(chosen, settled, facts, now)]
    made = Fit(settled, chosen, None, context, tuple(problems), tuple(advice))
    given = [gpu for gpu in facts.gpus if gpu.index in chosen]
    if problems or gpus.on_cpu(settled) or not given or not all(gpu.memory_total_mib for gpu in given):
        return made
    if model.architecture is None:
        doubt = f"the memory of {settled.service_name} is not planned: {model.doubt}."
        return replace(made, warnings=(*made.warnings, doubt))
    return _with_memory(made, model, model.architecture, sizes, given, facts, now, release)


def held_mib(memory: Mapping[str, Any]) -> int:
    """What a server with this plan (see `as_mapping`) holds of each of its GPUs."""
    taken = CONTEXT_BYTES + (NCCL_BYTES if memory["gpus"] > 1 else 0) + memory["graphs"]
    return int(memory["free_before"] - memory["free_after"] + taken) // MIB


def _model(deployment: Deployment, source: ModelSource, files: ModelFiles | None) -> _Model:
    if files is None or files.config is None:
        return _Model(None, 0, "its config.json cannot be read")
    try:
        architecture = Architecture.of(files.config, overrides(server_argv(deployment, source)))
    except UnknownArchitecture as unknown:
        return _Model(None, files.weight_bytes, str(unknown))
    return _Model(architecture, files.weight_bytes)


def _settle(
    deployment: Deployment, source: ModelSource, model: _Model, facts: HostFacts, now: HostFacts, release: str | None
) -> Deployment | Problem:
    """`tensor_parallel_size: auto` as a number. Raises ValueError for an argument that is no number."""
    if deployment.tensor_parallel_size != AUTO:
        return deployment
    single = deployment.model_copy(update={"tensor_parallel_size": 1})
    if gpus.on_cpu(single):
        return single
    free = gpus.available(single, facts, now)
    devices = [gpu for gpu in facts.gpus if gpu.index in free]
    if model.architecture is None or not all(gpu.memory_total_mib for gpu in devices):
        why = model.doubt or "nothing tells how much memory the GPUs have"
        message = f"tensor_parallel_size: auto of {deployment.service_name} cannot be decided: {why}."
        return Problem("gpus", f"{message} Write a number.")
    if not devices:
        return single  # choosing GPUs says why there are none
    sizes = Sizes.of(server_argv(single, source))
    memory = [_memory_of(gpu, single, facts, now) for gpu in devices]
    ranks = capacity.smallest_tp(model.architecture, model.weight_bytes, memory, sizes, release=release)
    return ranks if isinstance(ranks, Problem) else deployment.model_copy(update={"tensor_parallel_size": ranks})


def _with_memory(
    made: Fit,
    model: _Model,
    architecture: Architecture,
    sizes: Sizes,
    given: Sequence[Gpu],
    facts: HostFacts,
    now: HostFacts,
    release: str | None,
) -> Fit:
    free = set(gpus.available(made.deployment, facts, now)) - set(made.gpus)
    found = capacity.check(
        architecture,
        model.weight_bytes,
        [_memory_of(gpu, made.deployment, facts, now) for gpu in given],
        sizes,
        release=release,
        spare=[_memory_of(gpu, made.deployment, facts, now) for gpu in facts.gpus if gpu.index in free],
    )
    name = made.deployment.service_name
    problems = [Problem(error.check, f"{name} on {facts.host}: {error.message}") for error in found.errors]
    sharing = gpus.neighbours(made.gpus, made.deployment, facts)
    if sharing and not found.plan.mem_fraction_given:
        message = f"{name} shares GPUs with {sharing[0].name}, and SGLang takes nearly all memory that it finds free."
        problems = [Problem("memory", f"{message} Set --mem-fraction-static in extra_args of both.")]
    warnings = tuple(f"{name}: {text}" for text in found.warnings)
    return replace(made, memory=found.plan, problems=tuple(problems), warnings=(*made.warnings, *warnings))


def _memory_of(gpu: Gpu, deployment: Deployment, facts: HostFacts, now: HostFacts) -> GpuMemory:
    """The GPU without what the service's neighbours on it hold."""
    sharing = gpus.neighbours([gpu.index], deployment, facts)
    return GpuMemory(gpu.memory_total_mib, sum(_held(service, gpu, now) for service in sharing))


def _held(service: Service, gpu: Gpu, now: HostFacts) -> int:
    planned = service.record.get("memory")
    if planned:
        return held_mib(planned)
    running = now.service(service.name)
    return gpu.memory_used_mib if running and gpu.index in running.gpus else 0


def as_mapping(memory: MemoryPlan | None) -> dict[str, Any] | None:
    """For records and JSON: the plan with the numbers that follow from it."""
    return asdict(memory) | {"requests": memory.requests, "free_after": memory.free_after} if memory else None
