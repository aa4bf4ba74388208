"""A run as one HTML file that needs nothing else: no network, no script, plots inside, light and dark.

Everything that comes from a model, a data set or a host is escaped, and the page forbids itself all scripts and
requests by its content security policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sglang_ops import __version__
from sglang_ops.evaluation import plots, scoring
from sglang_ops.evaluation.files import write_text
from sglang_ops.evaluation.results import Metric, Run, Sample, Task

ITEMS = 200  # items that can be read, per task
LETTERS = 20_000  # of one prompt or answer
FILE = "report.html"


@dataclass(frozen=True)
class _Item:
    """An item to be read, and why it is here."""

    sample: Sample
    mark: str  # failed, empty, reasoning only, wrong
    score: str


def build(run: Run) -> str:
    """The report as HTML."""
    return render("report.html.j2", run=run, tasks=[_task(task) for task in run.tasks], overview=_overview(run.tasks))


def write(run: Run, file: Path) -> None:
    """Write the report. Raises ResultError where the file cannot be written."""
    write_text(file, build(run))


def render(template: str, **values: Any) -> str:
    """A template of this package. Unknown names in it are errors."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sglang_ops.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, duration=duration, cut=_cut)
    return environment.get_template(template).render(version=__version__, **values)


def percent(value: float | None) -> str:
    """A share as people read it; what is no share stays a number."""
    if value is None:
        return "–"
    return f"{value * 100:.1f} %" if 0 <= value <= 1 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _overview(tasks: Sequence[Task]) -> list[Markup]:
    """Primary scores of all tasks: shares in one plot, each other metric in its own."""
    scored = [(task, metric) for task in tasks if (metric := task.result.metric()) is not None]
    shares = [_row(task.result.task, metric) for task, metric in scored if _is_share(metric)]
    drawn = [plots.intervals(shares, title="Scores with confidence intervals", share=True)] if shares else []
    return drawn + [
        plots.intervals([_row(task.result.task, metric)], title=metric.name, share=False)
        for task, metric in scored
        if not _is_share(metric)
    ]


def _task(task: Task) -> dict[str, Any]:
    answered = [sample for sample in task.samples if sample.failed is None]
    found = _to_read(task)
    return {
        "result": task.result,
        "categories": _categories(task),
        "distributions": [
            _distribution("Latency per answer", "s", [s.latency_seconds for s in answered], whole=False),
            _distribution("Tokens per answer", "tokens", [s.completion_tokens for s in answered], whole=True),
            _distribution("Tokens per prompt", "tokens", [s.prompt_tokens for s in answered], whole=True),
        ],
        "finish_reasons": Counter(sample.finish_reason or "not said" for sample in answered).most_common(),
        "failures": Counter(sample.failed for sample in task.samples if sample.failed is not None).most_common(20),
        "per_host": Counter(sample.host for sample in task.samples).most_common(),
        "retried": sum(max(sample.attempts - 1, 0) for sample in task.samples),
        "read": found[:ITEMS],
        "unread": max(len(found) - ITEMS, 0),
    }


def _categories(task: Task) -> Markup | None:
    found = scoring.categories(task.samples, task.result.primary)
    if len(found) < 2:
        return None
    rows = [_row(name, metric, items=True) for name, metric in found.items()]
    share = all(_is_share(metric) for metric in found.values())
    return plots.intervals(rows, title=f"{task.result.primary} per category", share=share, bars=True)


def _row(label: str, metric: Metric, *, items: bool = False) -> plots.Row:
    low, high = metric.interval
    count = "1 item" if metric.items == 1 else f"{metric.items} items"
    hint = f"{label}: {metric.name} {percent(metric.score)}, {percent(low)} to {percent(high)}, {count}"
    text = f"{percent(metric.score)} · {count}" if items else percent(metric.score)
    return plots.Row(label, metric.score, metric.interval, text, hint)


def _is_share(metric: Metric) -> bool:
    return 0 <= metric.score <= 1 and metric.interval[0] >= 0 and metric.interval[1] <= 1


def _distribution(title: str, unit: str, values: Sequence[float | None], *, whole: bool) -> dict[str, Any] | None:
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    quantiles = [(name, plots.quantile(known, part)) for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))]
    shown = [(name, plots.number_of(value)) for name, value in (*quantiles, ("max", max(known)))]
    plot = plots.histogram(known, title=title, unit=unit, whole=whole)
    return {"title": title, "unit": unit, "plot": plot, "quantiles": shown}


def _to_read(task: Task) -> list[_Item]:
    """Requests that failed, answers without content, wrong answers; the worst first."""
    primary = task.result.primary
    scores = [sample.scores[primary] for sample in task.samples if primary in sample.scores]
    best = 1.0 if all(0 <= score <= 1 for score in scores) else max(scores, default=0.0)
    found = []
    for sample in task.samples:
        mark = _mark(sample, primary, best)
        if mark:
            score = sample.scores.get(primary)
            found.append(_Item(sample, mark, "" if score is None else f"{primary} {score:g}"))
    order = ("failed", "empty", "reasoning only", "wrong")
    return sorted(found, key=lambda item: (order.index(item.mark), item.sample.scores.get(primary, 0.0)))


def _mark(sample: Sample, primary: str, best: float) -> str:
    counts = scoring.count([sample])
    if counts.failed:
        return "failed"
    if counts.empty:
        return "empty"
    if counts.reasoning_only:
        return "reasoning only"
    return "wrong" if sample.scores.get(primary, best) < best else ""


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}\n… {len(text) - LETTERS} letters more in samples.jsonl"
