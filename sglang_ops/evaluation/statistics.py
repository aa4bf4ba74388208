"""Confidence intervals and paired comparisons of scores. Pure: nothing but numbers goes in and comes out.

The unit is the item. An item asked several times is one cluster: its repeats tell less than as many further items
would. Weights let one item count more (the instructions of one prompt); the score is the weighted mean.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from sglang_ops.evaluation.shares import mcnemar, newcombe, wilson
from sglang_ops.evaluation.student import t_cumulative, t_quantile

Observation = tuple[float, float]  # score, weight
Items = Mapping[str, Sequence[Observation]]  # what was observed, per item

EXACT_FLIPS = 14  # so many differences are permuted completely: 16,384 ways
DRAWN_FLIPS = 500  # above, the t distribution is as good and a thousand times quicker
DRAWS = 10_000
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean score over `items` distinct items, with its two-sided interval."""

    score: float
    interval: tuple[float, float]
    items: int
    confidence: float
    method: str


@dataclass(frozen=True)
class Difference:
    """Two runs over the same items, second minus first.

    `p_value` is two-sided, for "there is no difference". `better` and `worse` count the items whose score rose or
    fell. `detectable` is the smallest true difference that these items would show in four runs of five.
    """

    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    items: int
    better: int
    worse: int
    detectable: float
    confidence: float
    method: str


def estimate(items: Items, confidence: float = 0.95) -> Estimate:
    """The mean score of at least one item. Raises ValueError without any.

    0/1 scores: Wilson's interval; with repeats or weights on the effective number of observations (Korn and
    Graubard 1998: the variance of the mean between items decides it). Others: Student's t on the items' totals,
    linearised, within [0, 1] where all scores are.
    """
    clusters = _clusters(items)
    if not clusters:
        raise ValueError("no item has a score")
    count, weight = len(clusters), sum(part.weight for part in clusters)
    score = sum(part.total for part in clusters) / weight
    variance = _variance([(part.total - score * part.weight) / (weight / count) for part in clusters])
    if all(part.single and part.binary for part in clusters):
        return Estimate(score, wilson(score, count, confidence), count, confidence, "wilson")
    within = all(part.within for part in clusters)
    if within and (variance == 0 or all(part.binary for part in clusters)):
        effective = min(score * (1 - score) / variance, sum(part.count for part in clusters)) if variance else count
        interval = wilson(score, max(effective, 1.0), confidence)
        return Estimate(score, interval, count, confidence, "wilson, clustered by item")
    if count == 1:
        return Estimate(score, (score, score), count, confidence, "none: one item")
    reach = t_quantile((1 + confidence) / 2, count - 1) * math.sqrt(variance)
    low, high = (0.0, 1.0) if within else (-math.inf, math.inf)
    interval = max(low, score - reach), min(high, score + reach)
    return Estimate(score, interval, count, confidence, "student t, clustered by item")


def compare(first: Items, second: Items, confidence: float = 0.95) -> Difference:
    """Compare two runs over the items that both have. Raises ValueError where they have none in common.

    0/1 scores asked once: McNemar's exact test and Newcombe's interval (1998, method 10). Others: the signs of the
    items' differences are permuted, all ways or `DRAWS` of them, and Student's t gives the interval.
    """
    common = sorted(set(first) & set(second))
    a = _clusters({name: first[name] for name in common if first[name] and second[name]})
    b = _clusters({name: second[name] for name in common if first[name] and second[name]})
    count = len(a)
    if not count:
        raise ValueError("no item in common")
    weight_a, weight_b = (sum(part.weight for part in parts) / count for parts in (a, b))
    score_a = sum(part.total for part in a) / weight_a / count
    score_b = sum(part.total for part in b) / weight_b / count
    steps = [_mean(y) - _mean(x) for x, y in zip(a, b, strict=True)]
    better, worse = sum(step > _TINY for step in steps), sum(step < -_TINY for step in steps)
    if all(part.single and part.binary for part in (*a, *b)):
        interval = newcombe(_table(a, b), confidence)
        spread = math.sqrt(max(better + worse, 1) / count)
        p_value, method = mcnemar(better, worse), "mcnemar exact, newcombe"
    else:
        residuals = [
            (y.total - score_b * y.weight) / weight_b - (x.total - score_a * x.weight) / weight_a
            for x, y in zip(a, b, strict=True)
        ]
        flips = [y.total / weight_b - x.total / weight_a for x, y in zip(a, b, strict=True)]
        variance = _variance(residuals)
        spread = math.sqrt(max(variance * count, 1 / count if better + worse == 0 else 0.0))
        interval = _t_interval(score_b - score_a, variance, (*a, *b), confidence)
        p_value, method = _permuted(flips)
    quantile = NormalDist().inv_cdf
    detectable = (quantile((1 + confidence) / 2) + quantile(POWER)) * spread / math.sqrt(count)
    return Difference(
        first=score_a,
        second=score_b,
        difference=score_b - score_a,
        interval=interval,
        p_value=p_value,
        items=count,
        better=better,
        worse=worse,
        detectable=detectable,
        confidence=confidence,
        method=method,
    )


