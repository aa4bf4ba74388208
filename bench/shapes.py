"""Configurations of published models, cut to what their memory depends on, and the cases measured with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_COMMON = {
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _shape(name: str, kind: str, sizes: tuple[int, ...], vocabulary: int, context: int, **more: Any) -> dict[str, Any]:
    """`sizes`: hidden, intermediate, layers, heads, KV heads."""
    hidden, intermediate, layers, heads, kv_heads = sizes
    return {
        **_COMMON,
        "architectures": [name],
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        **more,
    }


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
_QWEN14 = ((5120, 13824, 48, 40, 8), 152064, 32768)
_QWEN7 = ((3584, 18944, 28, 28, 4), 152064, 32768)
_MLA = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "q_lora_rank": None}
_YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}

SHAPES: Mapping[str, dict[str, Any]] = {
    "llama-3.1-8b": _shape("LlamaForCausalLM", "llama", (4096, 14336, 32, 32, 8), 128256, 131072, head_dim=128),
    "llama-70b-of-40-layers": _shape("LlamaForCausalLM", "llama", (8192, 28672, 40, 64, 8), 128256, 131072),
    "qwen2.5-14b": _shape("Qwen2ForCausalLM", "qwen2", *_QWEN14),
    "qwen2.5-14b-awq": _shape("Qwen2ForCausalLM", "qwen2", *_QWEN14, quantization_config=_AWQ),
    "qwen2.5-32b": _shape("Qwen2ForCausalLM", "qwen2", (5120, 27648, 64, 40, 8), 152064, 32768),
    "qwen3-8b-fp8": _shape(
        "Qwen3ForCausalLM", "qwen3", (4096, 12288, 36, 32, 8), 151936, 40960, head_dim=128, quantization_config=_FP8
    ),
    "qwen3-30b-a3b": _shape(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        (2048, 6144, 48, 32, 4),
        151936,
        40960,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
    ),
    "qwen2.5-7b": _shape("Qwen2ForCausalLM", "qwen2", *_QWEN7),
    "qwen2.5-vl-7b": _shape(
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2_5_vl",
        *_QWEN7,
        vision_config={
            "model_type": "qwen2_5_vl",
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
        },
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
    ),
    "llama-3.2-1b": _shape(
        "LlamaForCausalLM", "llama", (2048, 8192, 16, 32, 8), 128256, 131072, head_dim=64, tie_word_embeddings=True
    ),
    "qwen3-next-of-16-layers": _shape(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        (2048, 5120, 16, 16, 2),
        151936,
        262144,
        head_dim=256,
        full_attention_interval=4,
        num_experts=512,
        num_experts_per_tok=10,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
        partial_rotary_factor=0.25,
    ),
    "mixtral-8x7b": _shape(
        "MixtralForCausalLM",
        "mixtral",
        (4096, 14336, 32, 32, 8),
        32000,
        32768,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    "deepseek-v2-lite": _shape(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        (2048, 10944, 27, 16, 16),
        102400,
        163840,
        **_MLA,
        rope_scaling=_YARN,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        routed_scaling_factor=1.0,
        norm_topk_prob=False,
        scoring_func="softmax",
        topk_method="greedy",
        n_group=1,
        topk_group=1,
    ),
    "gpt-oss-20b": _shape(
        "GptOssForCausalLM",
        "gpt_oss",
        (2880, 2880, 24, 64, 8),
        201088,
        131072,
        head_dim=64,
        num_local_experts=32,
        num_experts_per_tok=4,
        experts_per_token=4,
        sliding_window=128,
        swiglu_limit=7.0,
        layer_types=["sliding_attention", "full_attention"] * 12,
        attention_bias=True,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    ),
}


@dataclass(frozen=True)
class Case:
    """One server: a shape, arguments, and the GPUs that they ask for."""

    name: str
    shape: str
    arguments: tuple[str, ...] = ()
    gpus: int = 1


CASES = (
    Case("8b", "llama-3.1-8b"),
    Case("8b-fp8-cache", "llama-3.1-8b", ("--kv-cache-dtype", "fp8_e4m3")),
    Case("8b-small-chunk", "llama-3.1-8b", ("--chunked-prefill-size", "2048", "--max-running-requests", "64")),
    Case("8b-low-f", "llama-3.1-8b", ("--mem-fraction-static", "0.15", "--context-length", "32768")),
    Case("8b-online-fp8", "llama-3.1-8b", ("--quantization", "fp8")),
    Case("14b", "qwen2.5-14b"),
    Case("14b-awq", "qwen2.5-14b-awq"),
    Case("32b", "qwen2.5-32b", ("--page-size", "64")),
    Case("70b-half", "llama-70b-of-40-layers", ("--disable-cuda-graph",)),
    Case("30b-a3b", "qwen3-30b-a3b"),
    Case("mixtral", "mixtral-8x7b"),
    Case("v2-lite", "deepseek-v2-lite"),
    Case("qwen3-8b-fp8", "qwen3-8b-fp8"),
    Case("gpt-oss", "gpt-oss-20b", ("--attention-backend", "triton")),
    Case("7b", "qwen2.5-7b", ("--context-length", "8192", "--cuda-graph-max-bs-decode", "64")),
    Case("1b", "llama-3.2-1b", ("--attention-backend", "triton")),
    Case("vl-7b", "qwen2.5-vl-7b"),
    Case("next", "qwen3-next-of-16-layers", ("--attention-backend", "triton")),
    Case("8b-tp2", "llama-3.1-8b", ("--tp-size", "2"), gpus=2),
    Case("32b-tp2", "qwen2.5-32b", ("--tp-size", "2"), gpus=2),
    Case("v2-lite-tp2", "deepseek-v2-lite", ("--tp-size", "2"), gpus=2),
    Case("30b-a3b-tp2", "qwen3-30b-a3b", ("--tp-size", "2"), gpus=2),
    Case("14b-attn-dp2", "qwen2.5-14b", ("--tp-size", "2", "--dp-size", "2", "--enable-dp-attention"), gpus=2),
    Case("8b-pp2", "llama-3.1-8b", ("--pp-size", "2"), gpus=2),
)
