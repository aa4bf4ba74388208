"""What the verbs that look at finished evaluations have in common: finding runs, showing them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sglang_ops.commands import _views
from sglang_ops.evaluation import results
from sglang_ops.evaluation.report import duration, percent
from sglang_ops.spec.load import DEFAULT_NAME, load

if TYPE_CHECKING:
    from rich.table import Table

OUTPUT_DIR = "results"

RunName = Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run, or its name below --output-dir.")]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        metavar="DIR",
        help="Where the runs are. Default: execution.output_dir of ./deployment.yaml, else ./results.",
        show_default=False,
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", metavar="NAME", help="Only this task. May be given several times."),
]
Confidence = Annotated[
    float, typer.Option("--confidence", metavar="SHARE", min=0.5, max=0.9999, help="Of the intervals.")
]


def find(run: str, output_dir: Path | None) -> Path:
    """The folder of a run. Raises ResultError; SpecErrors where the deployment file has mistakes and is needed."""
    if (Path(run) / results.RUN_FILE).is_file():
        return Path(run)
    return results.locate(run, output_dir or default_output_dir())


def read(run: str, output_dir: Path | None) -> results.Run:
    """A run with all that has arrived of it. Raises what `find` raises."""
    return results.read(find(run, output_dir))


def default_output_dir() -> Path:
    """Where runs are brought when nothing is said."""
    if Path(DEFAULT_NAME).is_file():
        return Path(load(Path(DEFAULT_NAME)).execution.output_dir or OUTPUT_DIR)
    return Path(OUTPUT_DIR)


def scores(found: Iterable[results.TaskResult]) -> Table:
    """One line per task: score, interval, what came of the requests."""
    rows = list(found)
    columns = ("task", "metric", "score", "interval", "items", "failed", "no answer", "time", "")
    table = _views.grid(*columns)
    for index in (2, 3, 4, 5, 6, 7):
        table.columns[index].justify = "right"
    for result in rows:
        none = result.empty + result.reasoning_only
        table.add_row(
            result.task,
            result.primary,
            Text(percent(result.score), style="bold"),
            interval(result.interval),
            str(result.items),
            _bad(result.failed),
            _bad(none),
            duration(result.timings.seconds),
            Text("" if result.complete else f"incomplete: {result.incomplete_because}", style="yellow"),
        )
    return table


def interval(found: tuple[float, float] | None) -> str:
    """60.0 – 73.0 % for shares."""
    if found is None:
        return "–"
    low, high = (percent(end) for end in found)
    return f"{low.removesuffix(' %')} – {high}" if low.endswith("%") and high.endswith("%") else f"{low} – {high}"


def summary(run: results.Run) -> dict[str, Any]:
    """What `--output json` says of a run and its tasks."""
    return {
        "run": run.info.run,
        "output_dir": str(run.path),
        "complete": run.info.complete and not run.missing,
        "missing": list(run.missing),
        "tasks": [
            {
                "name": task.result.task,
                "metric": task.result.primary,
                "score": task.result.score,
                "interval": task.result.interval,
                "items": task.result.items,
                "answered": task.result.answered,
                "failed": task.result.failed,
                "empty": task.result.empty,
                "reasoning_only": task.result.reasoning_only,
                "seconds": task.result.timings.seconds,
                "complete": task.result.complete,
            }
            for task in run.tasks
        ],
    }


def _bad(count: int) -> Text:
    return Text(str(count), style="red" if count else "")