_TINY = 1e-12


@dataclass(frozen=True)
class _Cluster:
    """All that was observed of one item."""

    total: float  # weighted
    weight: float
    count: int
    binary: bool
    within: bool  # all scores lie in [0, 1]
    single: bool  # one observation of weight 1


def _clusters(items: Items) -> list[_Cluster]:
    return [
        _Cluster(
            total=math.fsum(score * weight for score, weight in seen),
            weight=math.fsum(weight for _, weight in seen),
            count=len(seen),
            binary=all(score in {0.0, 1.0} for score, _ in seen),
            within=all(0.0 <= score <= 1.0 for score, _ in seen),
            single=len(seen) == 1 and seen[0][1] == 1,
        )
        for _, seen in sorted(items.items())
        if seen
    ]


def _mean(part: _Cluster) -> float:
    return part.total / part.weight


def _variance(residuals: Sequence[float]) -> float:
    """Of the mean of residuals that sum to zero; what is only rounding counts as none."""
    count = len(residuals)
    if count < 2:
        return 0.0
    squares = math.fsum(value * value for value in residuals)
    return squares / (count - 1) / count if squares > _TINY * _TINY * count else 0.0


def _table(a: Sequence[_Cluster], b: Sequence[_Cluster]) -> tuple[int, int, int, int]:
    pairs = [(x.total == 1, y.total == 1) for x, y in zip(a, b, strict=True)]
    return (
        pairs.count((True, True)),
        pairs.count((False, True)),
        pairs.count((True, False)),
        pairs.count((False, False)),
    )


def _t_interval(
    difference: float, variance: float, parts: Sequence[_Cluster], confidence: float
) -> tuple[float, float]:
    count, within = len(parts) // 2, all(part.within for part in parts)
    if variance == 0:  # nothing varied: what as many equal items leave open
        reach = wilson(0.0, count, confidence)[1] if within else 0.0
    else:
        reach = t_quantile((1 + confidence) / 2, count - 1) * math.sqrt(variance)
    limit = 1.0 if within else math.inf
    return max(-limit, difference - reach), min(limit, difference + reach)


def _permuted(steps: Sequence[float]) -> tuple[float, str]:
    """Two-sided p-value of a sum whose terms could as well have had the other sign. Seeded: it comes out alike."""
    changed = [abs(step) for step in steps if abs(step) > _TINY]
    seen = abs(math.fsum(step for step in steps if abs(step) > _TINY)) - 1e-9 * sum(changed)
    if not changed:
        return 1.0, "permutation exact, student t"
    if len(changed) <= EXACT_FLIPS:
        ways = itertools.product((1, -1), repeat=len(changed))
        hits = sum(abs(sum(map(float.__mul__, changed, map(float, way)))) >= seen for way in ways)
        return hits / 2 ** len(changed), "permutation exact, student t"
    if len(changed) <= DRAWN_FLIPS:
        draw, total, hits = random.Random(0), sum(changed), 0  # noqa: S311 - statistics, no secret
        for _ in range(DRAWS):
            bits = draw.getrandbits(len(changed))
            hits += abs(2 * sum(step for n, step in enumerate(changed) if bits >> n & 1) - total) >= seen
        return (hits + 1) / (DRAWS + 1), f"permutation of {DRAWS} draws, student t"
    count, mean = len(steps), math.fsum(steps) / len(steps)
    deviation = _variance([step - mean for step in steps])
    p_value = 2 * t_cumulative(-abs(mean) / math.sqrt(deviation), count - 1) if deviation else 0.0
    return p_value, "student t"
