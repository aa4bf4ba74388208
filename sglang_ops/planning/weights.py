"""How many bytes of a model's weights each GPU holds: sharded parts divided, replicated parts whole.

As SGLang cuts them (srt/models/llama.py and deepseek_v2.py, srt/layers/linear.py and vocab_parallel_embedding.py):
linear layers, experts and vocabulary across tensor-parallel ranks; KV heads are repeated where there are fewer than
ranks; norms, routers and MLA's down-projections are whole on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_ops.planning.architecture import Architecture, Mla, dtype_bytes
from sglang_ops.planning.quantization import ONLINE
from sglang_ops.planning.sizes import Sizes

# Families whose parameters are counted well enough to stand for an unknown size on disk.
_COUNTED = ("llama", "mistral", "mixtral", "qwen", "gemma", "deepseek", "phi3", "glm", "olmo", "granite", "gpt_oss")


@dataclass(frozen=True)
class _Part:
    """Parameters of one kind: `per_gpu` of `total`; `linear` ones are those that quantisation touches."""

    total: float
    per_gpu: float
    linear: bool = False
    expert: bool = False


def countable(architecture: Architecture) -> bool:
    """Whether the parameter count may stand in for the size of the files."""
    return architecture.model_type.startswith(_COUNTED)


def counted_bytes(architecture: Architecture) -> int:
    """Size of the checkpoint by parameter count, as it is stored."""
    return round(_stored(architecture, _parts(architecture, Sizes()), per_gpu=False))


def weights_per_gpu(architecture: Architecture, stored_bytes: int, sizes: Sizes, dtype: str) -> int:
    """Bytes of weights on the fullest GPU once loaded. `dtype` is what the server computes in.

    The size of the files is taken as it is and shared out as the parameters are, so that a miscount of what
    the model consists of cancels out; layers for multi-token prediction are in the files and are not loaded.
    """
    whole = _stored(architecture, _parts(architecture, Sizes()), per_gpu=False)
    here = _loaded(architecture, _parts(architecture, sizes), sizes.quantization, dtype)
    unused = architecture.unused_layers / (architecture.layers + architecture.unused_layers)
    loaded = stored_bytes * (1 - unused) * here / whole
    return max(0, round(loaded + _absorbed_bytes(architecture, sizes, dtype) - sizes.offloaded_bytes))


def _absorbed_bytes(architecture: Architecture, sizes: Sizes, dtype: str) -> float:
    """MLA's up-projections, which the server keeps a second time, reordered (`post_load_weights`: w_kc, w_vc)."""
    mla = architecture.mla
    if mla is None:
        return 0.0
    values = mla.kv_lora_rank * architecture.heads * (mla.nope_dim + architecture.value_dim)
    return values * dtype_bytes(dtype) * architecture.layers / sizes.pp / sizes.attn_tp


def rope_cache_bytes(architecture: Architecture) -> int:
    """Cosines and sines of every position, in float32 and the same on each GPU (layers/rotary_embedding/base.py)."""
    width = architecture.mla.rope_dim if architecture.mla else architecture.head_dim
    return architecture.context_length * width * 4


def _stored(architecture: Architecture, parts: list[_Part], *, per_gpu: bool) -> float:
    quantization = architecture.quantization
    bits = quantization.bits if quantization else 8.0 * architecture.dtype_bytes
    experts_only = bool(quantization and quantization.experts_only)
    return _bytes(parts, architecture.dtype_bytes, bits, experts_only=experts_only, per_gpu=per_gpu)


def _loaded(architecture: Architecture, parts: list[_Part], asked: str | None, dtype: str) -> float:
    """The same with `--quantization` and `--dtype` applied, which change only what is stored unquantised."""
    if architecture.quantization:
        return _stored(architecture, parts, per_gpu=True)
    plain = dtype_bytes(dtype)
    return _bytes(parts, plain, ONLINE.get(asked or "", 8.0 * plain), experts_only=False, per_gpu=True)


