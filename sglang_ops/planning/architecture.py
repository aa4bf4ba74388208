"""The shape of a model, read from its `config.json`: what its memory and its parallelism depend on.

Names and rules are those of SGLang's `ModelConfig` (sglang/srt/configs/model_config.py, read in 0.5.17 and 0.5.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sglang_ops.planning.quantization import Quantization

# Where the language model's part of a configuration of several parts stands: get_hf_text_config, in its order.
_TEXT_PARTS = ("thinker_config", "llm_config", "language_config", "text_config")
_TOWERS = ("vision_config", "audio_config", "sound_config")
# CONTEXT_LENGTH_KEYS of sglang/srt/utils/hf_transformers/common.py, in their order.
_CONTEXT_KEYS = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", "max_position_embeddings")
# Served without their vision tower unless --enable-multimodal (ModelConfig.__init__).
_MULTIMODAL_ON_REQUEST = {
    "Gemma3ForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "Step3VLForConditionalGeneration",
    "InklingForConditionalGeneration",
}
# Multimodal models whose prefill is captured in CUDA graphs all the same.
_MULTIMODAL_WITH_PREFILL_GRAPHS = {
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "Cohere2VisionForConditionalGeneration",
    "KimiK25ForConditionalGeneration",
    "MiniMaxM3SparseForConditionalGeneration",
}
_DTYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
_FULL_ATTENTION = {"full_attention", "attention", "global_attention", "global"}

Fidelity = Literal["exact", "at least", "estimate"]


class UnknownArchitecture(Exception):
    """The model's memory cannot be computed from its configuration; the text says why, as half a sentence."""


