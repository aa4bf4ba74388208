from __future__ import annotations

from typing import Any

import pytest

from sglang_ops.benchmark import points
from sglang_ops.benchmark.points import Data
from sglang_ops.errors import UsageError


def plan(**changes: Any) -> tuple[points.Point, ...]:
    settings: dict[str, Any] = {
        "data": [Data.RANDOM], "concurrency": [1, 8], "rates": [], "input_len": 512, "output_len": 128,
        "prompts": None, "seed": 100,
    }  # fmt: skip
    return points.plan(**settings | changes)


def value(point: points.Point, flag: str) -> str:
    return point.arguments[point.arguments.index(flag) + 1]


def test_one_point_for_each_load_and_kind_of_data() -> None:
    found = plan(data=[Data.RANDOM, Data.SHARED_PREFIX])
    assert [(point.name, point.prompts) for point in found] == [
        ("random 1 at once", 16),
        ("random 8 at once", 32),
        ("shared-prefix 1 at once", 16),
        ("shared-prefix 8 at once", 32),
    ]


def test_no_two_points_share_prompts() -> None:
    assert [value(point, "--seed") for point in plan(concurrency=[1, 2, 4])] == ["100", "101", "102"]


def test_random_prompts_are_token_ids_of_exactly_the_length() -> None:
    point = plan(input_len=1000, output_len=50)[0]
    assert value(point, "--dataset-name") == "random-ids"
    assert (value(point, "--random-input-len"), value(point, "--random-output-len")) == ("1000", "50")
    assert value(point, "--random-range-ratio") == "1"
    assert "--tokenize-prompt" in point.arguments


def test_shared_prefixes_are_three_quarters_of_a_prompt() -> None:
    point = plan(data=[Data.SHARED_PREFIX], prompts=20, input_len=400)[0]
    assert (value(point, "--gsp-system-prompt-len"), value(point, "--gsp-question-len")) == ("300", "100")
    assert int(value(point, "--gsp-num-groups")) * int(value(point, "--gsp-prompts-per-group")) == point.prompts == 24


def test_rates_take_the_place_of_concurrency() -> None:
    found = plan(rates=[0.5, 4])
    assert [(point.name, point.prompts) for point in found] == [("random 0.5/s", 16), ("random 4/s", 120)]
    assert value(found[0], "--request-rate") == "0.5"
    assert "--max-concurrency" not in found[0].arguments


def test_too_many_points_are_refused() -> None:
    with pytest.raises(UsageError, match="51 points are asked for, 50 are the most"):
        plan(concurrency=list(range(1, 52)))


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "x", "1.5", "1e9"])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--concurrency .*: '.*' is no whole number"):
        points.numbers(text, "--concurrency", int)


def test_lists_of_numbers() -> None:
    assert points.numbers("1,4,16", "--concurrency", int) == [1, 4, 16]
    assert points.numbers("0.5,2", "--request-rate", float) == [0.5, 2.0]
