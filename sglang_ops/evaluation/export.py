"""A run in the forms that other programs read: one JSON document, CSV tables, JUnit's XML."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from typing import Any

from sglang_ops.evaluation.policy import Criterion, Decision, Verdict
from sglang_ops.evaluation.results import Run, Sample, Task

# What XML 1.0 cannot hold, not even escaped.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Spreadsheets take such a cell for a formula, and a model may have written it.
_FORMULA = re.compile(r"^[=+\-@\t\r]")
_NUMBER = re.compile(r"^[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$")

SCORES = (
    "run", "task", "harness_task", "metric", "primary", "score", "low", "high", "confidence", "method", "scored_items",
    "items", "answered", "failed", "empty", "reasoning_only", "seconds", "complete", "dataset", "dataset_sha256",
    "harness", "harness_version", "model", "model_revision", "image_digest",
)  # fmt: skip
ITEMS = (
    "run", "task", "id", "repeat", "host", "category", "prompt", "answer", "reasoning", "expected", "failed",
    "finish_reason", "latency_seconds", "prompt_tokens", "completion_tokens", "attempts",
)  # fmt: skip


def as_json(run: Run) -> str:
    """run.json with the results of its tasks, without the samples."""
    data = run.info.model_dump(mode="json", by_alias=True)
    data["results"] = [task.result.model_dump(mode="json", by_alias=True) for task in run.tasks]
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def scores_csv(run: Run) -> str:
    """One line per task and metric; a task without any has one line, without a score."""
    return _csv(SCORES, (row for task in run.tasks for row in _score_rows(run, task)))


def items_csv(run: Run) -> str:
    """One line per answer. Each metric of the run has a column `score.<metric>`. A cell that a spreadsheet would take
    for a formula has an apostrophe before it; samples.jsonl has the text as it is."""
    metrics = dict.fromkeys(name for task in run.tasks for sample in task.samples for name in sample.scores)
    columns = (*ITEMS, *(f"score.{name}" for name in metrics))
    rows = (_item_row(run, task, sample) for task in run.tasks for sample in task.samples)
    return _csv(columns, rows)


def junit(run: Run, decision: Decision | None = None) -> str:
    """One test suite per task. Its test cases are the gate's criteria where a policy judged them, else the question
    whether the task is complete and has a score."""
    root = ET.Element("testsuites", name=_clean(run.info.run))
    for name in run.info.tasks:
        criteria = [item for item in decision.criteria if item.task == name] if decision else []
        _suite(root, run, name, criteria)
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, run: Run, name: str, criteria: Sequence[Criterion]) -> None:
    task = run.task(name)
    seconds = f"{task.result.timings.seconds:.3f}" if task else "0"
    suite = ET.SubElement(root, "testsuite", name=_clean(name), time=seconds, timestamp=run.info.started)
    properties = ET.SubElement(suite, "properties")
    for key, value in _properties(run, task):
        ET.SubElement(properties, "property", name=_clean(key), value=_clean(value))
    cases = [_criterion_case(item) for item in criteria] or [_task_case(task)]
    for number, (title, kind, message) in enumerate(cases):
        # A suite's time is the sum of its cases' for most readers.
        case = ET.SubElement(
            suite,
            "testcase",
            classname=_clean(f"{run.info.deployment}.{name}"),
            name=_clean(title),
            time="0" if number else seconds,
        )
        if kind == "system-out":
            ET.SubElement(case, kind).text = _clean(message)
        else:
            ET.SubElement(case, kind, message=_clean(message)).text = _clean(message)
    counts = {"tests": len(cases), "failures": "failure", "errors": "error", "skipped": "skipped"}
    for key, what in counts.items():
        suite.set(key, str(what if isinstance(what, int) else sum(kind == what for _, kind, _ in cases)))


def _criterion_case(item: Criterion) -> tuple[str, str, str]:
    title = f"{item.name} {item.metric}" if item.metric else item.name
    message = f"{item.verdict} ({item.tier}): {item.why}"
    if item.verdict is Verdict.GO:
        return title, "system-out", message
    return title, "failure" if item.blocks else "skipped", message


def _task_case(task: Task | None) -> tuple[str, str, str]:
    if task is None:
        return "evaluated", "error", "nothing of the task has arrived"
    result = task.result
    if not result.complete:
        return "evaluated", "error", result.incomplete_because or "incomplete"
    if result.score is None:
        return "evaluated", "error", f"no item has a score; {result.failed} of {result.asked} requests failed"
    return "evaluated", "system-out", f"{result.primary} {result.score:.4f} over {result.items} items"


def _properties(run: Run, task: Task | None) -> Iterator[tuple[str, str]]:
    yield from (("model", run.info.model.name), ("model_revision", run.info.model.revision or ""))
    yield "image_digest", run.info.image_digest or ""
    if task:
        result = task.result
        yield from (("dataset", result.dataset.name), ("dataset_sha256", result.dataset.sha256))
        yield from ((key, str(getattr(result, key))) for key in ("items", "answered", "failed", "empty"))
        for metric in result.metrics:
            yield metric.name, repr(metric.score)
            yield f"{metric.name}.interval", f"{metric.interval[0]!r} {metric.interval[1]!r}"


def _score_rows(run: Run, task: Task) -> Iterator[dict[str, Any]]:
    info, result = run.info, task.result
    base = {
        "run": info.run, "task": result.task, "harness_task": result.harness_task, "items": result.items,
        "answered": result.answered, "failed": result.failed, "empty": result.empty,
        "reasoning_only": result.reasoning_only, "seconds": result.timings.seconds, "complete": result.complete,
        "dataset": result.dataset.name, "dataset_sha256": result.dataset.sha256, "harness": result.harness.name,
        "harness_version": result.harness.version, "model": info.model.name, "model_revision": info.model.revision,
        "image_digest": info.image_digest,
    }  # fmt: skip
    for metric in result.metrics:
        yield base | {
            "metric": metric.name, "primary": metric.name == result.primary, "score": metric.score,
            "low": metric.interval[0], "high": metric.interval[1], "confidence": metric.confidence,
            "method": metric.method, "scored_items": metric.items,
        }  # fmt: skip
    if not result.metrics:
        yield base | {"metric": result.primary, "primary": True, "scored_items": 0}


def _item_row(run: Run, task: Task, sample: Sample) -> dict[str, Any]:
    row = {"run": run.info.run, "task": task.result.task, **sample.model_dump(exclude={"scores", "weights"})}
    return row | {f"score.{name}": score for name, score in sample.scores.items()}


def _csv(columns: Sequence[str], rows: Iterator[dict[str, Any]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\r\n")  # RFC 4180
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.match(value):
        return f"'{value}"
    return value


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
