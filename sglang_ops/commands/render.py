"""sglang-ops render"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_ops import rendering, spec
from sglang_ops.commands import _options, _overrides
from sglang_ops.errors import ExitCode, UsageError
from sglang_ops.rendering import Rendered
from sglang_ops.spec.load import DEFAULT_NAME


class Form(StrEnum):
    """What is printed of each service."""

    SHELL = "shell"
    UNIT = "unit"
    JSON = "json"


class Engine(StrEnum):
    """Container engines that a host may have."""

    DOCKER = "docker"
    PODMAN = "podman"


def _remember_form(context: typer.Context, value: Form) -> Form:
    """As `_options` does it for the other verbs: errors in the form that was asked for."""
    if isinstance(context.obj, dict):
        context.obj["json"] = value is Form.JSON
    return value


Configs = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Deployment file; may be given several times. Default: ./deployment.yaml.",
        show_default=False,
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, show_default=False, help="GPUs of the host. Default: as many as are needed."),
]
SglangVersion = Annotated[
    str | None,
    typer.Option(metavar="V", show_default=False, help="Judge the arguments for this SGLang, not for the image's tag."),
]
ContainerEngine = Annotated[Engine, typer.Option("--engine", help="The host's container engine.")]
Output = Annotated[
    Form,
    typer.Option(
        callback=_remember_form,
        rich_help_panel=_options.OUTPUT,
        help="A command to paste, the systemd unit, or everything as data.",
    ),
]


def render(
    config: Configs = None,
    gpus: Gpus = None,
    sglang_version: SglangVersion = None,
    engine: ContainerEngine = Engine.DOCKER,
    override: _options.Overrides = None,
    strict: _options.Strict = False,
    output: Output = Form.SHELL,
) -> int:
    """Print the exact container command of a deployment. Needs no host and no inventory."""
    files = _files(config or [Path(DEFAULT_NAME)], _overrides.parse_overrides(override or ()))
    wanted = [deployment for file in files for deployment in file.services]
    spec.check_names(wanted)
    advice = {item.service_name: _advice(file, item.service_name) for file in files for item in file.services}
    services = [
        replace(service, warnings=tuple(dict.fromkeys((*advice[service.name], *service.warnings))))
        for service in rendering.render(wanted, gpus=gpus, release=sglang_version, engine=engine, strict=strict)
    ]
    if output is Form.JSON:
        data = {"services": [service.as_dict() for service in services]}
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return ExitCode.DONE
    for warning in dict.fromkeys(warning for service in services for warning in service.warnings):
        typer.secho(f"Warning: {warning}", fg="yellow", err=True)
    if output is Form.SHELL:
        for service in services:
            typer.echo(service.needs, err=True)
    text = _unit if output is Form.UNIT else _command
    typer.echo("\n".join(text(service, alone=len(services) == 1) for service in services), nl=False)
    return ExitCode.DONE


def _files(paths: list[Path], overrides: dict[str, Any]) -> list[spec.DeploymentFile]:
    if overrides and len(paths) > 1:
        raise UsageError(f"-o changes one deployment file, and --config names {len(paths)}.")
    return [spec.load(path, overrides) for path in paths]


def _advice(file: spec.DeploymentFile, name: str) -> list[str]:
    """Warnings about the file that concern the service: where there are several, their names stand before them."""
    others = tuple(f"{item.service_name}: " for item in file.services if item.service_name != name)
    return [text.removeprefix(f"{name}: ") for text in spec.warnings(file) if not text.startswith(others)]


def _unit(service: Rendered, *, alone: bool) -> str:
    """The unit as `systemctl cat` shows several: each below its path."""
    return service.unit if alone else f"# /etc/systemd/system/{service.name}.service\n{service.unit}"


def _command(service: Rendered, *, alone: bool) -> str:
    """Secrets are taken from the shell that it is pasted into; no value stands in the command or shows in `ps`."""
    borrowed = "".join(f'{name}="${source}" ' for name, source in service.borrowed.items())
    command = borrowed + " \\\n    ".join(shlex.join(group) for group in service.container)
    return f"{command}\n" if alone else f"# {service.name}\n{command}\n"
