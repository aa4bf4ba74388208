"""Two runs side by side: only tasks over the same data, only items that both answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sglang_ops.evaluation import scoring, statistics
from sglang_ops.evaluation.results import ResultError, Run, Sample, Task
from sglang_ops.evaluation.statistics import Difference
from sglang_ops.spec.problems import nearest


@dataclass(frozen=True)
class Flip:
    """An item whose score changed. Scores are means over the repeats; answers are those of the first repeat."""

    id: str
    category: str | None
    prompt: str
    expected: str | None
    first_score: float
    second_score: float
    first_answer: str | None
    second_answer: str | None


@dataclass(frozen=True)
class TaskComparison:
    """One task in both runs. `only_first` and `only_second` count items with a score in one run alone."""

    task: str
    metric: str
    same_data: bool
    difference: Difference
    only_first: int
    only_second: int
    flips: tuple[Flip, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Two runs, second minus first; `unmatched` tasks are in one of them alone."""

    first: str
    second: str
    tasks: tuple[TaskComparison, ...]
    unmatched: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "tasks": [task.as_dict() for task in self.tasks],
            "unmatched": list(self.unmatched),
        }


def compare(
    first: Run,
    second: Run,
    *,
    tasks: Sequence[str] = (),
    metric: str | None = None,
    confidence: float = 0.95,
    different_data: bool = False,
) -> Comparison:
    """Compare the tasks that both runs have, or those named. Raises ResultError where that has no meaning."""
    names = [task.result.task for task in first.tasks if second.task(task.result.task)]
    for name in tasks:
        if name not in names:
            found = ", ".join(names) or "none"
            raise ResultError(f"Task {name} is not in both runs; in both: {found}.", fix=nearest(name, names))
    if not names:
        raise ResultError(
            f"{first.info.run} and {second.info.run} have no task in common.",
            fix="Evaluate both with the same tasks.",
        )
    chosen = [name for name in names if not tasks or name in tasks]
    compared = tuple(
        compare_task(*both(first, second, name), metric, confidence, different_data=different_data) for name in chosen
    )
    everything = dict.fromkeys([*(t.result.task for t in first.tasks), *(t.result.task for t in second.tasks)])
    return Comparison(
        first=first.info.run,
        second=second.info.run,
        tasks=compared,
        unmatched=tuple(name for name in everything if name not in names),
    )


def both(first: Run, second: Run, name: str) -> tuple[Task, Task]:
    """A task of both runs. Raises ResultError where one of them has it not."""
    found = []
    for run in (first, second):
        task = run.task(name)
        if task is None:
            raise ResultError(f"The run {run.info.run} has no result of the task {name}.")
        found.append(task)
    return found[0], found[1]


def compare_task(
    first: Task, second: Task, metric: str | None = None, confidence: float = 0.95, *, different_data: bool = False
) -> TaskComparison:
    """Compare one task by `metric`, else by its primary one. Raises ResultError."""
    task, name = first.result.task, metric or first.result.primary
    same = first.result.dataset.sha256 == second.result.dataset.sha256
    if not same and not different_data:
        data = [f"{part.result.dataset.name} {part.result.dataset.sha256[:12]}" for part in (first, second)]
        raise ResultError(
            f"Task {task} was asked over different data: {data[0]} and {data[1]}.",
            fix="Evaluate both over the same data, or compare the items of the same name with --different-data.",
        )
    observed = [_observed(part, name) for part in (first, second)]
    common = observed[0].keys() & observed[1].keys()
    if not common:
        raise ResultError(f"Task {task} has no item with a score of {name} in both runs.")
    difference = statistics.compare(observed[0], observed[1], confidence)
    return TaskComparison(
        task=task,
        metric=name,
        same_data=same,
        difference=difference,
        only_first=len(observed[0]) - len(common),
        only_second=len(observed[1]) - len(common),
        flips=tuple(_flips(first.samples, second.samples, observed[0], observed[1])),
    )


def _observed(task: Task, name: str) -> dict[str, list[statistics.Observation]]:
    found = scoring.observations(task.samples, name)
    if not found:
        known = [metric.name for metric in task.result.metrics]
        raise ResultError(
            f"Task {task.result.task} of {task.result.run} has no metric {name}; it has {', '.join(known) or 'none'}.",
            fix=nearest(name, known),
        )
    return found


def _flips(first: Sequence[Sample], second: Sequence[Sample], a: statistics.Items, b: statistics.Items) -> list[Flip]:
    """Items that fell, then items that rose, the largest change first."""
    samples_a, samples_b = _first_of_each(first), _first_of_each(second)
    flips = []
    for name in a.keys() & b.keys():
        before, after = _mean(a[name]), _mean(b[name])
        if abs(after - before) > 1e-12:
            one, other = samples_a[name], samples_b[name]
            flips.append(
                Flip(
                    id=name,
                    category=one.category,
                    prompt=one.prompt,
                    expected=one.expected,
                    first_score=before,
                    second_score=after,
                    first_answer=one.answer,
                    second_answer=other.answer,
                )
            )
    return sorted(flips, key=lambda flip: (flip.second_score - flip.first_score, flip.id))


def _first_of_each(samples: Sequence[Sample]) -> Mapping[str, Sample]:
    return {sample.id: sample for sample in sorted(samples, key=lambda sample: sample.repeat, reverse=True)}


def _mean(seen: Sequence[statistics.Observation]) -> float:
    return sum(score * weight for score, weight in seen) / sum(weight for _, weight in seen)
