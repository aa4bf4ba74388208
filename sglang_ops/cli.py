"""The command line. Verbs are imported when they are called, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from sglang_ops import __version__
from sglang_ops.errors import ExitCode, OpsError

SERVE, LOOK, MEASURE, PREPARE = "Serve", "Look", "Measure", "Prepare"


@dataclass(frozen=True)
class Verb:
    """What `--help` says about a verb, without importing it. `module` holds a function of the verb's name, or a
    Typer application called ``app`` where the verb has verbs of its own."""

    module: str
    help: str
    panel: str


VERBS = {
    "deploy": Verb("deploy", "Bring a deployment onto the hosts and wait until it serves.", SERVE),
    "plan": Verb("plan", "Show what deploy would do on each host, and why.", SERVE),
    "rollback": Verb("rollback", "Return to a release of before.", SERVE),
    "rollout": Verb("rollout", "See how far a roll-out is, pause it, let it go on, or take it back.", SERVE),
    "restart": Verb("restart", "Restart a service and wait until it serves again.", SERVE),
    "stop": Verb("stop", "Stop a service after the requests in flight.", SERVE),
    "drain": Verb("drain", "Take hosts out of their gateways and wait for the requests in flight.", SERVE),
    "undrain": Verb("undrain", "Bring drained hosts back behind their gateways.", SERVE),
    "remove": Verb("remove", "Stop a service and take its unit away.", SERVE),
    "verify": Verb("verify", "Ask every service the questions of the gate.", LOOK),
    "status": Verb("status", "Show what runs on the hosts.", LOOK),
    "logs": Verb("logs", "Print the logs of the services of all hosts.", LOOK),
    "lock": Verb("lock", "See who is at work on the hosts, and release a lock.", LOOK),
    "history": Verb("history", "List the runs of this machine, or the releases of its hosts.", LOOK),
    "evaluate": Verb("evaluate", "Measure the quality of a deployed model where it runs.", MEASURE),
    "bench": Verb("bench", "Measure the speed of deployed servers with SGLang's own benchmark.", MEASURE),
    "doctor": Verb("doctor", "Say whether each host is fit to serve: every problem at once, with its remedy.", PREPARE),
    "provision": Verb(
        "provision", "Make bare GPU hosts ready to serve: driver, container engine, model cache.", PREPARE
    ),
    "models": Verb("models", "Bring models into the caches of hosts, list, verify and prune them.", PREPARE),
    "images": Verb("images", "Carry container images to hosts that reach no registry.", PREPARE),
    "validate": Verb("validate", "Check a deployment file. Needs no host.", PREPARE),
    "render": Verb("render", "Print the exact container command of a deployment. Needs no host.", PREPARE),
    "schema": Verb("schema", "Print the JSON Schema of the deployment file, for editors.", PREPARE),
    "lab": Verb("lab", "A fleet without GPUs on this machine, to try everything on.", PREPARE),
}


class LazyGroup(TyperGroup):
    """Lists the verbs from VERBS and imports only the one that is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {
            name: TyperCommand(name, help=verb.help, rich_help_panel=verb.panel) for name, verb in VERBS.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name and command else None, rest


def load(name: str) -> Any:
    """The real command behind a verb."""
    module = importlib.import_module(f"sglang_ops.commands.{VERBS[name].module}")
    application = getattr(module, "app", None)
    if application is None:
        application = _application()
        application.command(name)(getattr(module, name))
    command = typer.main.get_command(application)
    command.name = name
    return command


def _application(**settings: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=bool(settings),
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        **settings,
    )


def _version(value: bool) -> None:
    if value:
        typer.echo(f"sglang-ops {__version__}")
        raise typer.Exit


app = _application(cls=LazyGroup)


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Serve large language models with SGLang on a fleet of GPU hosts over SSH.

    The hosts come from any Ansible inventory, the work from one deployment file.
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. The only place where errors are caught and printed."""
    asked: dict[str, Any] = {"json": False, "arguments": list(arguments)}
    try:
        code = typer.main.get_command(app).main(
            args=list(arguments) or ["--help"], prog_name="sglang-ops", standalone_mode=False, obj=asked
        )
    except OpsError as error:
        details = [item.as_dict() for item in getattr(error, "errors", [])]
        return _report(error.message, error.fix, error.exit_code, json_output=asked["json"], details=details)
    except typer.TyperException as error:  # the command line itself
        if not error.format_message():
            return ExitCode.DONE  # a verb with verbs of its own, called without one: its help was shown
        context = getattr(error, "ctx", None)
        fix = f"See {context.command_path if context else 'sglang-ops'} --help"
        return _report(error.format_message(), fix, ExitCode.REFUSED, json_output=asked["json"])
    except typer.Abort:
        return ExitCode.INTERRUPTED
    return int(code or 0)


def _report(
    message: str, fix: str | None, code: ExitCode, *, json_output: bool, details: Sequence[dict[str, Any]] = ()
) -> int:
    if json_output:
        error = {"message": message, "fix": fix, **({"errors": list(details)} if details else {})}
        typer.echo(json.dumps({"ok": False, "exit_code": int(code), "error": error}, indent=2, ensure_ascii=False))
    else:
        typer.secho("Error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(message, err=True)
        if fix:
            typer.echo(f"Fix: {fix}", err=True)
    return code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))
