"""What a server will hold in GPU memory: weights, KV cache, and whether both fit.

SGLang's rule, measured on a GPU (docs/memory.md): KV cache = free after loading - free before loading × (1 - f), with
f = `--mem-fraction-static`, per GPU; tokens = that / bytes a token (srt/mem_cache/kv_cache_configurator.py and
srt/model_executor/pool_configurator.py; before 0.5.11 `profile_max_num_token` of model_runner.py).
Pure functions: no host is asked, nothing is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_ops.planning.architecture import (
    Architecture,
    Fidelity,
    UnknownArchitecture,
    dtype_bytes,
    serving_dtype,
)
from sglang_ops.planning.fraction import Fraction, automatic, version
from sglang_ops.planning.sizes import Sizes
from sglang_ops.planning.weights import countable, counted_bytes, rope_cache_bytes, weights_per_gpu

MIB, GIB = 2**20, 2**30
# Gone of what nvidia-smi calls total before SGLang first looks: the driver's reserve and the process's CUDA context;
# and what the process takes between that look and the loading of weights. Measured on an H200, docs/memory.md.
CONTEXT_BYTES = round(1.21 * GIB)
WORKSPACE_BYTES = round(0.10 * GIB)
# NCCL's buffers, where more than one GPU works on one copy of the model.
NCCL_BYTES = round(0.9 * GIB)
# `--mamba-full-memory-ratio`: what the states of linear-attention layers take beside the KV cache of the others.
_STATES = 0.9


@dataclass(frozen=True)
class GpuMemory:
    """One GPU: its memory as nvidia-smi says, and what others will hold of it while the server starts. MiB."""

    total_mib: int
    taken_mib: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one server, per GPU; bytes unless the name says otherwise. Where data is parallel: per rank.

    `requests` is how many requests of the full context length fit at once, `max_running_requests` what SGLang will
    allow. `states` belong to layers without a KV cache; `free_after` stays free once all that is there. `fidelity`:
    see Architecture.
    """

    gpus: int
    gpu_total: int
    free_before: int
    weights: int
    weights_known: bool
    mem_fraction_static: float
    mem_fraction_given: bool
    kv_cache: int
    states: int
    kv_bytes_per_token: int
    tokens: int
    context_length: int
    max_running_requests: int
    request_table: int
    reserve: int
    graphs: int
    fidelity: Fidelity
    has_states: bool = False  # also where nothing is left for them

    @property
    def requests(self) -> int:
        return self.tokens // self.context_length

    @property
    def free_after(self) -> int:
        used = WORKSPACE_BYTES + self.weights + max(0, self.kv_cache) + self.states + self.request_table
        return self.free_before - used

    def fraction_for(self, tokens: int) -> float:
        """The smallest `--mem-fraction-static`, in thousandths, with which the KV cache holds `tokens`."""
        cache = tokens * self.kv_bytes_per_token * (1 + _STATES if self.has_states else 1)
        needed = round(WORKSPACE_BYTES + self.weights + cache)
        return -(-1000 * needed // self.free_before) / 1000 if self.free_before > 0 else float("inf")


def predict(
    architecture: Architecture,
    weight_bytes: int,
    gpus: Sequence[GpuMemory],
    arguments: Sequence[str] | Sizes,
    *,
    release: str | None = None,
) -> MemoryPlan:
    """The memory of a server started with `arguments` on `gpus` (those of the service, in their order).

    `weight_bytes` is the size of the weight files, 0 where it is not known. `release` like "0.5.23"; None means the
    newest. Refuses nothing: that is planning.capacity. Raises ValueError for an argument that is no number, and
    UnknownArchitecture where neither files nor parameters tell how large the weights are.
    """
    sizes = arguments if isinstance(arguments, Sizes) else Sizes.of(arguments)
    if not weight_bytes and not countable(architecture):
        raise UnknownArchitecture(f"neither its files nor its parameters tell how large {architecture.name} is")
    total = min(gpu.total_mib for gpu in gpus)
    chosen = automatic(architecture, sizes, total, release)
    fraction = chosen.value if sizes.mem_fraction_static is None else sizes.mem_fraction_static
    free = min(gpu.total_mib - gpu.taken_mib for gpu in gpus) * MIB - CONTEXT_BYTES
    free -= NCCL_BYTES if sizes.tp * sizes.pp > 1 else 0
    dtype = serving_dtype(architecture, sizes.dtype)
    weights = weights_per_gpu(architecture, weight_bytes or counted_bytes(architecture), sizes, dtype)
    weights += rope_cache_bytes(architecture)
    cache = round(free * fraction) - WORKSPACE_BYTES - weights - _towers(architecture, sizes, release)
    per_token = kv_bytes_per_token(architecture, sizes)
    has_states = architecture.kv_layers < architecture.layers
    states = round(max(0, cache) * _STATES / (1 + _STATES)) if has_states else 0
    cache -= states
    tokens = max(0, cache) // per_token
    tokens = min(tokens, sizes.max_total_tokens or tokens) // sizes.page_size * sizes.page_size
    context = sizes.context_length or architecture.context_length
    running = _running(sizes, tokens, context)
    return MemoryPlan(
        gpus=sizes.gpus,
        gpu_total=total * MIB,
        free_before=free,
        weights=weights,
        weights_known=weight_bytes > 0,
        mem_fraction_static=fraction,
        mem_fraction_given=sizes.mem_fraction_static is not None,
        kv_cache=min(cache, tokens * per_token),
        states=states,
        kv_bytes_per_token=per_token,
        tokens=tokens,
        context_length=context,
        max_running_requests=running,
        request_table=(running + 1) * (context + 4) * 4,
        reserve=round(chosen.reserve * MIB),
        graphs=round(chosen.graphs * MIB),
        fidelity=_fidelity(architecture, sizes, chosen),
        has_states=has_states,
    )


def kv_bytes_per_token(architecture: Architecture, sizes: Sizes) -> int:
    """Bytes that one token takes in the KV cache of one GPU (`DefaultPoolConfigurator._compute_cell_size`)."""
    kind, width = _cache_kind(architecture, sizes)
    layers = -(-architecture.kv_layers // sizes.pp)
    mla = architecture.mla
    if mla is None:
        heads = max(1, architecture.kv_heads // sizes.attn_tp)
        values = heads * (architecture.head_dim + architecture.value_dim)
        if kind == "fp4":
            key = heads * architecture.head_dim
            return layers * values // 2 + layers * key * 2 // 16 + key * 2
        return layers * values * width + (layers * values // 32 if kind == "mxfp8" else 0)
    latent = mla.kv_lora_rank + mla.rope_dim
    if kind == "fp4":
        return layers * (latent // 2 + latent // 16)
    if mla.index_dim:  # the index, one byte a value, and a scale of four bytes for each 128
        latent_bytes = mla.kv_lora_rank + mla.kv_lora_rank // 32 + 2 * mla.rope_dim if width == 1 else latent * width
        return layers * (latent_bytes + mla.index_dim + mla.index_dim // 128 * 4)
    return layers * latent * width


def _cache_kind(architecture: Architecture, sizes: Sizes) -> tuple[str, int]:
    """(kind, bytes a value) of the KV cache; "auto" is the model's type unless its checkpoint says fp8."""
    asked = sizes.kv_cache_dtype
    if asked in {"nvfp4", "fp4_mx_block16", "fp4_e2m1"}:
        return "fp4", 1
    if asked.startswith(("fp8", "mxfp8")):
        return ("mxfp8" if asked == "mxfp8" else "fp8"), 1
    if asked == "auto" and architecture.quantization and architecture.quantization.fp8_cache:
        return "fp8", 1
    if asked in {"bf16", "bfloat16"}:
        return "plain", 2
    return "plain", dtype_bytes(serving_dtype(architecture, sizes.dtype))


def _running(sizes: Sizes, tokens: int, context: int) -> int:
    """`resolve_max_num_reqs`: requests that may run at once, per data-parallel rank."""
    automatic_limit = min(max(int(tokens / context * 512), 2048), 4096)
    asked = sizes.max_running_requests
    return max(0, min(asked // sizes.attn_dp if asked else automatic_limit, tokens // 2))


def _towers(architecture: Architecture, sizes: Sizes, release: str | None) -> int:
    """`mm_runtime_reservation_gb`, since 0.5.18: caches of a multimodal model come out of its KV cache."""
    known = version(release)
    if not architecture.multimodal or known < (0, 5, 18):
        return 0
    on_gpu = (sizes.feature_transport or "cpu") in {"cuda_ipc", "cuda_vmm"}
    return (100 + (1024 if on_gpu else 0)) * MIB


def _fidelity(architecture: Architecture, sizes: Sizes, chosen: Fraction) -> Fidelity:
    if not chosen.exact and sizes.mem_fraction_static is None:
        return "estimate"
    return "estimate" if sizes.speculative or sizes.lora else architecture.fidelity
