"""sglang-ops validate"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from sglang_ops import spec
from sglang_ops.commands import _options, _overrides
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode
from sglang_ops.planning.arguments import judge, release_of
from sglang_ops.planning.command import arguments
from sglang_ops.spec import SpecProblem, yamlfile


@dataclass(frozen=True)
class Findings:
    """What was found in a file; `summary` says what it asks for, or what is wrong with it."""

    summary: str
    errors: tuple[spec.SpecProblem, ...] = ()
    warnings: tuple[str, ...] = ()


def validate(
    config: _options.Config = None,
    override: _options.Overrides = None,
    strict: _options.Strict = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Check a deployment file. Needs no host and no inventory."""
    path = spec.find_deployment_file(config, []) or Path("deployment.yaml")
    overrides = _overrides.parse_overrides(override or ())
    try:
        found = _look(yamlfile.read(path), overrides, strict=strict)
    except spec.SpecErrors as refused:
        found = Findings(refused.message, tuple(refused.errors))
    if output is Output.JSON:
        errors = [problem.as_dict() for problem in found.errors]
        data = {"ok": not errors, "errors": errors, "warnings": list(found.warnings)}
        typer.echo(jsonlib.dumps(data, indent=2, ensure_ascii=False))
    else:
        typer.echo(found.summary if found.errors else f"{path} is valid: {found.summary}", err=bool(found.errors))
        for warning in found.warnings:
            typer.echo(f"Warning: {warning}", err=True)
    return ExitCode.REFUSED if found.errors else ExitCode.DONE


def _look(document: yamlfile.Document, overrides: Mapping[str, Any], *, strict: bool) -> Findings:
    document = spec.lay_over(document, overrides)
    file = spec.check(document)
    errors: list[spec.SpecProblem] = []
    warnings = list(spec.warnings(file))
    for path, deployment in zip(file.paths, file.services, strict=True):
        judged = judge(arguments(deployment), release_of(deployment.image), strict=strict)
        where = f"{path}.extra_args" if deployment.command is None else f"{path}.command"
        errors += [SpecProblem(where, document.line(where), error.message, error.fix) for error in judged.errors]
        warnings += judged.warnings
    summary = " ".join(map(_summary, file.services))
    if errors:
        summary = spec.SpecErrors(document.source, errors).message
    return Findings(summary, tuple(errors), tuple(dict.fromkeys(warnings)))


def _summary(wanted: spec.Deployment) -> str:
    """What a deployment asks for, in one line."""
    model = wanted.hf_model_handle or wanted.checkpoint_path or "named by its command"
    if wanted.tensor_parallel_size == "auto":
        gpus = "as few GPUs as hold it"
    else:
        gpus = "1 GPU" if wanted.gpus_needed == 1 else f"{wanted.gpus_needed} GPUs"
    where = "per host" if wanted.hosts == "all" else f"on each of {wanted.hosts}"
    return f"{wanted.served_model_name} ({model}) on port {wanted.port}, {gpus} {where}, as {wanted.service_name}."
