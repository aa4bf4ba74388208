"""Metrics that judge all answers together, such as bleu: what each item adds to them, so that they have intervals and
can be compared as means can.

An item's value is the metric of all items, moved by the item's influence (the jackknife's pseudo-value, centred): the
mean over the items is exactly the harness's metric, their spread is the jackknife's.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Aggregate = Callable[[Any], Any]

SECONDS = 60.0  # for one metric; where leaving out each item would take longer, groups of items are left out
FEWEST_GROUPS = 10
_ROUNDING = 1e-9
_UNSCORED = "bypass_agg"  # the harness's, for tasks that somebody else scores


def kept(known: Mapping[str, Aggregate]) -> dict[str, Aggregate]:
    """Of a task's metrics, with the functions that judge all answers, those that have a score by item or, where there
    is no such metric, all that the harness scores itself."""
    own = {name: one for name, one in known.items() if getattr(one, "__name__", "") != _UNSCORED}
    together = scored_together(own)
    return {name: one for name, one in own.items() if name not in together} or own


def scored_together(known: Mapping[str, Aggregate]) -> dict[str, Aggregate]:
    """The metrics that are not the mean over items: their items' values say nothing by themselves."""
    return {name: aggregate for name, aggregate in known.items() if not _is_mean(aggregate)}


def _is_mean(aggregate: Aggregate) -> bool:
    """Whether a function is the mean of numbers, or of all in lists, as IFEval's instructions: it is tried out."""
    for values, mean in (([0.0, 1.0, 1.0, 0.25], 0.5625), ([[True], [False, True]], 2 / 3)):
        with contextlib.suppress(Exception):  # it wants other values
            if abs(float(aggregate(values)) - mean) < _ROUNDING:
                return True
    return False


def spread(entries: Iterable[Mapping[str, Any]], aggregations: Mapping[str, Aggregate]) -> list[dict[str, Any]]:
    """The harness's log of samples with, for each metric in `aggregations`, the items' values (`influences`)."""
    spread = [dict(entry) for entry in entries]
    seen: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for entry in spread:
        for metric in aggregations:
            if metric in entry["metrics"]:
                seen[metric, entry["filter"]].append(entry)
    for (metric, _), several in seen.items():
        values = influences([entry[metric] for entry in several], aggregations[metric])
        for entry, value in zip(several, values, strict=True):
            entry[metric] = value
    return spread


def influences(values: Sequence[Any], aggregate: Aggregate) -> list[float]:
    """One number per item, of which the mean is `aggregate(values)`; nan where that is no number.

    Items that are left out together have the same number, so far from the mean that the variance of the mean is the
    one of single items.
    """
    whole, count = _number(aggregate, values), len(values)
    if count < 2 or not math.isfinite(whole):
        return [whole] * count
    began = time.monotonic()
    aggregate(values)  # once more: the first time, libraries were loaded
    took = max(time.monotonic() - began, 1e-6)
    groups = min(count, max(FEWEST_GROUPS, int(SECONDS / took)))
    sizes = [len(range(group, count, groups)) for group in range(groups)]
    moved = []
    for group, size in enumerate(sizes):
        rest = _number(aggregate, [value for at, value in enumerate(values) if at % groups != group])
        moved.append((whole - rest) * (count - size) / size if math.isfinite(rest) else 0.0)
    weights = [size**1.5 for size in sizes]
    centre = math.fsum(map(float.__mul__, weights, moved)) / math.fsum(weights)
    return [whole + math.sqrt(sizes[at % groups]) * (moved[at % groups] - centre) for at in range(count)]


def _number(aggregate: Aggregate, values: Sequence[Any]) -> float:
    try:
        return float(aggregate(values))
    except Exception:  # noqa: BLE001 - any code of a task
        return math.nan
