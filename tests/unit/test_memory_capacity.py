"""What is refused, with the change that would do; and the smallest tensor-parallel size that fits."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.shapes import SHAPES
from sglang_ops.planning.architecture import Architecture
from sglang_ops.planning.capacity import Capacity, check, smallest_tp
from sglang_ops.planning.constraints import constraints
from sglang_ops.planning.memory import GpuMemory
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.sizes import Sizes

H200, H100, L4 = GpuMemory(143771), GpuMemory(81559), GpuMemory(23034)


def judged(arguments: str = "", shape: str = "llama-3.1-8b", *gpus: GpuMemory, **more: Any) -> Capacity:
    architecture = Architecture.of({**SHAPES[shape], **more.pop("changes", {})})
    return check(architecture, 0, gpus or [H200], arguments.split(), **{"release": "0.5.17", **more})


def error(capacity: Capacity) -> str:
    assert [problem.check for problem in capacity.errors] == ["memory"]
    return capacity.errors[0].message


def test_what_fits_is_not_refused() -> None:
    assert judged().errors == ()
    assert judged("--tp-size 2", "mixtral-8x7b", H100, H100).errors == ()
    assert check(Architecture.of(SHAPES["llama-3.1-8b"]), 16_060_522_496, [H200], []).warnings == ()


def test_weights_that_do_not_fit() -> None:
    message = error(judged("", "mixtral-8x7b", H100))
    assert message.startswith("the weights take 87.0 GiB on the GPU, where 78.4 GiB are free.")
    assert message.endswith("Use a smaller or a quantised model.")
    assert error(judged("", "mixtral-8x7b", H100, spare=[H100] * 3)).endswith("Set tensor_parallel_size: 2.")


def test_a_fraction_below_the_weights() -> None:
    """The engine's own words at 0.05: raise it above 0.109. That would hold two thousand tokens, so more is said."""
    message = error(judged("--mem-fraction-static 0.05"))
    assert "--mem-fraction-static 0.05 leaves no KV cache: weights take 15.0 GiB of 139.2 GiB on the GPU." in message
    assert message.endswith("Set --mem-fraction-static 0.224.")


def test_a_fraction_that_sglang_chooses_below_the_weights() -> None:
    message = error(judged("", "llama-3.1-8b", L4, release="0.5.23"))
    assert "--mem-fraction-static 0.684, which SGLang chooses here, leaves no KV cache" in message
    assert message.endswith("Set --mem-fraction-static 0.83 and --context-length 20480.")
    assert judged("--mem-fraction-static 0.83 --context-length 20480", "llama-3.1-8b", L4).errors == ()


def test_a_cache_smaller_than_one_request() -> None:
    """At 0.11 the real server starts with 1558 tokens, and turns healthy."""
    message = error(judged("--mem-fraction-static 0.11"))
    assert message.startswith("the KV cache holds 1564 tokens, one request of the full context length needs 131072")
    assert message.endswith("Set --mem-fraction-static 0.224.")
    assert judged("--mem-fraction-static 0.224").errors == ()
    longer = judged("--mem-fraction-static 0.9", "llama-70b-of-40-layers", H100, spare=[H100])
    assert error(longer).endswith("Set --context-length 17408, or set tensor_parallel_size: 2.")


def test_a_limit_below_one_request() -> None:
    message = error(judged("--max-total-tokens 20000"))
    assert message.startswith("--max-total-tokens 20000 is less than the context length of 131072 tokens")
    assert message.endswith("Raise it to 131072, or set --context-length 20000.")
    assert judged("--max-total-tokens 20000 --context-length 20000").errors == ()


def test_a_fraction_that_leaves_nothing() -> None:
    """0.99 dies of its table of requests, as measured; 0.97 starts, and is only doubtful."""
    message = error(judged("--mem-fraction-static 0.99"))
    assert "leaves nothing beside weights and KV cache (its table of 3925 requests takes 1.9 GiB)" in message
    assert message.endswith("Set it to 0.903, or remove it.")
    doubtful = judged("--mem-fraction-static 0.97")
    assert doubtful.errors == ()
    assert any("may run out of memory under load" in warning for warning in doubtful.warnings)


def test_gpus_that_are_not_alike() -> None:
    message = error(judged("--tp-size 2", "llama-3.1-8b", H100, GpuMemory(81559, 40000)))
    assert "41559 MiB free and another 81559 MiB" in message


def test_a_cache_that_is_only_estimated_is_not_refused() -> None:
    gpu = GpuMemory(46068)
    sliding = {"layer_types": ["sliding_attention", "full_attention"] * 16}
    doubtful = judged("--mem-fraction-static 0.4", "llama-3.1-8b", gpu, changes=sliding)
    assert doubtful.errors == ()
    assert any("the KV cache holds at least" in warning for warning in doubtful.warnings)
    assert judged("--mem-fraction-static 0.4", "llama-3.1-8b", gpu).errors


