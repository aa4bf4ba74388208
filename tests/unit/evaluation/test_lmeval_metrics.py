"""Which metrics of the harness are means over items, and what an item adds to the others."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sglang_ops.evaluation.agent import samples, together
from sglang_ops.evaluation.agent.lmeval import LmEvalTask
from sglang_ops.evaluation.agent.task import Problem
from sglang_ops.evaluation.agent.together import influences, kept, scored_together, spread


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def of_instructions(values: list[list[bool]]) -> float:
    """IFEval's."""
    flat = [value for one in values for value in one]
    return sum(flat) / len(flat)


def of_pairs(values: list[tuple[float, float]]) -> float:
    """The harness's weighted_mean: a value and its weight."""
    return sum(value for value, _ in values) / sum(weight for _, weight in values)


def bleu(values: list[tuple[str, str]]) -> float:
    return float(sum(len(a) == len(b) for a, b in values))


def test_only_means_over_items_are_scores_of_items() -> None:
    known: dict[str, Callable[[Any], Any]] = {
        "acc": mean, "loose": of_instructions, "weighted": of_pairs, "bleu": bleu, "middle": statistics.median,
        "geometric": lambda values: math.exp(-mean(values)), "none": lambda values: 999,
    }  # fmt: skip
    assert list(scored_together(known)) == ["weighted", "bleu", "middle", "geometric", "none"]


def bypass_agg(_: Any) -> float:
    """By its name, the harness's for what it does not score."""
    return 999.0


def test_metrics_of_all_answers_are_kept_only_where_there_is_no_other() -> None:
    assert list(kept({"bleu": bleu, "acc": mean, "later": bypass_agg})) == ["acc"]
    assert list(kept({"bleu": bleu, "later": bypass_agg, "middle": statistics.median})) == ["bleu", "middle"]


class Loaded:
    """As much of a task of the harness as `check` looks at."""

    eval_docs = ("a", "b")

    def __init__(self, **metrics: Callable[[Any], Any]) -> None:
        self.aggregation = lambda: metrics

    def get_config(self, _: str) -> str:
        return "generate_until"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., dict[str, Any]]:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.4.13")
    monkeypatch.setattr(LmEvalTask, "_dataset", lambda *_: {})

    def one(share: Sequence[int] = (0, 1), **metrics: Callable[[Any], Any]) -> dict[str, Any]:
        item = {"name": "t", "harness_task": "t", "shards": [share], "repeats": 1}
        monkeypatch.setattr(LmEvalTask, "_load", lambda _: Loaded(**metrics))
        return LmEvalTask(item, {}, tmp_path, {}).check()

    return one


def test_the_primary_metric_is_the_first_that_is_kept(check: Callable[..., dict[str, Any]]) -> None:
    assert check(bleu=bleu, acc=mean)["primary"] == "acc"
    assert check(bleu=bleu, chrf=bleu)["primary"] == "bleu"


def test_a_task_that_the_harness_does_not_score_is_refused_before_it_is_asked(
    check: Callable[..., dict[str, Any]],
) -> None:
    with pytest.raises(Problem, match="the harness does not score it"):
        check(later=bypass_agg)


@pytest.mark.parametrize(("share", "here"), [([0, 3], 2), ([1, 3], 0)])
def test_what_is_judged_together_is_asked_by_one_host(
    check: Callable[..., dict[str, Any]], share: list[int], here: int
) -> None:
    assert check(share, bleu=bleu) | {"items": 2, "here": here} == check(share, bleu=bleu)
    assert check([1, 2], bleu=bleu, acc=mean)["here"] == 1, "what has a score by item is shared"


def f1(values: Sequence[tuple[int, int]]) -> float:
    right = sum(gold and told for gold, told in values)
    return 2 * right / (sum(gold for gold, _ in values) + sum(told for _, told in values))


ANSWERS = [(int(n % 3 == 0), int(n % 5 != 1)) for n in range(40)]


def test_what_items_add_has_the_metric_as_mean_and_the_jackknifes_spread() -> None:
    values = influences(ANSWERS, f1)
    assert statistics.fmean(values) == pytest.approx(f1(ANSWERS), abs=1e-12)
    without = [f1([*ANSWERS[:at], *ANSWERS[at + 1 :]]) for at in range(len(ANSWERS))]
    count, middle = len(ANSWERS), statistics.fmean(without)
    jackknife = (count - 1) / count * sum((one - middle) ** 2 for one in without)
    assert statistics.variance(values) / count == pytest.approx(jackknife)
    assert values[0] > f1(ANSWERS) > values[1], "right, and wrongly told"


def test_of_a_mean_items_add_their_own_value() -> None:
    assert influences([0.0, 1.0, 0.5, 1.0], mean) == pytest.approx([0.0, 1.0, 0.5, 1.0])


def test_slow_metrics_leave_out_groups_of_items_and_come_to_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)  # noqa: S311 - no secret
    answers = [(draw.randrange(2), draw.randrange(2)) for _ in range(402)]  # no multiple of the groups
    each = influences(answers, f1)
    monkeypatch.setattr(together, "SECONDS", 0.0)
    calls: list[int] = []

    def counted(values: Sequence[tuple[int, int]]) -> float:
        calls.append(len(values))
        return f1(values)

    groups = influences(answers, counted)
    assert len(calls) == 2 + together.FEWEST_GROUPS
    assert statistics.fmean(groups) == pytest.approx(f1(answers), abs=1e-12)
    assert 0.5 < statistics.stdev(groups) / statistics.stdev(each) < 2


def test_a_metric_without_a_number_has_none_for_the_items() -> None:
    assert all(map(math.isnan, influences([1, 2], lambda _: {"a": 1})))
    assert influences([7], lambda values: values[0]) == [7.0]
    halves = influences([1, 2, 3], lambda values: len(values) / (len(values) - 2))
    assert halves == [3.0, 3.0, 3.0], "what cannot be scored without an item says nothing of it"


def test_each_filter_of_the_harness_is_judged_by_itself() -> None:
    log = [
        {"doc_id": item, "filter": kind, "metrics": ["f1"], "f1": pair}
        for kind, pairs in (("strict", [(1, 0), (1, 1), (0, 0)]), ("loose", [(1, 1), (1, 1), (0, 0)]))
        for item, pair in enumerate(pairs)
    ]
    found = spread(log, {"f1": f1})
    assert log[0]["f1"] == (1, 0), "the harness's own log stays"
    by_filter = {kind: [one["f1"] for one in found if one["filter"] == kind] for kind in ("strict", "loose")}
    assert statistics.fmean(by_filter["strict"]) == pytest.approx(2 / 3)
    assert by_filter["loose"] == [1.0, 1.0, 1.0]


def test_what_is_no_score_of_an_item_is_left_out() -> None:
    entry = {"filter": "none", "metrics": ["acc", "f1", "nan"], "acc": True, "f1": (1, 0), "nan": math.nan}
    assert samples.scored([entry], several_filters=False, without={"f1"})["scores"] == {"acc": 1.0}
