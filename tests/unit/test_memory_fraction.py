"""The automatic `--mem-fraction-static`, beside the answers of SGLang's own functions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.shapes import SHAPES
from sglang_ops.planning.architecture import Architecture
from sglang_ops.planning.fraction import NEWEST, automatic, version
from sglang_ops.planning.sizes import Sizes

H100, H200 = 81559, 143771
# Made with `_handle_gpu_memory_settings` of the wheels named: release, MiB, shape, sizes, answer.
ANSWERS = json.loads(Path(__file__).with_name("memory_fractions.json").read_text("utf-8"))
VISION = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {"depth": 32, "hidden_size": 1280}}


def of(arguments: str, release: str | None = "0.5.17", *, total: int = H200, shape: str = "llama-3.1-8b") -> float:
    return automatic(Architecture.of(SHAPES[shape]), Sizes.of(arguments.split()), total, release).value


@pytest.mark.parametrize("release", sorted({answer[0] for answer in ANSWERS}))
def test_every_release_answers_as_its_own_function_does(release: str) -> None:
    answers = [answer for answer in ANSWERS if answer[0] == release]
    assert len(answers) >= 4
    for _, total, shape, sizes, value in answers:
        assert automatic(Architecture.of(SHAPES[shape]), Sizes(**sizes), total, release).value == value


@pytest.mark.parametrize(
    ("arguments", "total", "value"),
    [
        ("", H200, 0.903),
        ("--disable-cuda-graph", H200, 0.910),
        ("--chunked-prefill-size 2048", H200, 0.929),  # the floor of 10 GiB
        ("--tp-size 2", H200, 0.902),
        ("--cuda-graph-backend-prefill disabled", H200, 0.907),
        ("", 23034, 0.822),  # 512 + 1.5 × 2048 + 128 + 2 × 24 + 8 × 42
        ("--cuda-graph-max-bs-decode 8 --chunked-prefill-size 2k", 23034, 0.824),
    ],
)
def test_some_arguments(arguments: str, total: int, value: float) -> None:
    assert of(arguments, total=total) == value


def test_releases_differ() -> None:
    """Small GPUs got larger batches in 0.5.20; decode graphs follow --max-running-requests since 0.5.22."""
    assert of("", "0.5.19", total=23034) > of("", "0.5.20", total=23034)
    assert of("--max-running-requests 16", "0.5.21") == of("", "0.5.21")
    assert of("--max-running-requests 16", "0.5.22") > of("", "0.5.22")
    assert of("", "0.5.1") == round((H200 - 12.5 * 1024) / H200, 3)


def test_old_releases_are_only_near() -> None:
    llama = Architecture.of(SHAPES["llama-3.1-8b"])
    assert not automatic(llama, Sizes(), H100, "0.4.6.post5").exact
    assert automatic(llama, Sizes(tp=8), H100, "0.4.3").value == 0.81
    assert automatic(llama, Sizes(), H100, "0.4.9").exact


def test_vision_takes_a_share() -> None:
    config = {**VISION, "text_config": SHAPES["llama-3.1-8b"]}
    found = automatic(Architecture.of(config), Sizes(), H200, "0.5.17")
    # No prefill graphs, then 0.95 for a tower of ViT-L/14's size and 10 % for each doubling.
    assert found.value == pytest.approx(0.907 * 0.95 * (1 - 0.1 * ((1280 / 1024) ** 2 - 1)))
    assert automatic(Architecture.of(config), Sizes(language_only=True), H200, "0.5.17").value == 0.907


def test_release_names() -> None:
    assert version("0.5.12.post1") == (0, 5, 12)
    assert version(None) == version("main") == NEWEST


def test_the_answers_cover_a_year_of_releases() -> None:
    assert len({answer[0] for answer in ANSWERS}) >= 10
