"""How runs, their results and tasks are shown on a terminal, and the same as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sglang_ops.commands import _common, _views
from sglang_ops.evaluation import results
from sglang_ops.evaluation.report import percent
from sglang_ops.evaluation.tasks import Task

_OVER = ("done", "cancelled", "stalled", "stopped", "replaced", "failed", "refused", "removed")


def summary(task: results.TaskResult) -> dict[str, Any]:
    return {
        "name": task.task,
        "score": task.score,
        "interval": list(task.interval) if task.interval else None,
        "metric": task.primary,
        "items": task.items,
        "failed": task.failed,
        "empty": task.empty,
        "reasoning_only": task.reasoning_only,
        "seconds": task.timings.seconds,
        "complete": task.complete,
        "run": task.run,
    }


def group(found: results.Group) -> dict[str, Any]:
    return {
        "name": found.name,
        "tasks": list(found.tasks),
        "complete": found.complete,
        "means": [{"metric": one.name, "score": one.score, "interval": list(one.interval), "items": one.items}
                  for one in found.metrics],
    }  # fmt: skip


def show_groups(found: Sequence[results.Group]) -> None:
    if not found:
        return
    table = _views.grid("group", "mean of", "score", "interval", "tasks")
    for one in found:
        for metric in one.metrics or (None,):
            table.add_row(
                one.name, metric.name if metric else "-", percent(metric.score) if metric else "-",
                f"{percent(metric.interval[0])} – {percent(metric.interval[1])}" if metric else "-",
                str(len(one.tasks)) + ("" if one.complete else ", incomplete"),
            )  # fmt: skip
    _common.stdout().print(table)


def model(told: Mapping[str, Any]) -> str:
    """A release record's model in a few characters."""
    if not told.get("repo"):
        return str(told.get("directory") or "a model without a name")
    return f"{told['repo']}@{str(told.get('commit') or 'no revision')[:12]}"


def show_runs(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        _common.stdout().print("There are no runs on these hosts.")
        return
    table = _views.grid("host", "run", "service", "state", "answered", "rate", "left", "failed", "tasks")
    for row in rows:
        tasks = row.get("tasks") or {}
        left = row.get("seconds_left")
        table.add_row(
            str(row["host"]), str(row["run"]), str(row.get("service") or "-"), str(row["state"]),
            f"{row['done']}/{row['total']}" if row.get("total") is not None else "-",
            f"{row['rate']:.1f}/s" if row.get("rate") and row["state"] not in _OVER else "-",
            f"{left} s" if left and row["state"] not in _OVER else "-",
            str(sum(task.get("failed", 0) for task in tasks.values())), ", ".join(row.get("names") or []),
        )  # fmt: skip
    _common.stdout().print(table)


def described(task: Task) -> dict[str, Any]:
    return {
        "name": task.name, "harness": task.harness, "image": task.nvidia.image if task.nvidia else None,
        "harness_task": task.harness_task, "endpoint": task.endpoint, "items": task.items,
        "dataset": task.dataset, "gated": task.gated, "needs": task.needs,
    }  # fmt: skip


def show_tasks(found: Sequence[Task], total: int) -> None:
    table = _views.grid("task", "harness", "endpoint", "items", "data set", "needs")
    for task in found:
        table.add_row(
            task.name, task.harness, task.endpoint, str(task.items or "-"), task.dataset or "-", task.needs or "-"
        )
    _common.stdout().print(table)
    if len(found) < total:
        _common.stdout().print(f"… and {total - len(found)} more: `sglang-ops evaluate tasks TEXT` narrows them down.")
