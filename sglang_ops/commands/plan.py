"""sglang-ops plan"""

from __future__ import annotations

from typing import Annotated

import typer

from sglang_ops.commands import _common, _deployment, _options, _plan_view, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode
from sglang_ops.planned import Planned

DetailedExitcode = Annotated[
    bool, typer.Option("--detailed-exitcode", help="End with 2 when there is something to do.")
]


def plan(
    context: typer.Context,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    detailed_exitcode: DetailedExitcode = False,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    extra_vars: _options.ExtraVars = None,
    override: _options.Overrides = None,
    strict: _options.Strict = False,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Show what deploy would do on each host, and why.

    Looks at every host once and changes nothing: what would be pulled, fetched,
    started or restarted, on which GPUs, with how much memory, how long the
    service would be away, and how its unit would change.
    """
    target = _common.Target.of(
        inventory, limit, forks=forks, verbose=verbose, extra_vars=extra_vars, ask_become_pass=ask_become_pass
    )
    json = output is Output.JSON
    with _deployment.opened("plan", target, config, override) as (source, folder):
        variables = source.variables | _deployment.strictness(strict)
        played = _common.play("plan", target, folder, variables, quiet=json, check=True)
        result = Planned.from_run(played.state, interrupted=played.interrupted)
        pending = detailed_exitcode and result.ok and result.pending
        code = ExitCode.PENDING if pending else result.exit_code
        data = {**result.as_dict(), "exit_code": int(code)}
        _common.keep(folder, data, hosts=len(result.hosts), seconds=played.seconds)
        err = _common.stderr()
        if json:
            _common.print_json(data)
        elif not result.interrupted:
            _plan_view.show(_common.stdout(), result)
        again = _common.again(context, "--detailed-exitcode")
        if result.interrupted:
            _views.interrupted(err, played.state, again)
        elif not result.ok:
            err.print(f"Full log: {folder.log}", soft_wrap=True)
        elif not json and result.pending:
            _views.following([again.replace(" plan ", " deploy ", 1)], err)
        return code
