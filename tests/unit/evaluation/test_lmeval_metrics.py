"""Which metrics of the harness are means over items, and what is kept of the others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from sglang_ops.evaluation.agent import samples
from sglang_ops.evaluation.agent.lmeval import LmEvalTask, cause, scored_together
from sglang_ops.evaluation.agent.task import Problem


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
    assert scored_together(known) == {"weighted", "bleu", "middle", "geometric", "none"}


class Config:
    def __init__(self, names: list[str]) -> None:
        self.metric_list = [{"metric": name} for name in names]


class Loaded:
    """As much of a task of the harness as `check` looks at."""

    eval_docs = ("a", "b")

    def __init__(self, **metrics: Callable[[Any], Any]) -> None:
        self.config = Config(list(metrics))
        self.aggregation = lambda: metrics

    def get_config(self, _: str) -> str:
        return "generate_until"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., dict[str, Any]]:
    item = {"name": "t", "harness_task": "t", "shards": [[0, 1]], "repeats": 1}
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.4.13")
    monkeypatch.setattr(LmEvalTask, "_dataset", lambda *_: {})

    def one(**metrics: Callable[[Any], Any]) -> dict[str, Any]:
        monkeypatch.setattr(LmEvalTask, "_load", lambda _: Loaded(**metrics))
        return LmEvalTask(item, {}, tmp_path, {}).check()

    return one


def test_a_task_without_a_score_by_item_is_refused_before_it_is_asked(check: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(Problem, match=r"its metrics \(bleu, chrf\) score all answers together"):
        check(bleu=bleu, chrf=bleu)
    assert check(bleu=bleu, acc=mean)["primary"] == "acc", "the first that is one"
    assert check()["primary"] == "", "what it scores itself is not known beforehand"


def test_a_data_set_without_items_is_refused(
    check: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loaded, "eval_docs", ())
    with pytest.raises(Problem, match="its data set has no items"):
        check(acc=mean)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "401 Client Error: Unauthorized for url: https://huggingface.co/api/x/y",
            "x/y is gated. Set HF_TOKEN",
        ),
        ("403 Client Error. Access to dataset x/y is restricted", "x/y is gated. Set HF_TOKEN"),
        ("Dataset 'x/y' is a gated dataset on the Hub", "x/y is gated. Set HF_TOKEN"),
        ("Couldn't reach 'x/y' on the Hub (offline mode is enabled)", "x/y is not on the host and cannot be reached"),
        ("column answer is missing", "RuntimeError: column answer is missing"),
    ],
)
def test_why_data_cannot_be_loaded_is_told_with_what_to_do(error: str, told: str) -> None:
    assert told in cause(RuntimeError(error), "x/y")


def test_what_is_no_score_of_an_item_is_left_out() -> None:
    entry = {"filter": "none", "metrics": ["acc", "f1", "nan"], "acc": True, "f1": (1, 0), "nan": math.nan}
    assert samples.scored([entry], several_filters=False, without={"f1"})["scores"] == {"acc": 1.0}
