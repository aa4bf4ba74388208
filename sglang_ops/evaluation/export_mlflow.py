"""A run as a run of MLflow: its own client, any tracking server or a directory.

Needs the extra `sglang-ops[mlflow]`. Nothing is sent anywhere but to the tracking URI: MLflow's own usage reports are
switched off unless the user switched them on.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ops.errors import OpsError, UsageError
from sglang_ops.evaluation import report
from sglang_ops.evaluation.results import RESULT_FILE, RUN_FILE, SAMPLES_FILE, Run

TAG = "sglang_ops.run"
LONGEST = 500  # letters of a parameter that every release of MLflow takes
_WHOLE = "attributes.status = 'FINISHED'"  # one that was cut off is written again
_NO_METRIC = re.compile(r"[^A-Za-z0-9_\-. /]")


@dataclass(frozen=True)
class Exported:
    """Where the run is in MLflow; `added` is False where it was there already."""

    uri: str
    experiment: str
    run_id: str
    added: bool


def export(run: Run, uri: str, experiment: str | None = None) -> Exported:
    """Write `run` to the tracking server at `uri` (file:/directory, https://…). A complete run that is there already
    is left alone; an incomplete one, or one that did not arrive whole, gets a new run beside it. Raises UsageError
    without MLflow, OpsError where the server refuses."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks before it writes to a directory
    try:
        from mlflow import MlflowClient  # noqa: PLC0415 - an extra that most do without
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
    except ImportError as error:
        fix = "Install it with: pip install 'sglang-ops[mlflow]'"
        raise UsageError("MLflow's client is not installed here.", fix=fix) from error
    name = experiment or run.info.deployment
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
        experiment_id = found.experiment_id if found else client.create_experiment(name)
        query = f"tags.`{TAG}` = '{run.info.run}' and tags.`{TAG}.complete` = 'true' and {_WHOLE}"
        there = client.search_runs([experiment_id], query) if run.info.complete else []
        if there:
            return Exported(uri, name, there[0].info.run_id, added=False)
        return Exported(uri, name, _write(client, experiment_id, run), added=True)
    except (MlflowException, OSError) as error:
        raise OpsError(f"MLflow at {uri} did not take the run: {str(error).splitlines()[0]}") from error


def _write(client: Any, experiment_id: str, run: Run) -> str:
    info = run.info
    tags = {TAG: info.run, f"{TAG}.complete": str(info.complete).lower(), "deployment": info.deployment}
    tags |= {"mlflow.user": info.who, "image_digest": info.image_digest or "", "hosts": " ".join(info.hosts)}
    run_id = str(client.create_run(experiment_id, run_name=info.run, tags=tags).info.run_id)
    try:
        for name, value in _parameters(run).items():
            client.log_param(run_id, name, value[:LONGEST])
        for name, score in _metrics(run).items():
            client.log_metric(run_id, name, score)
        _artifacts(client, run_id, run)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED" if info.complete else "KILLED")
    return run_id


def _parameters(run: Run) -> dict[str, str]:
    info = run.info
    found = {
        "model": info.model.name,
        "model_repo": info.model.repo or "",
        "model_revision": info.model.revision or "",
        "harness": f"{info.harness.name} {info.harness.version}",
        "server_arguments": " ".join(info.server_arguments),
    }
    found |= {f"{task.result.task}.dataset_sha256": task.result.dataset.sha256 for task in run.tasks}
    return found | {f"parameters.{_plain(key)}": str(value) for key, value in info.parameters.items()}


def _metrics(run: Run) -> dict[str, float]:
    found: dict[str, float] = {}
    for task in run.tasks:
        result = task.result
        for metric in result.metrics:
            name = _plain(f"{result.task}.{metric.name}")
            low, high = metric.interval
            found |= {name: metric.score, f"{name}.low": low, f"{name}.high": high}
        counts = {"items": result.items, "answered": result.answered, "failed": result.failed, "empty": result.empty}
        counts["reasoning_only"] = result.reasoning_only
        found |= {_plain(f"{result.task}.{key}"): float(value) for key, value in counts.items()}
        found[_plain(f"{result.task}.seconds")] = result.timings.seconds
    return found


def _artifacts(client: Any, run_id: str, run: Run) -> None:
    client.log_artifact(run_id, str(run.path / RUN_FILE))
    for task in run.tasks:
        for file in (RESULT_FILE, SAMPLES_FILE):
            client.log_artifact(run_id, str(run.path / task.result.task / file), task.result.task)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / report.FILE
        report.write(run, page)
        client.log_artifact(run_id, str(page))


def _plain(name: str) -> str:
    """Names hold letters, digits and few signs there: `exact_match,strict` becomes `exact_match_strict`."""
    return _NO_METRIC.sub("_", name)
