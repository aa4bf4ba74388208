"""Model shapes read from configurations, and how many bytes of them each GPU holds."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.shapes import SHAPES
from sglang_ops.planning.architecture import Architecture, UnknownArchitecture, serving_dtype
from sglang_ops.planning.quantization import Quantization
from sglang_ops.planning.sizes import Sizes
from sglang_ops.planning.weights import counted_bytes, weights_per_gpu

LLAMA = SHAPES["llama-3.1-8b"]


def shape(name: str = "llama-3.1-8b", **changes: Any) -> Architecture:
    return Architecture.of({**SHAPES[name], **changes})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as their model cards count them
        ("llama-3.1-8b", 8_030_261_248),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("deepseek-v2-lite", 15_706_484_224),
    ],
)
def test_parameters_are_counted(name: str, parameters: int) -> None:
    assert counted_bytes(shape(name)) / 2 == pytest.approx(parameters, rel=2e-4)


def test_attention_of_many_kinds() -> None:
    grouped = shape("qwen3-30b-a3b")
    assert (grouped.heads, grouped.kv_heads, grouped.head_dim, grouped.fidelity) == (32, 4, 128, "exact")
    latent = shape("deepseek-v2-lite").mla
    assert latent is not None
    assert (latent.kv_lora_rank, latent.rope_dim, latent.index_dim) == (512, 64, 0)
    assert shape(num_key_value_heads=None).kv_heads == 32
    assert shape(head_dim=None).head_dim == 128
    assert shape(multi_query=True).kv_heads == 1


@pytest.mark.parametrize(
    ("changes", "kv_layers", "fidelity"),
    [
        ({"layer_types": ["full_attention"] * 32}, 32, "exact"),
        ({"layer_types": ["sliding_attention", "full_attention"] * 16}, 32, "at least"),
        ({"layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8}, 8, "estimate"),
        ({"full_attention_interval": 4}, 8, "estimate"),
        ({"hybrid_override_pattern": "M*M-" * 8}, 8, "estimate"),
        ({"attn_layer_indices": [1, 5]}, 2, "estimate"),
        ({"sliding_window": 4096}, 32, "exact"),  # SGLang keeps all of it, unless the model is in its list
    ],
)
def test_layers_with_a_cache(changes: dict[str, Any], kv_layers: int, fidelity: str) -> None:
    found = shape(**changes)
    assert (found.kv_layers, found.fidelity) == (kv_layers, fidelity)


def test_layers_that_differ_count_as_the_widest() -> None:
    found = shape(layer_types=["sliding_attention", "full_attention"] * 16, global_head_dim=512)
    assert found.head_dim == 512


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 131072),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 262144),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        ({"max_sequence_length": 8192}, 8192),
        ({"max_position_embeddings": None}, 2048),
    ],
)
def test_context_length_as_sglang_derives_it(changes: dict[str, Any], length: int) -> None:
    assert shape(**changes).context_length == length


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "no num_hidden_layers"),
        ({**LLAMA, "vocab_size": None}, "no vocab_size"),
        ({**LLAMA, "num_attention_heads": "many"}, "no num_attention_heads"),
        ({**LLAMA, "architectures": "x", "rope_scaling": [1]}, "of an unexpected kind"),
        ({**LLAMA, "is_encoder_decoder": True}, "an encoder and a decoder"),
        ({**LLAMA, "block_configs": [{}]}, "differ from each other"),
        ({**LLAMA, "architectures": ["DeepseekV4ForCausalLM"]}, "rules of its own"),
        ({**LLAMA, "mamba_d_state": 16}, "which layers keep a KV cache"),
    ],
)
def test_what_is_not_known_is_not_guessed(config: dict[str, Any], why: str) -> None:
    with pytest.raises(UnknownArchitecture, match=why):
        Architecture.of(config)


@given(
    st.dictionaries(
        st.sampled_from([*LLAMA, "rope_scaling", "quantization_config", "vision_config", "text_config", "layer_types"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_any_configuration_is_read_or_refused(changes: dict[str, Any]) -> None:
    with suppress(UnknownArchitecture):
        assert Architecture.of({**LLAMA, **changes}).layers > 0


def test_vision_language_models() -> None:
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "text_config": LLAMA,
        "vision_config": {"depth": 32, "hidden_size": 1280},
    }
    found = Architecture.of(config)
    assert (found.multimodal, found.prefill_graphs, found.layers) == (True, False, 32)
    assert counted_bytes(found) > counted_bytes(shape())
    silent = Architecture.of({**config, "architectures": ["Gemma3ForConditionalGeneration"]})
    assert not silent.multimodal  # served without images unless --enable-multimodal


@pytest.mark.parametrize(
    ("config", "method", "bits"),
    [
        (None, None, 16),
        ({"quant_method": "fp8"}, "fp8", 8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", 4.16),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "gptq", 8.75),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", 4.25),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt_fp4", 4.5),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}}}, None, 8.02),
        ({"quant_method": "brand-new"}, "brand-new", 16),
    ],
)
def test_quantisation(config: dict[str, Any] | None, method: str | None, bits: float) -> None:
    found = Quantization.of(config)
    if found is None:
        assert config is None
        return
    assert found.bits == pytest.approx(bits, abs=0.01)
    assert method is None or found.method == method


def test_a_checkpoint_may_ask_for_an_fp8_cache() -> None:
    asked = Quantization.of({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"})
    assert asked is not None
    assert asked.fp8_cache


def test_experts_alone_are_quantised_in_gpt_oss() -> None:
    plain = counted_bytes(shape("gpt-oss-20b"))
    quantised = counted_bytes(shape("gpt-oss-20b", quantization_config={"quant_method": "mxfp4"}))
    assert quantised == pytest.approx(13.7e9, rel=0.02)  # what its files take
    assert plain == pytest.approx(41.8e9, rel=0.01)


def test_dtype() -> None:
    assert serving_dtype(shape(), "auto") == "bfloat16"
    assert serving_dtype(shape(dtype="float32"), "auto") == "float16"
    assert serving_dtype(shape(dtype="float32", model_type="gemma2"), "auto") == "bfloat16"
    assert serving_dtype(shape(), "float32") == "float32"
    half = weights_per_gpu(shape(dtype="float32"), 32_000, Sizes(), "float16")
    assert half == 16_000


def test_layers_for_multi_token_prediction_are_not_loaded() -> None:
    plain = weights_per_gpu(shape(), 33_000, Sizes(), "bfloat16")
    assert weights_per_gpu(shape(num_nextn_predict_layers=1), 33_000, Sizes(), "bfloat16") == plain * 32 // 33


def test_offload_leaves_the_gpu() -> None:
    whole = weights_per_gpu(shape(), 16_060_522_496, Sizes(), "bfloat16")
    assert whole - weights_per_gpu(shape(), 16_060_522_496, Sizes(offload=4), "bfloat16") == 4 * 2**30


@given(st.sampled_from(sorted(SHAPES)), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]))
def test_no_rank_holds_less_than_its_share(name: str, tp: int, pp: int) -> None:
    """Replicated parts make each share larger than the whole divided, and never larger than the whole."""
    found = shape(name)
    whole = weights_per_gpu(found, 0x1000000000, Sizes(), "bfloat16")
    share = weights_per_gpu(found, 0x1000000000, Sizes(tp=tp, pp=pp), "bfloat16")
    assert whole * 0.999 / (tp * pp) <= share <= whole
