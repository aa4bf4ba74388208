"""sglang-ops evaluate report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sglang_ops.commands import _common, _evaluate_runs, _options
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode

To = Annotated[
    Path | None,
    typer.Option("--to", metavar="FILE", help="Where to write it. Default: report.html in the run's folder."),
]


def report(
    run: _evaluate_runs.RunName,
    to: To = None,
    output_dir: _evaluate_runs.OutputDir = None,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Show the scores of a run, and write them as one HTML file that needs nothing else.

    The file has plots of scores, categories, latencies and tokens, and the items that were not answered right with
    prompt and answer. It asks no network and runs no script.
    """
    from sglang_ops.evaluation import report as html

    found = _evaluate_runs.read(run, output_dir)
    file = to or found.path / html.FILE
    html.write(found, file)
    if output is Output.JSON:
        _common.print_json({"ok": True, **_evaluate_runs.summary(found), "report": str(file)})
        return ExitCode.DONE
    _common.stdout().print(_evaluate_runs.scores(task.result for task in found.tasks))
    err = _common.stderr()
    for name in found.missing:
        err.print(f"[yellow]Warning:[/] nothing of the task {name} has arrived.")
    err.print(f"Report: {file}", soft_wrap=True)
    return ExitCode.DONE
