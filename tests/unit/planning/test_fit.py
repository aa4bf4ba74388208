"""GPUs and their memory: what fits is planned, what does not is refused with the smallest change that would."""

from __future__ import annotations

from typing import Any

from situations import COMMIT, HUB, deployed, deployment, host, planned

from sglang_ops.planning import HostFacts

# Llama-3.1-8B, and the same shape at 70B.
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
}
LARGE = LLAMA | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
}


def with_model(config: dict[str, Any] | None, weight_bytes: int, *, gpus: int = 4, **changes: Any) -> HostFacts:
    model = {"repo": "org/m", "hub": HUB, "commit": COMMIT, "cached": True, "bytes": 500}
    return host(gpus=gpus, models=[model | {"files": {"config": config, "weight_bytes": weight_bytes}}], **changes)


SMALL = with_model(LLAMA, 16_060_000_000)
BIG = with_model(LARGE, 141_000_000_000)


def test_memory_is_planned_and_the_gate_knows_what_a_request_needs() -> None:
    service = planned(deployment(), SMALL).services[0]
    assert service.memory is not None
    assert 350_000 < service.memory["tokens"] < 480_000
    assert service.memory["requests"] == service.memory["tokens"] // 131072
    assert service.gate["tokens_needed"] == 131072


def test_too_large_a_model_is_refused_with_the_size_that_fits() -> None:
    (problem,) = planned(deployment(), BIG).errors
    assert problem.check == "memory"
    assert "et tensor_parallel_size: 4" in problem.message


def test_auto_takes_the_smallest_size_that_fits() -> None:
    made = planned(deployment(tensor_parallel_size="auto"), BIG)
    assert made.services[0].gpus == (0, 1, 2, 3)
    assert "--tp-size 4" in made.services[0].unit
    assert planned(deployment(tensor_parallel_size="auto"), SMALL).services[0].gpus == (0,)


def test_auto_keeps_its_size_while_its_own_server_runs() -> None:
    first = planned(deployment(tensor_parallel_size="auto"), BIG)
    busy = [{"index": index, "uuid": f"GPU-{index}", "memory_total_mib": 81559, "memory_used_mib": 75000}
            for index in range(4)]
    again = HostFacts.model_validate(BIG.model_dump() | {"gpus": busy, "services": [deployed(first)]})
    assert planned(deployment(tensor_parallel_size="auto"), again).services[0].action == "none"


def test_auto_without_a_configuration_asks_for_a_number() -> None:
    (problem,) = planned(deployment(tensor_parallel_size="auto"), with_model(None, 0)).errors
    assert "config.json cannot be read" in problem.message
    assert "Write a number" in problem.message


def test_a_cache_smaller_than_one_request_is_refused() -> None:
    (problem,) = planned(deployment(extra_args="--mem-fraction-static 0.25"), SMALL).errors
    assert "one request of the full context length needs 131072" in problem.message
    fine = planned(deployment(extra_args="--mem-fraction-static 0.25 --context-length 8192"), SMALL)
    assert fine.errors == ()
    assert fine.services[0].gate["tokens_needed"] == 8192


def test_heads_that_do_not_divide_are_refused() -> None:
    assert "32" in planned(deployment(tensor_parallel_size=3), SMALL).errors[0].message


def test_unknown_configuration_is_a_warning_only() -> None:
    made = planned(deployment(), with_model(None, 0))
    assert made.errors == ()
    assert any("memory of sglang-m is not planned" in text for text in made.warnings)


def test_sharing_counts_the_neighbour_and_needs_a_fraction() -> None:
    half = "--mem-fraction-static 0.5 --context-length 8192"
    first = planned(deployment(share_gpus=True, extra_args=half), SMALL)
    neighbour = deployed(first, name="sglang-other") | {"port": 9000}
    neighbour["record"] |= {"port": 9000, "memory": first.services[0].memory, "content": {"share_gpus": True}}
    one = with_model(LLAMA, 16_060_000_000, gpus=1, services=[neighbour])
    shared = planned(deployment(share_gpus=True, extra_args=half), one)
    assert shared.errors == ()
    alone, beside = first.services[0].memory, shared.services[0].memory
    assert alone is not None
    assert beside is not None
    assert beside["free_before"] < alone["free_before"] - 30 * 2**30
    (problem,) = planned(deployment(share_gpus=True), one).errors
    assert "Set --mem-fraction-static" in problem.message
