"""Every example of the SGLang deployment page is accepted as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sglang_ops.spec import DeploymentFile, cache_of, check, warnings
from sglang_ops.spec.yamlfile import parse

PAGE = (Path(__file__).parent / "page.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^## (.*?)\n\n```yaml\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
COMPLETE = BLOCKS["Complete Example"]
# The page shows parts; what a part leaves out.
MODEL = "  hf_model_handle: meta-llama/Llama-3.1-8B-Instruct\n"
NAME = "  served_model_name: your-model-name\n"


def completed(block: str) -> str:
    missing = "" if "served_model_name:" in block else NAME
    missing += "" if re.search(r"hf_model_handle:|checkpoint_path:", block) else MODEL
    return block.replace("deployment:\n", f"deployment:\n{missing}", 1)


def load(block: str) -> DeploymentFile:
    return check(parse(completed(block), "the page"))


def options() -> list[str]:
    """The three ways to name a model, which the page shows in one block."""
    parts = re.split(r"^# Option \d.*\n", BLOCKS["Model Loading Options"], flags=re.MULTILINE)
    return [part for part in parts if part.strip()]


def test_the_page_has_the_examples_that_are_tested() -> None:
    assert set(BLOCKS) == {
        "Basic Settings", "Parallelism Configuration", "Advanced Configuration", "Model Loading Options",
        "Complete Example", "Memory Optimization", "Caching and Storage",
    }  # fmt: skip
    assert len(options()) == 3


@pytest.mark.parametrize("title", sorted(set(BLOCKS) - {"Model Loading Options"}))
def test_each_example_is_accepted(title: str) -> None:
    assert len(load(BLOCKS[title]).services) == 1


def test_basic_settings_name_the_hub_and_the_checkpoint() -> None:
    deployment = load(BLOCKS["Basic Settings"]).deployment
    assert deployment.hf_model_handle == "meta-llama/Llama-3.1-8B-Instruct"
    assert deployment.checkpoint_path == "/path/to/local/checkpoint"


def test_the_three_ways_to_name_a_model() -> None:
    found = [load(part).deployment for part in options()]
    assert [bool(item.hf_model_handle) for item in found] == [True, False, True]
    assert [bool(item.checkpoint_path) for item in found] == [False, True, True]


def test_total_gpus_are_the_product_of_the_sizes() -> None:
    assert load(BLOCKS["Parallelism Configuration"]).deployment.gpus_needed == 8
    assert load(COMPLETE).deployment.gpus_needed == 4


def test_advanced_configuration() -> None:
    deployment = load(BLOCKS["Advanced Configuration"]).deployment
    assert deployment.extra_args == ("--disable-flashinfer", "--enable-torch-compile")
    assert deployment.env_vars["CUDA_VISIBLE_DEVICES"].value == "0,1,2,3"
    assert deployment.endpoints.model_dump() == {
        "chat": "/v1/chat/completions", "completions": "/v1/completions", "health": "/health",
    }  # fmt: skip


def test_the_complete_example_and_what_is_said_about_it() -> None:
    file = load(COMPLETE)
    assert file.execution.output_dir == "sglang_evaluation_results"
    assert [task.name for task in file.evaluation.tasks] == ["gpqa_diamond", "ifeval"]
    assert file.deployment.service_name == "sglang-llama-3-1-8b-instruct"
    assert warnings(file) == ["image lmsysorg/sglang:latest moves; each run pins the digest that it has then."]


def test_the_complete_example_is_among_the_examples() -> None:
    examples = Path(__file__).parents[3] / "examples"
    assert (examples / "complete.yaml").read_text(encoding="utf-8") == COMPLETE


def test_memory_settings_reach_the_server() -> None:
    deployment = load(BLOCKS["Memory Optimization"]).deployment
    assert deployment.extra_args == ("--mem-fraction-static", "0.8", "--max-running-requests", "256")
    assert deployment.env_vars["PYTORCH_CUDA_ALLOC_CONF"].value == "max_split_size_mb:128"


def test_fast_storage_is_the_same_path_on_the_host_and_transformers_cache_is_told_apart() -> None:
    cache = cache_of(load(BLOCKS["Caching and Storage"]).deployment, "/unused")
    assert cache.host_home == cache.container_home == "/fast/storage/huggingface"
    assert cache.host_hub == "/fast/storage/huggingface/hub"
    (warning,) = cache.warnings
    assert "TRANSFORMERS_CACHE" in warning
    assert "HF_HOME says where the models are" in warning
