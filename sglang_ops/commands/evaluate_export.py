"""sglang-ops evaluate export"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglang_ops.commands import _common, _evaluate_runs, _options
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from sglang_ops.evaluation.policy import Decision
    from sglang_ops.evaluation.results import Run


class Format(StrEnum):
    """What is written."""

    JSON = "json"
    CSV = "csv"
    JUNIT = "junit"
    MLFLOW = "mlflow"


FormatName = Annotated[Format, typer.Option("--format", help="Form of what is written.")]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="WHERE",
        help="json, junit: a file; csv: a directory; default: the run's folder. mlflow: a tracking URI; default: "
        "$MLFLOW_TRACKING_URI, else mlruns beside the runs.",
        show_default=False,
    ),
]
Policy = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="junit: a test case per limit of this policy.")
]
Baseline = Annotated[str | None, typer.Option("--baseline", metavar="RUN", help="junit: as 'evaluate gate' has it.")]
Experiment = Annotated[
    str | None, typer.Option("--experiment", metavar="NAME", help="mlflow: default is the deployment's name.")
]


def export(
    run: _evaluate_runs.RunName,
    format: FormatName,
    to: To = None,
    policy: Policy = None,
    baseline: Baseline = None,
    experiment: Experiment = None,
    output_dir: _evaluate_runs.OutputDir = None,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Write a run for other programs: JSON, CSV, JUnit for CI systems, MLflow.

    csv writes scores.csv, a line per task and metric, and items.csv, a line per answer.
    """
    _refuse_meaningless(format, policy, baseline, experiment)
    found = _evaluate_runs.read(run, output_dir)
    if format is Format.MLFLOW:
        from sglang_ops.evaluation import export_mlflow

        done = export_mlflow.export(found, _tracking_uri(to, found), experiment)
        result = {"uri": done.uri, "experiment": done.experiment, "run_id": done.run_id, "added": done.added}
        said = [f"{'Run' if done.added else 'There already: run'} {done.run_id} of {done.experiment} in {done.uri}"]
    else:
        said = _write(found, format, to, _decision(found, policy, baseline, output_dir))
        result = {"files": said}
    if output is Output.JSON:
        _common.print_json({"ok": True, "run": found.info.run, "format": str(format), **result})
    else:
        for line in said:
            typer.echo(line)
    return ExitCode.DONE


def _write(run: Run, form: Format, to: str | None, decision: Decision | None) -> list[str]:
    """Write the files, and give their paths."""
    from sglang_ops.evaluation import export as exported
    from sglang_ops.evaluation.files import write_text

    files: Mapping[Path, str]
    if form is Format.CSV:
        folder = Path(to) if to else run.path
        files = {folder / "scores.csv": exported.scores_csv(run), folder / "items.csv": exported.items_csv(run)}
    elif form is Format.JUNIT:
        files = {Path(to) if to else run.path / "junit.xml": exported.junit(run, decision)}
    else:
        files = {Path(to) if to else run.path / "export.json": exported.as_json(run)}
    for file, text in files.items():
        write_text(file, text)
    return [str(file) for file in files]


def _decision(run: Run, policy: Path | None, baseline: str | None, output_dir: Path | None) -> Decision | None:
    if policy is None:
        return None
    from sglang_ops.evaluation import policy as policies

    rules = policies.load(policy)
    return policies.decide(run, _evaluate_runs.read(baseline, output_dir) if baseline else None, rules)


def _tracking_uri(to: str | None, run: Run) -> str:
    given = to or os.environ.get("MLFLOW_TRACKING_URI") or str(run.path.parent / "mlruns")
    return given if ":" in given else f"file:{Path(given).absolute()}"


def _refuse_meaningless(form: Format, policy: Path | None, baseline: str | None, experiment: str | None) -> None:
    for flag, value, where in (
        ("--policy", policy, Format.JUNIT),
        ("--baseline", baseline, Format.JUNIT),
        ("--experiment", experiment, Format.MLFLOW),
    ):
        if value is not None and form is not where:
            raise UsageError(f"{flag} has no meaning with --format {form}.", fix=f"Use it with --format {where}.")
    if baseline is not None and policy is None:
        raise UsageError("--baseline has no meaning without --policy.", fix="Add --policy FILE.")
