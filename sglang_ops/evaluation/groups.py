"""Groups and tags of tasks: which tasks they are, and the mean that the group asks for.

The harness's own are listed beside its tasks; those of the user's stand in the YAML files of a task's directory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sglang_ops.errors import UsageError
from sglang_ops.evaluation.results import Group, Metric, TaskResult


@dataclass(frozen=True)
class Mean:
    """A metric of a group: over the tasks' scores, or over their items (`by_size`). `filters` None: all there are."""

    metric: str
    filters: tuple[str, ...] | None = None
    by_size: bool = True

    @classmethod
    def of(cls, metric: str, filters: Sequence[str] | str | None, by_size: bool) -> Mean:
        several = (filters,) if isinstance(filters, str) else tuple(filters) if filters else None
        return cls(str(metric), several, bool(by_size))

    def names(self, found: Sequence[Metric]) -> list[str]:
        """The metrics of a task that are meant; their names have the filter where a task has several."""
        names = [metric.name for metric in found]
        if self.filters is None:
            return [name for name in names if name.partition(",")[0] == self.metric]
        wanted = [f"{self.metric},{one}" for one in self.filters]
        return [name for name in names if name in wanted] or [name for name in names if name == self.metric]


@dataclass(frozen=True)
class Members:
    """What a name stands for: its tasks and means. `here` are those that the user's directory defines."""

    tasks: tuple[str, ...]
    means: tuple[Mean, ...]
    here: frozenset[str] = frozenset()


class _Loader(yaml.SafeLoader):
    """Takes `!function module.name` and every other tag as text."""


_Loader.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))


def of_directory(directory: Path, name: str) -> Members | None:
    """The group or tag `name` of the YAML files in a user's directory, None where there is none. Raises UsageError."""
    files = sorted(directory.glob("*.yaml"))
    read = [content for file in files if isinstance(content := _read(file), dict)]
    tasks = {str(one["task"]): one for one in read if isinstance(one.get("task"), str) and "group" not in one}
    if name in tasks:
        return None
    groups = {str(one["group"]): one for one in read if "group" in one}
    if name in groups:
        listed = groups[name].get("aggregate_metric_list") or []
        means = [
            Mean.of(one["metric"], one.get("filter_list"), one.get("weight_by_size", True))
            for one in ([listed] if isinstance(listed, dict) else listed)
        ]
        found = _resolved(groups[name].get("task") or [], groups, tasks, (name,))
        return Members(tuple(found), tuple(means), frozenset(tasks))
    tagged = [task for task, one in tasks.items() if name in _list(one.get("tag"))]
    return Members(tuple(tagged), (), frozenset(tasks)) if tagged else None


def _resolved(
    written: Any, groups: Mapping[str, Any], tasks: Mapping[str, Any], within: tuple[str, ...]
) -> list[str]:  # fmt: skip
    found: list[str] = []
    for one in _list(written):
        inner = one.get("task") if isinstance(one, dict) and "group" in one else None
        if isinstance(one, dict) and inner is None:
            raise UsageError(
                f"The group {within[-1]} changes the settings of {one.get('task')}.",
                fix="Define a task of its own for it.",
            )
        if isinstance(one, str) and one in within:
            raise UsageError(f"The group {one} is in itself.", fix="Take it out.")
        if isinstance(one, str) and one in groups:
            found += _resolved(groups[one].get("task") or [], groups, tasks, (*within, one))
        elif inner is not None:
            found += _resolved(inner, groups, tasks, (*within, str(one["group"])))
        else:
            tagged = [task for task, each in tasks.items() if one in _list(each.get("tag"))]
            found += tagged if tagged and one not in tasks else [str(one)]
    return list(dict.fromkeys(found))


def _list(written: Any) -> list[Any]:
    return [] if written is None else list(written) if isinstance(written, (list, tuple)) else [written]


def _read(file: Path) -> Any:
    try:
        return yaml.load(file.read_text("utf-8"), _Loader)  # noqa: S506 - it is a safe one
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is no YAML: {' '.join(str(error).split())[:200]}.", fix="Correct it.") from error


def score(written: Mapping[str, Any], found: Sequence[TaskResult]) -> Group:
    """A group's means ({"name", "tasks", "means"}) over the results of its tasks.

    A mean that a task has no score for is left out. The interval is that of a weighted sum of independent scores,
    each with its own (Zou and Donner's MOVER).
    """
    members = [one for one in found if one.task in written["tasks"]]
    whole = len(members) == len(written["tasks"]) and all(one.complete for one in members)
    metrics: dict[str, Metric] = {}
    for mean in (Mean.of(*one) for one in written["means"]):
        for name in mean.names(members[0].metrics) if members else ():
            chosen = [metric for one in members if (metric := one.metric(_like(name, mean, one))) is not None]
            if len(chosen) == len(written["tasks"]):
                metrics[name] = _mean(name, chosen, by_size=mean.by_size)
    return Group(name=written["name"], tasks=tuple(written["tasks"]), metrics=tuple(metrics.values()), complete=whole)


def _like(name: str, mean: Mean, result: TaskResult) -> str:
    """The metric of a task that goes by `name` in another one."""
    names = mean.names(result.metrics)
    return name if name in names else names[0] if names else "-"


def _mean(name: str, of: Sequence[Metric], *, by_size: bool) -> Metric:
    sizes = [metric.items if by_size else 1 for metric in of]
    weights = [size / sum(sizes) for size in sizes]
    value = sum(weight * metric.score for weight, metric in zip(weights, of, strict=True))
    low, high = (
        math.sqrt(sum((weight * (metric.score - metric.interval[end])) ** 2 for weight, metric in pairs))
        for end, pairs in ((0, list(zip(weights, of, strict=True))), (1, list(zip(weights, of, strict=True))))
    )
    return Metric(
        name=name,
        score=value,
        items=sum(metric.items for metric in of),
        interval=(value - low, value + high),
        confidence=of[0].confidence,
        method="mover, by items" if by_size else "mover, by tasks",
    )