@dataclass(frozen=True)
class Vision:
    """Size of a vision tower. SGLang's `adjust_mem_fraction_for_vlm` asks for these two, with these defaults."""

    layers: int = 24
    hidden: int = 1024


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention: one latent vector a token and layer, the same on every tensor-parallel rank."""

    kv_lora_rank: int
    rope_dim: int
    nope_dim: int = 0
    q_lora_rank: int = 0
    index_dim: int = 0  # DeepSeek sparse attention keeps an index beside the cache


@dataclass(frozen=True)
class Experts:
    """The mixture-of-experts part: how many layers have it, how many experts are stored, how wide they are."""

    layers: int
    count: int
    intermediate: int
    shared_intermediate: int = 0


@dataclass(frozen=True)
class Architecture:
    """What memory and parallelism depend on. Lengths in tokens; `kv_layers` are those that keep a KV cache.

    `fidelity` says how far the KV cache that follows is to be trusted: "exact" (SGLang's own formula), "at least"
    (sliding-window layers are counted as full ones), "estimate" (layers with a state of constant size beside it).
    """

    name: str
    model_type: str
    layers: int
    kv_layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    intermediate: int
    vocab: int
    context_length: int
    dtype: str
    tied_embeddings: bool = False
    mla: Mla | None = None
    experts: Experts | None = None
    unused_layers: int = 0
    quantization: Quantization | None = None
    vision: Vision | None = None
    multimodal: bool = False
    prefill_graphs: bool = True
    fidelity: Fidelity = "exact"

    @classmethod
    def of(cls, config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Architecture:
        """Read a `config.json`, with `--json-model-override-args` laid over it. Raises UnknownArchitecture."""
        try:
            read = _read({**config, **(overrides or {})})
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            raise UnknownArchitecture(f"its config.json has a value of an unexpected kind ({error})") from error
        if min(read.kv_layers, read.kv_heads, read.head_dim, read.value_dim, read.context_length) < 1:
            raise UnknownArchitecture("its config.json describes no attention")
        return read

    @property
    def dtype_bytes(self) -> int:
        return _DTYPE_BYTES[self.dtype]


def serving_dtype(architecture: Architecture, asked: str | None) -> str:
    """The type that SGLang computes in: `--dtype`, where "auto" halves float32 (`_get_and_verify_dtype`)."""
    if asked and asked != "auto":
        return asked if asked in _DTYPE_BYTES else architecture.dtype
    if architecture.dtype_bytes == 4:
        return "bfloat16" if architecture.model_type.startswith("gemma") else "float16"
    return architecture.dtype


def dtype_bytes(dtype: str) -> int:
    return _DTYPE_BYTES[dtype]


def _read(config: Mapping[str, Any]) -> Architecture:
    name = str((config.get("architectures") or ["unnamed"])[0])
    text = _text_part(config)
    _refuse_foreign(config, text, name)
    layers = _number(text, "num_hidden_layers", "n_layer", "num_layers")
    hidden = _number(text, "hidden_size", "n_embd")
    heads = _number(text, "num_attention_heads", "n_head")
    mla = _mla(text)
    kv_layers, fidelity = _cached_layers(text, layers)
    head_dim = _widest(text, ("head_dim", "global_head_dim", "swa_head_dim"), fidelity) or hidden // heads
    vision = _vision(config)
    multimodal = name not in _MULTIMODAL_ON_REQUEST and (text is not config or vision is not None)
    return Architecture(
        name=name,
        model_type=str(text.get("model_type") or config.get("model_type") or ""),
        layers=layers,
        kv_layers=kv_layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(text, heads, fidelity),
        head_dim=head_dim,
        value_dim=int(text.get("v_head_dim") or head_dim),
        intermediate=int(text.get("intermediate_size") or text.get("n_inner") or 4 * hidden),
        vocab=_number(text, "vocab_size"),
        context_length=_context_length(text),
        dtype=_dtype(config, text),
        tied_embeddings=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        mla=mla,
        experts=_experts(text, layers),
        unused_layers=int(text.get("num_nextn_predict_layers") or 0),
        quantization=Quantization.of(config.get("quantization_config") or text.get("quantization_config")),
        vision=vision,
        multimodal=multimodal,
        prefill_graphs=not multimodal or name in _MULTIMODAL_WITH_PREFILL_GRAPHS,
        fidelity="estimate" if mla and mla.index_dim else fidelity,
    )


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for part in _TEXT_PARTS:
        if isinstance(config.get(part), Mapping):
            return _text_part(config[part])
    return config


def _refuse_foreign(config: Mapping[str, Any], text: Mapping[str, Any], name: str) -> None:
    """Shapes that SGLang gives memory pools of their own, or that are no decoder."""
    if "DeepseekV4" in name or "compress_ratios" in text:
        raise UnknownArchitecture(f"{name} compresses its KV cache by rules of its own")
    if "MiniMaxM3Sparse" in name or "sparse_attention_config" in text:
        raise UnknownArchitecture(f"{name} keeps a sparse index beside its KV cache")
    if config.get("is_encoder_decoder") or "encoder_layers" in text:
        raise UnknownArchitecture(f"{name} is an encoder and a decoder")
    if isinstance(text.get("block_configs"), list):
        raise UnknownArchitecture(f"the layers of {name} differ from each other")


def _number(text: Mapping[str, Any], *names: str) -> int:
    """The first of `names` that is a positive number."""
    for name in names:
        if isinstance(text.get(name), int) and text[name] > 0:
            return int(text[name])
    raise UnknownArchitecture(f"its config.json has no {names[0]}")


def _widest(text: Mapping[str, Any], names: tuple[str, ...], fidelity: Fidelity) -> int:
    """The first of `names`; the largest of them where layers differ, so that no cache is promised that is not there."""
    found = [int(text[name]) for name in names if text.get(name)]
    if not found:
        return 0
    return max(found) if fidelity == "at least" else found[0]


def _kv_heads(text: Mapping[str, Any], heads: int, fidelity: Fidelity) -> int:
    if text.get("multi_query") and not text.get("new_decoder_architecture") and "multi_query_group_num" not in text:
        return 1
    names = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
    different = ("num_global_key_value_heads", "swa_num_key_value_heads")
    return _widest(text, (*names, *different) if fidelity == "at least" else names, fidelity) or heads


def _mla(text: Mapping[str, Any]) -> Mla | None:
    if not text.get("kv_lora_rank") or "qk_rope_head_dim" not in text or text.get("use_mla") is False:
        return None
    return Mla(
        kv_lora_rank=int(text["kv_lora_rank"]),
        rope_dim=int(text["qk_rope_head_dim"]),
        nope_dim=int(text.get("qk_nope_head_dim") or 0),
        q_lora_rank=int(text.get("q_lora_rank") or 0),
        index_dim=int(text.get("index_head_dim") or 128) if text.get("index_topk") else 0,
    )


def _cached_layers(text: Mapping[str, Any], layers: int) -> tuple[int, Fidelity]:
    """Layers with a KV cache, and how well the cache is known then."""
    kinds = text.get("layer_types")
    pattern = text.get("hybrid_override_pattern")  # NemotronH: M is Mamba, * attention, - and E neither
    if isinstance(pattern, str) and "M" in pattern:
        return pattern.count("*"), "estimate"
    if isinstance(kinds, list) and kinds:
        sliding = sum("sliding" in str(kind) or "chunked" in str(kind) for kind in kinds[:layers])
        full = sum(str(kind) in _FULL_ATTENTION for kind in kinds[:layers])
        if full + sliding < min(layers, len(kinds)):
            return full + sliding, "estimate"
        return layers, "at least" if sliding else "exact"
    if text.get("full_attention_interval"):  # Qwen3-Next
        return layers // int(text["full_attention_interval"]), "estimate"
    if isinstance(text.get("attn_layer_indices"), list):
        return len(text["attn_layer_indices"]), "estimate"
    if isinstance(text.get("linear_attn_config"), Mapping):  # Kimi Linear
        return len(text["linear_attn_config"].get("full_attn_layers") or range(layers)), "estimate"
    if any(name in text for name in ("mamba_d_state", "mamba_n_heads", "ssm_cfg", "state_size")):
        raise UnknownArchitecture("its config.json does not say which layers keep a KV cache and which a state")
    hybrid = text.get("hybrid_layer_pattern") or text.get("sliding_window_pattern") or text.get("attention_chunk_size")
    return layers, "at least" if hybrid or text.get("is_hybrid_swa") else "exact"


def _context_length(text: Mapping[str, Any]) -> int:
    """As `get_context_length`: scaled by a rope factor unless that is counted in already."""
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    factor = float(rope.get("factor") or 1)
    if "original_max_position_embeddings" in rope or (rope.get("rope_type") or rope.get("type")) == "llama3":
        factor = 1
    for key in _CONTEXT_KEYS:
        if text.get(key) is not None:
            return int(factor * int(text[key]))
    return 2048


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    for source in (text, config):
        named = str(source.get("dtype") or source.get("torch_dtype") or "").removeprefix("torch.")
        if named in _DTYPE_BYTES:
            return named
    return "float32"


def _experts(text: Mapping[str, Any], layers: int) -> Experts | None:
    names = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
    count = next((int(text[name]) for name in names if isinstance(text.get(name), int)), 0)
    if count < 2:
        return None
    width = int(text.get("moe_intermediate_size") or text.get("intermediate_size") or 0)
    shared = int(text.get("shared_expert_intermediate_size") or 0)
    shared = shared or int(text.get("n_shared_experts") or text.get("num_shared_experts") or 0) * width
    dense = int(text.get("first_k_dense_replace") or text.get("num_dense_layers") or 0)
    step = int(text.get("decoder_sparse_step") or text.get("interleave_moe_layer_step") or 1)
    with_experts = (layers - dense) // max(1, step) - len(text.get("mlp_only_layers") or [])
    return Experts(max(0, with_experts), count, width, shared)


def _vision(config: Mapping[str, Any]) -> Vision | None:
    towers = [part for part in _TOWERS if isinstance(config.get(part), Mapping)]
    if not towers and isinstance(config.get("thinker_config"), Mapping):
        return _vision(config["thinker_config"])
    if not towers:
        return None
    tower = config[towers[0]] if towers[0] == "vision_config" else {}
    return Vision(int(tower.get("num_hidden_layers") or 24), int(tower.get("hidden_size") or 1024))
