"""sglang-ops evaluate compare"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sglang_ops.commands import _common, _evaluate_runs, _options, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode
from sglang_ops.evaluation.report import percent

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_ops.evaluation.compare import Comparison, TaskComparison

First = Annotated[str, typer.Argument(metavar="A", help="The run to compare with: folder, or name.")]
Second = Annotated[str, typer.Argument(metavar="B", help="The run that is compared.")]
MetricName = Annotated[
    str | None, typer.Option("--metric", metavar="NAME", help="Instead of the tasks' primary metrics.")
]
DifferentData = Annotated[
    bool, typer.Option("--different-data", help="Compare items of the same name although the data sets differ.")
]
Flips = Annotated[int, typer.Option("--flips", "-n", metavar="N", min=0, help="Items to list, per task and direction.")]


def compare(
    first: First,
    second: Second,
    task: _evaluate_runs.Tasks = None,
    metric: MetricName = None,
    confidence: _evaluate_runs.Confidence = 0.95,
    different_data: DifferentData = False,
    flips: Flips = 5,
    output_dir: _evaluate_runs.OutputDir = None,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Compare two runs item by item: is B better than A, worse, or can it not be told?

    Only items that both runs answered count, so that the same luck with the questions is in both. 'detectable' is the
    smallest true difference that so many items would show in four runs of five.
    """
    from sglang_ops.evaluation import compare as compared

    found = compared.compare(
        _evaluate_runs.read(first, output_dir),
        _evaluate_runs.read(second, output_dir),
        tasks=task or (),
        metric=metric,
        confidence=confidence,
        different_data=different_data,
    )
    if output is Output.JSON:
        _common.print_json({"ok": True, **found.as_dict()})
    else:
        _show(_common.stdout(), found, flips)
        for name in found.unmatched:
            _common.stderr().print(f"[yellow]Warning:[/] the task {name} is in one of the runs alone.")
    return ExitCode.DONE


def _show(console: Console, found: Comparison, most: int) -> None:
    console.print(f"A {found.first}\nB {found.second}\n", soft_wrap=True)
    table = _views.grid("task", "metric", "A", "B", "B - A", "interval", "p", "items", "up", "down", "detectable", "")
    for column in table.columns[2:11]:
        column.justify = "right"
    for task in found.tasks:
        part = task.difference
        table.add_row(
            task.task, task.metric, percent(part.first), percent(part.second), points(part.difference),
            f"{points(part.interval[0])} … {points(part.interval[1])}", probability(part.p_value), str(part.items),
            str(part.better), str(part.worse), points(part.detectable).lstrip("+"), judgement(task),
        )  # fmt: skip
    console.print(table)
    for task in found.tasks:
        for what, flips in (
            ("fell", [flip for flip in task.flips if flip.second_score < flip.first_score]),
            ("rose", [flip for flip in task.flips if flip.second_score > flip.first_score][::-1]),
        ):
            if flips and most:
                more = f", {len(flips) - most} more" if len(flips) > most else ""
                names = ", ".join(flip.id for flip in flips[:most])
                console.print(f"\n{task.task}: {len(flips)} {what}: {names}{more}", soft_wrap=True, markup=False)


def judgement(task: TaskComparison) -> Text:
    """In a word, at the confidence of the interval."""
    part = task.difference
    if part.interval[0] > 0:
        return Text("better", style="green")
    return Text("worse", style="red") if part.interval[1] < 0 else Text("no difference shown")


def points(value: float) -> str:
    """A difference of shares in percentage points; other metrics as they are."""
    return f"{value * 100:+.1f}" if abs(value) <= 1 else f"{value:+.4g}"


def probability(value: float) -> str:
    """A p-value to three digits."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
