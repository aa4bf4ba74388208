"""sglang-ops restart"""

from __future__ import annotations

import typer

from sglang_ops.commands import _act, _common, _options
from sglang_ops.commands._options import Output


def restart(
    context: typer.Context,
    inventory: _options.Inventory,
    service: _options.ServiceName = None,
    config: _options.Configs = None,
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Restart a service and wait until it serves again."""
    target = _common.Target.of(
        inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass, lock_wait=lock_wait
    )
    return _act.act("restart", target, context, service=service, config=config, json=output is Output.JSON)
