"""sglang-ops validate"""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Any

import typer

from sglang_ops import spec
from sglang_ops.commands import _options
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode
from sglang_ops.spec.model import is_secret


def validate(config: _options.Config = None, output: _options.OutputFormat = Output.TABLE) -> int:
    """Check a deployment file. Needs no host and no inventory."""
    path = spec.find_deployment_file(config, []) or Path("deployment.yaml")
    errors: list[dict[str, Any]] = []
    warnings: list[str] = []
    summary = ""
    try:
        file = spec.load(path)
        warnings = [*_warnings(file)]
        summary = _summary(file)
    except spec.SpecErrors as found:
        errors = [problem.as_dict() for problem in found.errors]
        summary = found.message
    if output is Output.JSON:
        data = {"ok": not errors, "errors": errors, "warnings": warnings}
        typer.echo(jsonlib.dumps(data, indent=2, ensure_ascii=False))
    else:
        typer.echo(summary if errors else f"{path} is valid: {summary}", err=bool(errors))
        for warning in warnings:
            typer.echo(f"Warning: {warning}", err=True)
    return ExitCode.REFUSED if errors else ExitCode.DONE


def _summary(file: spec.DeploymentFile) -> str:
    """What the file asks for, in one line."""
    wanted = file.deployment
    model = wanted.hf_model_handle or wanted.checkpoint_path
    gpus = "1 GPU" if wanted.gpus_needed == 1 else f"{wanted.gpus_needed} GPUs"
    return f"{wanted.served_model_name} ({model}) on port {wanted.port}, {gpus} per host, as {wanted.service_name}."


def _warnings(file: spec.DeploymentFile) -> list[str]:
    """What is allowed but better done otherwise."""
    return [
        f"env_vars.{name} is written out in the file. Write 'host:{name}' to take it from your environment instead."
        for name, value in file.deployment.env_vars.items()
        if value.kind == "literal" and value.value and is_secret(name, value)
    ]
