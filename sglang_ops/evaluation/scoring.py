"""From samples to numbers: metrics with their intervals, counts, per-category scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from sglang_ops.evaluation import statistics
from sglang_ops.evaluation.results import Metric, Sample
from sglang_ops.evaluation.statistics import Observation


@dataclass(frozen=True)
class Counts:
    """What came of the requests, in answers (items × repeats)."""

    answered: int
    failed: int
    empty: int
    reasoning_only: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def count(samples: Iterable[Sample]) -> Counts:
    """Count answers. A request that failed for good is no answer; one without content may have reasoning."""
    answered = failed = empty = reasoning_only = 0
    for sample in samples:
        if sample.failed is not None:
            failed += 1
            continue
        answered += 1
        if not (sample.answer or "").strip():
            reasoning_only += bool((sample.reasoning or "").strip())
            empty += not (sample.reasoning or "").strip()
    return Counts(answered, failed, empty, reasoning_only)


def observations(samples: Iterable[Sample], metric: str) -> dict[str, list[Observation]]:
    """The scores of a metric with their weights, per item. Samples without the score are left out."""
    found: dict[str, list[Observation]] = {}
    for sample in samples:
        if metric in sample.scores:
            found.setdefault(sample.id, []).append((sample.scores[metric], sample.weights.get(metric, 1.0)))
    return found


def measure(samples: Sequence[Sample], confidence: float = 0.95) -> tuple[Metric, ...]:
    """Every metric that a sample has a score of, in the order of their first appearance."""
    names = dict.fromkeys(name for sample in samples for name in sample.scores)
    return tuple(metric(name, samples, confidence) for name in names)


def metric(name: str, samples: Iterable[Sample], confidence: float = 0.95) -> Metric:
    """One metric. Raises ValueError where no sample has a score of it."""
    found = statistics.estimate(observations(samples, name), confidence)
    return Metric(
        name=name,
        score=found.score,
        items=found.items,
        interval=found.interval,
        confidence=confidence,
        method=found.method,
    )


def categories(samples: Iterable[Sample], name: str) -> Mapping[str, Metric]:
    """One metric per category, in alphabetical order; samples without a category are left out."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.category is not None and name in sample.scores:
            groups.setdefault(sample.category, []).append(sample)
    return {group: metric(name, groups[group]) for group in sorted(groups)}
