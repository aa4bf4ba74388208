"""sglang-ops undrain"""

from __future__ import annotations

import typer

from sglang_ops.commands import _common, _drain, _options
from sglang_ops.commands._options import Output


def undrain(
    context: typer.Context,
    hosts: _drain.Hosts,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    lock_wait: _options.LockWait = 0,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Bring drained hosts back behind their gateways."""
    target = _common.Target.of(
        inventory, hosts, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass, lock_wait=lock_wait
    )
    return _drain.play("undrain", target, context, config=config, variables={}, json=output is Output.JSON)