@given(
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from([23034, 46068, 81559, 143771]),
    st.none() | st.floats(0.02, 0.99).map(lambda number: round(number, 3)),
    st.sampled_from([1, 2, 4, 8]),
)
def test_every_change_that_is_proposed_helps(shape: str, total: int, fraction: float | None, count: int) -> None:
    """The first proposal of a message is tried: with it, the server is no longer refused."""
    gpus = [GpuMemory(total)] * count
    given_words = f"--mem-fraction-static {fraction}" if fraction else ""
    found = judged(given_words, shape, gpus[0], spare=gpus[1:])
    for problem in found.errors:
        proposal = re.search(r"(?:Set|set) (?P<what>[^,]*?)(?:, or |\.$)", problem.message)
        if proposal is None:
            assert problem.message.endswith(("quantised model.", "more memory.", "remove it."))
            continue
        words = proposal["what"].replace(" and", "").replace("tensor_parallel_size:", "--tp-size")
        if words.startswith("it to"):
            words = words.replace("it to", "--mem-fraction-static")
        used = gpus if "--tp-size" in words else gpus[:1]
        used = used[: int(words.split()[-1])] if "--tp-size" in words else used
        again = judged(f"{given_words} {words}", shape, *used)
        assert again.errors == () or "instead" in again.errors[0].message or fraction == 0.99


def test_the_smallest_size_that_fits() -> None:
    def smallest(shape: str, gpu: GpuMemory, count: int, arguments: str = "") -> int | Problem:
        return smallest_tp(Architecture.of(SHAPES[shape]), 0, [gpu] * count, arguments.split(), release="0.5.23")

    assert smallest("llama-3.1-8b", H200, 8) == 1
    assert smallest("mixtral-8x7b", H100, 8) == 2
    assert smallest("qwen2.5-14b", L4, 8) == 4
    assert smallest("llama-3.1-8b", L4, 8, "--pp-size 2") == 2
    none = smallest("mixtral-8x7b", L4, 4)
    assert isinstance(none, Problem)
    assert "auto finds no size that fits 4 GPUs. With 4: the weights take" in none.message
    few_heads = Architecture.of({**SHAPES["qwen2.5-14b"], "num_attention_heads": 14, "head_dim": 128})
    beyond = smallest_tp(few_heads, 0, [L4] * 8, [])
    assert isinstance(beyond, Problem)  # 4 and 8 ranks do not divide 14 heads, 7 do not share out 8 KV heads
    assert "With 2: " in beyond.message


@given(st.sampled_from(sorted(SHAPES)), st.sampled_from([23034, 81559, 143771]), st.integers(1, 16))
def test_auto_is_a_size_that_fits_and_no_smaller_one_does(shape: str, total: int, count: int) -> None:
    architecture, gpus = Architecture.of(SHAPES[shape]), [GpuMemory(total)] * count
    found = smallest_tp(architecture, 0, gpus, [])
    if isinstance(found, Problem):
        return
    assert check(architecture, 0, gpus[:found], Sizes(tp=found)).errors == ()
    assert constraints(architecture, Sizes(tp=found)) == []
    for fewer in (ranks for ranks in (1, 2, 4, 8) if ranks < found):
        refused = check(architecture, 0, gpus[:fewer], Sizes(tp=fewer)).errors
        assert refused or constraints(architecture, Sizes(tp=fewer))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--tp-size 3", "has 40 attention heads, which tensor_parallel_size 3 does not divide. Set 2 or 4."),
        (
            "--tp-size 5",
            "heads, which cannot be shared out or repeated over tensor_parallel_size 5. Set 4 or",
        ),
        ("--tp-size 4 --attn-dp-size 3", "which does not divide tensor_parallel_size 4. Set a divisor of 4."),
        ("--tp-size 4 --attn-dp-size 2 --dp-size 2", "excludes data_parallel_size 2"),
        ("--page-size 64 --chunked-prefill-size 1000", "Set --chunked-prefill-size 960."),
        ("--mem-fraction-static 1.5", "is not between 0 and 1"),
        ("--tp-size 4 --moe-dense-tp-size 2", "neither 1 nor tensor_parallel_size 4"),
        ("--served-model-name a:b", "Write 'a-b'."),
        ("--tokenizer-worker-num 2 --api-key k", "excludes --api-key"),
        ("--pp-size 64", "has 48 layers: pipeline_parallel_size 64 is too many"),
        ("--context-length 40000", "more than the 32768 tokens that Qwen2ForCausalLM was made for"),
    ],
)
def test_sizes_that_do_not_go_together(arguments: str, says: str) -> None:
    found = constraints(Architecture.of(SHAPES["qwen2.5-14b"]), arguments.split())
    assert [says in problem.message for problem in found] == [True]


def test_sizes_on_several_nodes() -> None:
    assert "not divisible by 3 nodes" in constraints(None, ["--tp-size", "4"], nodes=3)[0].message
    assert "works on one node only" in constraints(None, ["--tp-size", "2", "--dp-size", "2"], nodes=2)[0].message


def test_sizes_that_go_together() -> None:
    words = "--tp-size 8 --page-size 64 --chunked-prefill-size 4096 --moe-dense-tp-size 1 --attn-dp-size 4"
    assert constraints(Architecture.of(SHAPES["deepseek-v2-lite"]), words.split()) == []
    assert constraints(Architecture.of(SHAPES["llama-3.1-8b"]), ["--tp-size", "16"]) == []
    longer = ["--context-length", "40000"]
    assert constraints(Architecture.of(SHAPES["qwen2.5-14b"]), longer, overwrite=True) == []