def _bytes(parts: list[_Part], plain: float, bits: float, *, experts_only: bool, per_gpu: bool) -> float:
    total = 0.0
    for part in parts:
        touched = part.expert if experts_only else part.linear
        total += (part.per_gpu if per_gpu else part.total) * (bits / 8 if touched else plain)
    return total


def _parts(architecture: Architecture, sizes: Sizes) -> list[_Part]:
    """Every kind of parameter; per GPU those of the first pipeline stage, which has both tables of the vocabulary."""
    layers = architecture.layers
    here = -(-layers // sizes.pp)
    mla = architecture.mla
    attention = _mla_attention(architecture, mla, sizes) if mla else _attention(architecture, sizes)
    per_layer = [*attention, _Part(2 * architecture.hidden, 2 * architecture.hidden)]
    parts = [_Part(part.total * layers, part.per_gpu * here, part.linear) for part in per_layer]
    parts += _feed_forward(architecture, sizes)
    embedding = float(architecture.vocab * architecture.hidden)
    tables = [_Part(embedding, embedding if sizes.attn_dp > 1 else embedding / sizes.tp)]
    if not architecture.tied_embeddings:
        tables.append(_Part(embedding, embedding / sizes.tp))
    return [*parts, *tables, *_tower(architecture, sizes)]


def _attention(architecture: Architecture, sizes: Sizes) -> list[_Part]:
    ranks = sizes.attn_tp
    query = architecture.hidden * architecture.heads * architecture.head_dim
    output = architecture.hidden * architecture.heads * architecture.value_dim
    one = architecture.hidden * (architecture.head_dim + architecture.value_dim)
    kept = max(1, architecture.kv_heads // ranks)
    return [
        _Part(query + output, (query + output) / ranks, linear=True),
        _Part(one * architecture.kv_heads, one * kept, linear=True),
    ]


def _mla_attention(architecture: Architecture, mla: Mla, sizes: Sizes) -> list[_Part]:
    hidden, heads, ranks = architecture.hidden, architecture.heads, sizes.attn_tp
    down = hidden * (mla.kv_lora_rank + mla.rope_dim + mla.q_lora_rank)
    query = (mla.q_lora_rank or hidden) * heads * (mla.nope_dim + mla.rope_dim)
    up = mla.kv_lora_rank * heads * (mla.nope_dim + architecture.value_dim)
    output = heads * architecture.value_dim * hidden
    index = ((mla.q_lora_rank or hidden) * 64 + hidden) * mla.index_dim
    sharded = query + up + output
    return [_Part(down + index, down + index, linear=True), _Part(sharded, sharded / ranks, linear=True)]


def _feed_forward(architecture: Architecture, sizes: Sizes) -> list[_Part]:
    """Dense layers, and experts where there are some; a stage is as full as its share of all layers."""
    stage = 1 / sizes.pp
    experts, hidden = architecture.experts, architecture.hidden
    dense = 3.0 * hidden * architecture.intermediate * (architecture.layers - (experts.layers if experts else 0))
    dense_ranks = 1 if sizes.dense_replicated else sizes.tp
    parts = [_Part(dense, dense * stage / dense_ranks, linear=True)]
    if experts:
        routed = 3.0 * hidden * experts.intermediate * experts.count * experts.layers
        shared = 3.0 * hidden * experts.shared_intermediate * experts.layers
        router = float(hidden * experts.count * experts.layers)
        parts += [
            _Part(routed, routed * stage / sizes.tp, linear=True, expert=True),
            _Part(shared, shared * stage / (1 if sizes.shared_replicated else sizes.tp), linear=True),
            _Part(router, router * stage),
        ]
    return parts


def _tower(architecture: Architecture, sizes: Sizes) -> list[_Part]:
    """The vision tower: about twelve hidden² parameters a layer, stored unquantised."""
    if architecture.vision is None:
        return []
    total = 12.0 * architecture.vision.layers * architecture.vision.hidden**2
    return [_Part(total, total if sizes.encoder_replicated else total / sizes.tp)]
