"""Whether a server fits its GPUs, why not, and the smallest change with which it would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sglang_ops.planning.architecture import Architecture
from sglang_ops.planning.constraints import constraints
from sglang_ops.planning.memory import GIB, GpuMemory, MemoryPlan, predict
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.sizes import Sizes

# SGLang refuses to share a model out over GPUs of which one has less than this share of another's free memory
# (`_check_tp_memory_balance`, srt/distributed/bootstrap.py).
_BALANCE = 0.9
# Left after the pools, too little for anything to run: 0.99 on an H200 leaves less than nothing and dies, 0.97 leaves
# 2.2 GiB and starts (docs/memory.md).
_MINIMUM_FREE = GIB // 2
# Context lengths are proposed in these steps, and from this length on.
_CONTEXT_STEP, _SHORTEST_CONTEXT = 1024, 4096


@dataclass(frozen=True)
class Capacity:
    """The memory of a server, the reasons why it cannot run so, and what is doubtful."""

    plan: MemoryPlan
    errors: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Server:
    """A server that can be imagined otherwise; `spare` are further GPUs of the host that it could have."""

    architecture: Architecture
    weight_bytes: int
    gpus: tuple[GpuMemory, ...]
    sizes: Sizes
    release: str | None
    spare: tuple[GpuMemory, ...] = ()

    @property
    def plan(self) -> MemoryPlan:
        used = (*self.gpus, *self.spare)[: max(1, self.sizes.gpus)]
        return predict(self.architecture, self.weight_bytes, used, self.sizes, release=self.release)

    def but(self, **changes: object) -> _Server:
        return replace(self, sizes=replace(self.sizes, **changes))  # type: ignore[arg-type]


def check(
    architecture: Architecture,
    weight_bytes: int,
    gpus: Sequence[GpuMemory],
    arguments: Sequence[str] | Sizes,
    *,
    release: str | None = None,
    spare: Sequence[GpuMemory] = (),
) -> Capacity:
    """Predict and judge, with the arguments of `predict`. `spare`: free GPUs of the host beside `gpus`.

    Errors are what is sure: a server that dies at start, or one whose KV cache holds less than one request of the
    full context length. Where the KV cache is only estimated, the latter is a warning.
    """
    sizes = arguments if isinstance(arguments, Sizes) else Sizes.of(arguments)
    server = _Server(architecture, weight_bytes, tuple(gpus), sizes, release, tuple(spare))
    plan = server.plan
    problem = _unbalanced(server) or _too_large(server, plan) or _too_high(server, plan)
    if problem:
        return Capacity(plan, (Problem("memory", problem),), tuple(_doubts(plan)))
    short = _too_short(server, plan)
    if short and plan.fidelity == "exact":
        return Capacity(plan, (Problem("memory", short),), tuple(_doubts(plan)))
    return Capacity(plan, (), (*([short] if short else []), *_doubts(plan)))


def smallest_tp(
    architecture: Architecture,
    weight_bytes: int,
    gpus: Sequence[GpuMemory],
    arguments: Sequence[str] | Sizes,
    *,
    release: str | None = None,
) -> int | Problem:
    """The smallest `tensor_parallel_size` with which a server fits into `gpus`, or why none does."""
    sizes = arguments if isinstance(arguments, Sizes) else Sizes.of(arguments)
    last: Problem | None = None
    for ranks in _ranks(architecture, len(gpus) // (sizes.pp * sizes.dp)):
        tried = replace(sizes, tp=ranks)
        if constraints(architecture, tried):
            continue
        found = check(architecture, weight_bytes, gpus[: tried.gpus], tried, release=release)
        if not found.errors:
            return ranks
        none = f"tensor_parallel_size: auto finds no size that fits {len(gpus)} GPUs"
        last = Problem("memory", f"{none}. With {ranks}: {found.errors[0].message}")
    few = f"tensor_parallel_size: auto finds no size that cuts {architecture.name} across {len(gpus)} free GPUs"
    return last or Problem("memory", f"{few}. Free more GPUs, or lower data_parallel_size.")


def _ranks(architecture: Architecture, most: int) -> list[int]:
    """Sizes worth trying: powers of two, and other divisors of the number of heads."""
    powers = {2**exponent for exponent in range(11)}
    return [ranks for ranks in range(1, most + 1) if ranks in powers or architecture.heads % ranks == 0]


def _unbalanced(server: _Server) -> str:
    free = [gpu.total_mib - gpu.taken_mib for gpu in server.gpus]
    if server.sizes.tp * server.sizes.pp < 2 or min(free) >= _BALANCE * max(free):
        return ""
    return (
        f"one of the GPUs has {min(free)} MiB free and another {max(free)} MiB: SGLang cuts a model only across GPUs "
        f"whose free memory differs by less than a tenth. Choose others in CUDA_VISIBLE_DEVICES."
    )


def _too_large(server: _Server, plan: MemoryPlan) -> str:
    """The weights do not fit, or leave no KV cache: the engine dies while it starts."""
    each = f"on each of {plan.gpus} GPUs" if plan.gpus > 1 else "on the GPU"
    if plan.weights >= plan.free_before:
        message = f"the weights take {_gib(plan.weights)} {each}, where {_gib(plan.free_before)} are free."
        return f"{message} {_choice(_more_gpus(server), 'Use a smaller or a quantised model')}"
    if plan.tokens > 0 or server.sizes.max_total_tokens:
        return ""
    fraction = f"--mem-fraction-static {plan.mem_fraction_static:.3g}"
    origin = "" if plan.mem_fraction_given else ", which SGLang chooses here,"
    message = (
        f"{fraction}{origin} leaves no KV cache: weights take {_gib(plan.weights)} of {_gib(plan.free_before)} {each}."
    )
    return f"{message} {_choice(_remedies(server, plan), 'Use a smaller or a quantised model')}"


def _too_high(server: _Server, plan: MemoryPlan) -> str:
    """The pools leave nothing to work in: the engine runs out of memory while it starts."""
    if plan.free_after >= _MINIMUM_FREE:
        return ""
    table = f"its table of {plan.max_running_requests} requests takes {_gib(plan.request_table)}"
    left = _gib(plan.free_after) if plan.free_after > 0 else "nothing"
    message = (
        f"--mem-fraction-static {plan.mem_fraction_static:.3g} leaves {left} beside weights and KV cache ({table}); "
        f"SGLang itself keeps {_gib(plan.reserve)} free."
    )
    own = server.but(mem_fraction_static=None).plan.mem_fraction_static
    return f"{message} Set it to {own:.3g}, or remove it." if plan.mem_fraction_given else f"{message} Lower it."


def _too_short(server: _Server, plan: MemoryPlan) -> str:
    """One request of the full context length does not fit into the KV cache. SGLang starts all the same."""
    if plan.tokens >= plan.context_length:
        return ""
    limit = server.sizes.max_total_tokens
    if limit and limit < plan.context_length:
        change = f"Raise it to {plan.context_length}" if _holds(server.but(max_total_tokens=None)) else "Raise it"
        message = f"--max-total-tokens {limit} is less than the context length of {plan.context_length} tokens"
        return f"{message}, so that a request of full length never runs. {change}, or set --context-length {limit}."
    about = "" if plan.fidelity == "exact" else "about " if plan.fidelity == "estimate" else "at least "
    message = (
        f"the KV cache holds {about}{plan.tokens} tokens, one request of the full context length needs "
        f"{plan.context_length}: the server would start, and never run such a request."
    )
    return f"{message} {_choice(_remedies(server, plan), 'Use a smaller model, or GPUs with more memory')}"


def _remedies(server: _Server, plan: MemoryPlan) -> Iterator[str]:
    """Changes that have been tried here and help, the smallest first."""
    fraction = plan.fraction_for(plan.context_length)
    raised = server.but(mem_fraction_static=fraction)
    alone = plan.mem_fraction_static < fraction < 1 and _holds(raised) and not _tight(raised.plan)
    if alone:
        yield f"set --mem-fraction-static {fraction:.3f}"
    if context := _context(plan):
        yield f"set --context-length {context}"
    elif not alone:
        yield from _both(server, plan)
    if server.sizes.kv_cache_dtype == "auto" and _holds(server.but(kv_cache_dtype="fp8_e4m3")):
        yield "set --kv-cache-dtype fp8_e4m3"
    yield from _more_gpus(server)


def _both(server: _Server, plan: MemoryPlan) -> Iterator[str]:
    """The highest fraction that leaves half of what SGLang's own rule keeps, with the context that fits then."""
    fraction = (plan.free_before - plan.reserve // 2) * 100 // plan.free_before / 100
    raised = server.but(mem_fraction_static=fraction)
    if plan.mem_fraction_static < fraction < 1 and (context := _context(raised.plan)):
        yield f"set --mem-fraction-static {fraction:.2f} and --context-length {context}"


def _context(plan: MemoryPlan) -> int:
    """The longest context of which the KV cache holds one request, 0 where it is too short to propose."""
    longest = min(plan.tokens, plan.context_length) // _CONTEXT_STEP * _CONTEXT_STEP
    return longest if longest >= _SHORTEST_CONTEXT else 0


def _more_gpus(server: _Server) -> Iterator[str]:
    everything = (*server.gpus, *server.spare)
    for ranks in _ranks(server.architecture, len(everything) // (server.sizes.pp * server.sizes.dp)):
        wider = server.but(tp=ranks)
        if ranks > server.sizes.tp and not constraints(server.architecture, wider.sizes) and _holds(wider):
            yield f"set tensor_parallel_size: {ranks}"
            return


def _holds(server: _Server) -> bool:
    """Whether it starts and holds a request of full length."""
    plan = server.plan
    return plan.tokens >= plan.context_length and plan.free_after >= _MINIMUM_FREE


def _choice(remedies: Iterator[str], otherwise: str) -> str:
    found = list(remedies)
    if not found:
        return f"{otherwise}."
    text = ", or ".join(found)
    return f"{text[0].upper()}{text[1:]}."


def _tight(plan: MemoryPlan) -> bool:
    """Less stays free than half of what SGLang's own rule keeps."""
    return plan.free_after < plan.reserve / 2


def _doubts(plan: MemoryPlan) -> Iterator[str]:
    if plan.tokens and _tight(plan) and plan.mem_fraction_given and plan.free_after >= _MINIMUM_FREE:
        yield (
            f"--mem-fraction-static {plan.mem_fraction_static:.3g} leaves {_gib(plan.free_after)} for activations and "
            f"CUDA graphs, where SGLang's own choice keeps {_gib(plan.reserve)}: it may run out of memory under load."
        )
    if not plan.weights_known:
        yield f"nothing tells how large the model's files are; {_gib(plan.weights)} a GPU are counted by parameters."


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
