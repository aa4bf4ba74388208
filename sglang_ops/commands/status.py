"""sglang-ops status"""

from __future__ import annotations

import json as jsonlib
import time
from typing import Annotated

import typer

from sglang_ops.commands import _common, _options, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode
from sglang_ops.result import Status
from sglang_ops.runs import RunFolder

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Look again every few seconds until Ctrl-C.")]

WATCH_SECONDS = 5.0


def status(
    context: typer.Context,
    inventory: _options.Inventory,
    service: _options.ServiceName = None,
    watch: Watch = False,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Show what runs on the hosts: release, health, load and memory of each service."""
    target = _common.Target.of(inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass)
    json = output is Output.JSON
    with _common.run_folder("status", target) as folder:
        if watch:
            return _watch(target, folder, service, json=json)
        result, played = _look(target, folder, service, silent=False)
        code = ExitCode.INTERRUPTED if played.interrupted else result.exit_code
        _common.keep(
            folder, {**result.as_dict(), "exit_code": code}, hosts=len(played.state.hosts), seconds=played.seconds
        )
        if json:
            _common.print_json(result.as_dict())
        elif result.services or result.failures:
            if result.services:
                _common.stdout().print(_views.status(result))
            if result.gateways:
                _common.stdout().print()
                _common.stdout().print(_views.gateways(result))
            if result.services:
                _views.drift(_common.stderr(), result, target)
            _views.failures(_common.stderr(), result.failures, folder, target, _common.again(context))
        elif not played.interrupted:
            _common.stderr().print("No service is deployed on these hosts.")
            _views.following([target.command("deploy")], _common.stderr())
        return code


def _look(
    target: _common.Target, folder: RunFolder, service: str | None, *, silent: bool
) -> tuple[Status, _common.Played]:
    played = _common.play("status", target, folder, _common.only(service), quiet=True, silent=silent)
    return Status.from_run(played.state), played


def _watch(target: _common.Target, folder: RunFolder, service: str | None, *, json: bool) -> int:
    """Look until Ctrl-C: a table that renews itself, or one JSON document per line."""
    from rich.live import Live

    console = _common.stdout()
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            began = time.monotonic()
            folder.rewind()
            result, played = _look(target, folder, service, silent=True)
            if played.interrupted:
                _common.keep(folder, {"exit_code": ExitCode.INTERRUPTED}, hosts=0, seconds=played.seconds)
                return ExitCode.INTERRUPTED
            if json:
                typer.echo(jsonlib.dumps(result.as_dict(), default=str, ensure_ascii=False))
            else:
                live.update(_views.status(result), refresh=True)
            time.sleep(max(0.0, WATCH_SECONDS - (time.monotonic() - began)))
