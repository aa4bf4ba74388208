"""sglang-ops drain"""

from __future__ import annotations

from typing import Annotated

import typer

from sglang_ops.commands import _common, _drain, _options
from sglang_ops.commands._options import Output

Timeout = Annotated[
    int, typer.Option("--timeout", metavar="SECONDS", min=0, max=86400, help="How long requests in flight may take.")
]


def drain(
    context: typer.Context,
    hosts: _drain.Hosts,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    timeout: Timeout = 300,
    lock_wait: _options.LockWait = 0,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Take hosts out of their gateways and wait for the requests in flight.

    Their servers keep running and get nothing new until undrain, whatever is
    deployed meanwhile.
    """
    target = _common.Target.of(
        inventory, hosts, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass, lock_wait=lock_wait
    )
    variables = {"sglang_ops_drain_timeout": timeout}
    return _drain.play("drain", target, context, config=config, variables=variables, json=output is Output.JSON)
