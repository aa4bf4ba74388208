"""sglang-ops remove"""

from __future__ import annotations

from typing import Annotated

import typer

from sglang_ops.commands import _act, _common, _options
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode, UsageError

Purge = Annotated[bool, typer.Option("--purge", help="Also delete what only this service used: image, records.")]


def remove(
    context: typer.Context,
    inventory: _options.Inventory,
    service: _options.ServiceName = None,
    config: _options.Configs = None,
    purge: Purge = False,
    yes: _options.Yes = False,
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Stop a service and take its unit away; models stay in the cache. Asks first."""
    target = _common.Target.of(
        inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass, lock_wait=lock_wait
    )
    names = _act.units(service, config, target)
    shown = ", ".join(names)
    if not yes:
        if not _common.interactive():
            message = f"remove would take {shown} away and there is no terminal to ask on."
            raise UsageError(message, fix="Add --yes.")
        also = " with image and records" if purge else ""
        if not _common.confirm(f"Remove {shown}{also} from the hosts of {' '.join(inventory)}?"):
            _common.stderr().print("Nothing was changed.")
            return ExitCode.ERROR
    json, variables = output is Output.JSON, {"sglang_server_purge": purge}
    return _act.act("remove", target, context, service=None, config=None, names=names, json=json, variables=variables)
