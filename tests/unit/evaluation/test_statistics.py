"""Known values are from the papers named, from tables of Student's t, or reckoned by hand."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
from evaluation_runs import sample
from hypothesis import given
from hypothesis import strategies as st

from sglang_ops.evaluation import scoring, statistics


def once(scores: Sequence[float]) -> dict[str, list[tuple[float, float]]]:
    return {f"item-{n:05}": [(float(score), 1.0)] for n, score in enumerate(scores)}


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - statistics, no secret


def repeated(rows: Sequence[Sequence[float]]) -> dict[str, list[tuple[float, float]]]:
    return {f"item-{n:05}": [(float(score), 1.0) for score in row] for n, row in enumerate(rows)}


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, "Two-sided confidence intervals for the single proportion"
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_newcombes_table(successes: int, count: int, low: float, high: float) -> None:
    found = statistics.estimate(once([1] * successes + [0] * (count - successes)))
    assert found.method == "wilson"
    assert found.score == pytest.approx(successes / count)
    assert found.interval == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 10, 2.22814), (0.95, 30, 1.69726), (0.995, 1000, 2.58075)],
)
def test_quantiles_of_student_t(probability: float, freedom: int, quantile: float) -> None:
    assert statistics.t_quantile(probability, freedom) == pytest.approx(quantile, rel=1e-5)
    assert statistics.t_cumulative(quantile, freedom) == pytest.approx(probability, abs=1e-5)
    assert statistics.t_cumulative(-quantile, freedom) == pytest.approx(1 - probability, abs=1e-5)


@pytest.mark.parametrize(
    ("better", "worse", "p_value"),
    [(0, 0, 1.0), (5, 5, 1.0), (1, 9, 0.021484375), (0, 6, 0.03125), (12, 2, 0.012939453125)],
)
def test_mcnemar_is_the_binomial_test(better: int, worse: int, p_value: float) -> None:
    assert statistics.mcnemar(better, worse) == pytest.approx(p_value)
    assert statistics.mcnemar(worse, better) == pytest.approx(p_value)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, "Improved confidence intervals … paired data", method 10
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((0, 0, 0, 54), -0.0664, 0.0664),
    ],
)
def test_newcombes_paired_interval(table: tuple[int, int, int, int], low: float, high: float) -> None:
    assert statistics.newcombe(table) == pytest.approx((low, high), abs=5e-5)


def test_student_t_for_other_scores() -> None:
    found = statistics.estimate(once([5.1, 4.9, 6.2, 5.7, 5.5]))
    assert found.score == pytest.approx(5.48)
    assert found.interval == pytest.approx((5.48 - 2.776445 * 0.228910, 5.48 + 2.776445 * 0.228910), abs=1e-5)
    assert found.method == "student t, clustered by item"


def test_repeats_that_agree_tell_no_more_than_one() -> None:
    rows = [[1] * 8] * 6 + [[0] * 8] * 4
    found = statistics.estimate(repeated(rows))
    low, high = statistics.estimate(once([1] * 6 + [0] * 4)).interval
    assert found.items == 10
    assert found.interval[0] == pytest.approx(low, abs=0.03)
    assert found.interval[1] == pytest.approx(high, abs=0.03)
    assert found.method == "wilson, clustered by item"


def test_repeats_that_vary_freely_narrow_the_interval() -> None:
    draw = seeded(1)
    rows = [[float(draw.random() < 0.5) for _ in range(8)] for _ in range(50)]
    many = statistics.estimate(repeated(rows)).interval
    one = statistics.estimate(once([row[0] for row in rows])).interval
    assert many[1] - many[0] < 0.6 * (one[1] - one[0])


def test_all_right_is_not_certain() -> None:
    assert statistics.estimate(repeated([[1, 1, 1]] * 12)).interval == pytest.approx((0.7575, 1.0), abs=1e-4)
    assert statistics.estimate(once([0.5] * 4)).interval[0] < 0.2


def test_weights_count_instructions() -> None:
    items = {"a": [(0.5, 2.0)], "b": [(1.0, 1.0)], "c": [(1.0, 5.0)]}
    assert statistics.estimate(items).score == pytest.approx(7 / 8)


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(ValueError, match="no item has a score"):
        statistics.estimate({})
    with pytest.raises(ValueError, match="no item in common"):
        statistics.compare(once([1]), {"other": [(1.0, 1.0)]})


def test_a_comparison_is_paired() -> None:
    first = once([1] * 36 + [0] * 12 + [1] * 2)
    second = once([1] * 36 + [1] * 12 + [0] * 2)
    found = statistics.compare(first, second)
    assert (found.better, found.worse, found.items) == (12, 2, 50)
    assert found.difference == pytest.approx(0.2)
    assert found.p_value == pytest.approx(0.01294, abs=1e-5)
    assert found.interval == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * (14 / 50) ** 0.5 / 50**0.5, abs=1e-5)


def test_only_common_items_count() -> None:
    found = statistics.compare(once([1, 1, 0, 0]), once([1, 0]))
    assert (found.items, found.first, found.second) == (2, 1.0, 0.5)


def test_the_permutation_is_exact_for_few_items() -> None:
    found = statistics.compare(once([0.1, 0.2, 0.3, 0.4]), once([0.3, 0.5, 0.7, 0.5]))
    assert found.p_value == pytest.approx(2 / 16)
    assert found.method == "permutation exact, student t"
    assert found.difference == pytest.approx(0.25)
    assert found.interval == pytest.approx((0.04457, 0.45543), abs=1e-4)


def test_drawn_permutations_agree_with_student_t() -> None:
    draw = seeded(7)
    first = [draw.random() for _ in range(200)]
    second = [value + draw.gauss(0.02, 0.15) for value in first]
    found = statistics.compare(once(first), once(second))
    assert found.method == "permutation of 10000 draws, student t"
    long = statistics.compare(once(first * 3), once(second * 3))
    assert long.method == "student t"
    steps = [b - a for a, b in zip(first, second, strict=True)]
    mean = sum(steps) / 200
    deviation = (sum((step - mean) ** 2 for step in steps) / 199 / 200) ** 0.5
    assert found.p_value == pytest.approx(2 * statistics.t_cumulative(-abs(mean) / deviation, 199), abs=0.02)
    assert found.p_value == statistics.compare(once(first), once(second)).p_value


def test_two_equal_runs_do_not_differ() -> None:
    for rows in ([[1.0], [0.0]] * 10, [[0.5], [0.2]] * 10, [[1.0, 0.0]] * 20):
        found = statistics.compare(repeated(rows), repeated(rows))
        assert (found.difference, found.p_value, found.better, found.worse) == (0, 1.0, 0, 0)
        assert found.interval[0] < 0 < found.interval[1]
        assert found.detectable > 0


def test_without_confidence_an_interval_is_the_score() -> None:
    assert statistics.estimate(once([1, 0, 1, 1]), 0.0).interval == pytest.approx((0.75, 0.75))
    assert statistics.compare(once([1, 0, 1]), once([1, 1, 1]), 0.0).interval == pytest.approx((1 / 3, 1 / 3))


@pytest.mark.parametrize("repeats", [1, 3])
def test_an_interval_of_95_holds_the_truth_as_often(repeats: int) -> None:
    draw, inside = seeded(3), 0
    for _ in range(400):
        chances = [draw.betavariate(4, 2) for _ in range(60)]
        rows = [[float(draw.random() < chance) for _ in range(repeats)] for chance in chances]
        low, high = statistics.estimate(repeated(rows)).interval
        inside += low <= 4 / 6 <= high
    assert 0.92 <= inside / 400 <= 0.98


@given(
    st.dictionaries(st.text(), st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 9)), min_size=1), min_size=1),
    st.floats(0.0, 0.999),
)
def test_an_interval_holds_its_score(items: dict[str, list[tuple[float, float]]], confidence: float) -> None:
    found = statistics.estimate(items, confidence)
    assert -1e-9 <= found.interval[0] <= found.score + 1e-9
    assert found.score - 1e-9 <= found.interval[1] <= 1 + 1e-9


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=40))
def test_a_comparison_turned_round_says_the_opposite(pairs: list[tuple[float, float]]) -> None:
    one, other = once([a for a, _ in pairs]), once([b for _, b in pairs])
    forth, back = statistics.compare(one, other), statistics.compare(other, one)
    assert forth.difference == pytest.approx(-back.difference, abs=1e-9)
    assert forth.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-6)
    assert forth.p_value == pytest.approx(back.p_value, abs=1e-9)
    assert 0 <= forth.p_value <= 1
    assert (forth.better, forth.worse) == (back.worse, back.better)


def test_ten_thousand_items_take_less_than_a_few_seconds() -> None:
    draw = seeded(5)
    first = once([draw.random() for _ in range(10_000)])
    second = once([draw.random() for _ in range(10_000)])
    before = time.process_time()
    statistics.estimate(first)
    statistics.compare(first, second)
    assert time.process_time() - before < 3


def test_answers_are_counted() -> None:
    samples = [
        sample(0),
        sample(1, None, answer=None, failed="HTTP 500 after 3 attempts"),
        sample(2, 0, answer=" "),
        sample(3, 0, answer=None, reasoning="so it is B"),
    ]
    assert scoring.count(samples).as_dict() == {"answered": 3, "failed": 1, "empty": 1, "reasoning_only": 1}
    found = scoring.measure(samples)
    assert [(metric.name, metric.items, metric.score) for metric in found] == [("exact_match", 3, pytest.approx(1 / 3))]


def test_categories_have_scores_of_their_own() -> None:
    found = scoring.categories([sample(0, 1), sample(1, 0), sample(2, 1), sample(3, 1)], "exact_match")
    assert {name: metric.score for name, metric in found.items()} == {"biology": 1.0, "physics": 0.5}
