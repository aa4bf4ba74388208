"""What is wrong with a task's data is told in one sentence, before anything is asked."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang_ops.evaluation.agent.lmeval import LmEvalTask, cause
from sglang_ops.evaluation.agent.task import Problem


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError("401 Client Error. Access to dataset a/b is restricted."), "is gated. Set HF_TOKEN"),
        (OSError("403 Forbidden: Please enable access to public gated repositories"), "is gated. Set HF_TOKEN"),
        (RuntimeError("Dataset 'a/b' is a gated dataset on the Hub."), "is gated. Set HF_TOKEN"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (offline mode)"), "is not on the host and cannot be reached"),
        (ValueError("a column is missing"), "ValueError: a column is missing"),
    ],
)
def test_why_data_cannot_be_loaded(error: Exception, says: str) -> None:
    assert says in cause(error, "a/b")


def test_a_task_without_items_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"exact_match": lambda values: sum(values) / len(values)}
    empty = SimpleNamespace(eval_docs=[], aggregation=lambda: metrics, get_config=lambda _: "generate_until")
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.4.13")
    monkeypatch.setattr(LmEvalTask, "_load", lambda _: empty)
    item = {"name": "t", "harness_task": "t", "shards": [[0, 1]], "limit": None, "repeats": 1}
    with pytest.raises(Problem, match="its data set has no items"):
        LmEvalTask(item, {}, tmp_path, {}).check()
