"""restart, stop and remove: the same course for three verbs that act on services which are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from sglang_ops.commands import _common, _deployment, _views
from sglang_ops.errors import UsageError
from sglang_ops.result import Deployed


def act(
    verb: str,
    target: _common.Target,
    context: typer.Context,
    *,
    service: str | None,
    config: Sequence[Path] | None,
    json: bool,
    names: Sequence[str] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> int:
    """Play `verb` on one service, named by --service or by the deployment file; show and keep the result."""
    with _common.run_folder(verb, target) as folder:
        wanted = {"sglang_ops_services": names or units(service, config, target), **(variables or {})}
        played = _common.play(verb, target, folder, wanted, quiet=json)
        result = Deployed.from_run(
            played.state, run=str(folder.path), seconds=played.seconds, interrupted=played.interrupted
        )
        _common.keep(folder, result.as_dict(), hosts=len(result.hosts), seconds=result.seconds)
        err = _common.stderr()
        if json:
            _common.print_json(result.as_dict())
        elif not result.interrupted:
            _views.deployed(_common.stdout(), result)
        if result.interrupted:
            _views.interrupted(err, played.state, _common.again(context))
        else:
            _views.failures(err, played.state.failures, folder, target, _common.again(context))
            if not json:
                err.print(f"Finished in {result.seconds:.1f} s.")
        return result.exit_code


def units(service: str | None, config: Sequence[Path] | None, target: _common.Target) -> list[str]:
    """The units to act on. Raises UsageError where nothing names one: these verbs never guess."""
    if service:
        return [_common.service_unit(service)]
    with _deployment.find(config, target.inventory, target.limit, {}) as found:
        if found is None:
            raise UsageError(
                "Which service? There is no deployment file here that would tell.",
                fix=f"Name it with --service; {target.command('status')} lists them.",
            )
        gateways = [item.gateway.service_name for item in found.deployments if item.gateway]
        return [*(item.service_name for item in found.deployments), *dict.fromkeys(gateways)]
