"""The predicted KV cache: how it follows from arguments and GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.shapes import SHAPES
from sglang_ops.planning.architecture import Architecture, UnknownArchitecture
from sglang_ops.planning.memory import GIB, GpuMemory, MemoryPlan, kv_bytes_per_token, predict
from sglang_ops.planning.sizes import Sizes, integer, overrides

H200, H100, L4 = GpuMemory(143771), GpuMemory(81559), GpuMemory(23034)
WEIGHTS = 16_060_522_496
shapes = st.sampled_from(sorted(SHAPES))
fractions = st.floats(0.05, 0.97).map(lambda number: round(number, 3))


def plan(arguments: str = "", shape: str = "llama-3.1-8b", *gpus: GpuMemory, **more: Any) -> MemoryPlan:
    architecture = Architecture.of({**SHAPES[shape], **more.pop("changes", {})})
    weights = more.pop("weights", 0)
    return predict(architecture, weights, gpus or [H200] * 8, arguments.split(), **{"release": "0.5.17", **more})


def bytes_of(arguments: str = "", shape: str = "llama-3.1-8b", **changes: Any) -> int:
    return kv_bytes_per_token(Architecture.of({**SHAPES[shape], **changes}), Sizes.of(arguments.split()))


@pytest.mark.parametrize(
    ("arguments", "shape", "size"),
    [
        ("", "llama-3.1-8b", 2 * 32 * 8 * 128 * 2),
        ("--tp-size 2", "llama-3.1-8b", 65536),
        ("--tp-size 16", "llama-3.1-8b", 16384),  # eight KV heads on sixteen ranks: each has one
        ("--pp-size 2", "llama-3.1-8b", 65536),
        ("--tp-size 2 --dp-size 2 --enable-dp-attention", "llama-3.1-8b", 131072),
        ("--tp-size 4 --attn-dp-size 2", "llama-3.1-8b", 65536),
        ("--kv-cache-dtype fp8_e5m2", "llama-3.1-8b", 65536),
        ("--kv-cache-dtype mxfp8", "llama-3.1-8b", 65536 + 2048),
        ("--kv-cache-dtype nvfp4", "llama-3.1-8b", 32768 + 4096 + 2048),
        ("--dtype float32", "llama-3.1-8b", 262144),
        ("--dtype float32 --kv-cache-dtype bf16", "llama-3.1-8b", 131072),
        ("", "deepseek-v2-lite", 27 * 576 * 2),
        ("--tp-size 8", "deepseek-v2-lite", 27 * 576 * 2),  # the same latent vector on every rank
    ],
)
def test_bytes_of_a_token(arguments: str, shape: str, size: int) -> None:
    assert bytes_of(arguments, shape) == size


def test_bytes_of_a_token_with_a_sparse_index_and_with_an_fp8_checkpoint() -> None:
    assert bytes_of(shape="deepseek-v2-lite", index_topk=2048, index_head_dim=128) == 27 * (576 * 2 + 132)
    fp8 = "--kv-cache-dtype fp8_e4m3"
    assert bytes_of(fp8, "deepseek-v2-lite", index_topk=2048, index_head_dim=128) == 27 * (656 + 132)
    quantised = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    assert bytes_of(quantization_config=quantised) == 65536


def test_what_a_plan_says() -> None:
    found = plan(weights=WEIGHTS)
    assert (found.tokens, found.context_length, found.requests) == (905787, 131072, 6)
    assert (found.mem_fraction_static, found.mem_fraction_given, found.fidelity) == (0.903, False, "exact")
    assert found.weights / GIB == pytest.approx(15.02, abs=0.01)
    assert found.kv_cache == found.tokens * found.kv_bytes_per_token
    assert found.max_running_requests == 3538


def test_limits_that_are_given() -> None:
    assert plan("--max-total-tokens 20k").tokens == 20000
    assert plan("--page-size 64").tokens % 64 == 0
    assert plan("--context-length 4096").requests == plan().tokens // 4096
    assert plan("--max-running-requests 7").max_running_requests == 7
    assert plan("--tp-size 2 --attn-dp-size 2 --max-running-requests 8").max_running_requests == 4


def test_what_others_hold_is_not_there() -> None:
    """As measured: f applies to what is free when the server starts, not to the whole."""
    alone, beside = plan(), plan("", "llama-3.1-8b", GpuMemory(143771, 43662))
    assert beside.tokens < alone.tokens - 300_000
    assert beside.free_before == alone.free_before - 43662 * 2**20


def test_the_smallest_gpu_counts() -> None:
    assert plan("--tp-size 2", "llama-3.1-8b", H200, H100).tokens == plan("--tp-size 2", "llama-3.1-8b", H100).tokens


def test_vision_language_models_have_less() -> None:
    config = {"architectures": ["X"], "text_config": SHAPES["llama-3.1-8b"], "vision_config": {"hidden_size": 1024}}
    seeing = predict(Architecture.of(config), WEIGHTS, [H200], [], release="0.5.23")
    assert seeing.mem_fraction_static == pytest.approx(0.907 * 0.95)
    assert seeing.tokens < plan("--cuda-graph-backend-prefill disabled", weights=WEIGHTS).tokens * 0.95
    ipc = predict(Architecture.of(config), WEIGHTS, [H200], ["--mm-feature-transport", "cuda_ipc"], release="0.5.23")
    assert seeing.tokens - ipc.tokens == pytest.approx(GIB / 131072, abs=1)


def test_sizes_that_are_not_known_anywhere() -> None:
    strange = Architecture.of({**SHAPES["llama-3.1-8b"], "model_type": "brand_new", "architectures": ["BrandNew"]})
    with pytest.raises(UnknownArchitecture, match="how large BrandNew is"):
        predict(strange, 0, [H200], [])
    assert predict(strange, WEIGHTS, [H200], []).weights_known


def test_speculation_makes_it_an_estimate() -> None:
    assert plan("--speculative-algorithm EAGLE").fidelity == "estimate"
    assert plan("--lora-paths a=b").fidelity == "estimate"


@given(shapes, fractions, fractions)
def test_more_fraction_never_means_fewer_tokens(shape: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert plan(f"--mem-fraction-static {low}", shape).tokens <= plan(f"--mem-fraction-static {high}", shape).tokens


@given(shapes, st.sampled_from([1, 2, 4]))
def test_more_ranks_never_mean_fewer_tokens(shape: str, tp: int) -> None:
    fixed = "--mem-fraction-static 0.8"
    assert plan(f"--tp-size {tp} {fixed}", shape).tokens <= plan(f"--tp-size {2 * tp} {fixed}", shape).tokens


@given(shapes, st.integers(0, 90000), st.integers(0, 90000))
def test_more_taken_never_means_more_tokens(shape: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert plan("", shape, GpuMemory(143771, high)).tokens <= plan("", shape, GpuMemory(143771, low)).tokens


@given(shapes, fractions, st.integers(1, 200_000))
def test_the_fraction_that_is_proposed_suffices(shape: str, fraction: float, tokens: int) -> None:
    """`fraction_for` is the smallest in thousandths: it holds the tokens, a thousandth less does not."""
    needed = plan(f"--mem-fraction-static {fraction}", shape).fraction_for(tokens)
    if needed < 1:
        assert plan(f"--mem-fraction-static {needed}", shape).tokens >= tokens - 1
        assert plan(f"--mem-fraction-static {needed - 0.001:.3f}", shape).tokens <= tokens


@given(shapes, fractions)
def test_nothing_is_counted_twice(shape: str, fraction: float) -> None:
    found = plan(f"--mem-fraction-static {fraction}", shape)
    assert found.weights + max(0, found.kv_cache) + found.request_table + found.free_after <= found.free_before
    assert found.kv_cache <= found.tokens * found.kv_bytes_per_token


@pytest.mark.parametrize(
    ("text", "number"), [("20000", 20000), ("20k", 20000), ("16Ki", 16384), ("1.5M", 1_500_000), ("-1", -1)]
)
def test_numbers_with_units(text: str, number: int) -> None:
    assert integer(text) == number


def test_arguments() -> None:
    sizes = Sizes.of(
        ["--tp-size=4", "--cuda-graph-bs-decode", "1", "2", "64", "--disable-cuda-graph", "--attn-dp-size", "2"]
    )
    assert (sizes.tp, sizes.attn_tp, sizes.decode_graph_sizes, sizes.decode_graphs) == (4, 2, 64, False)
    assert Sizes.of(["--disable-cuda-graph", "--cuda-graph-backend-decode", "full"]).decode_graphs
    with pytest.raises(ValueError, match=r"--tp-size is 'two', which is not a number\."):
        Sizes.of(["--tp-size", "two"])
    assert overrides(["--json-model-override-args", '{"num_hidden_layers": 2}']) == {"num_hidden_layers": 2}
    assert overrides(["--json-model-override-args", "{"]) == {}
