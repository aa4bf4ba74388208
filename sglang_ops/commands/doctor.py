"""sglang-ops doctor"""

from __future__ import annotations

import typer

from sglang_ops.commands import _common, _deployment, _doctor_view, _options, _views
from sglang_ops.commands._options import Output
from sglang_ops.diagnosed import Diagnosed


def doctor(
    context: typer.Context,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    extra_vars: _options.ExtraVars = None,
    override: _options.Overrides = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Say whether each host is fit to serve: every problem at once, with its remedy.

    Looks at every host once and changes nothing: SSH and sudo, the system, GPUs
    and their driver, the container engine, storage, network, and what the
    deployment needs. Without a deployment file only the hosts are judged.
    Ends with 0 where all are fit, 7 where one is not, 6 where one could not be reached.
    """
    target = _common.Target.of(
        inventory, limit, forks=forks, verbose=verbose, extra_vars=extra_vars, ask_become_pass=ask_become_pass
    )
    json = output is Output.JSON
    changes = _deployment.overrides(target.extra, override)
    with (
        _deployment.find(config, inventory, limit, changes) as source,
        _common.run_folder("doctor", target) as folder,
    ):
        if source:
            folder.hide(source.secrets())
            folder.write_yaml("config.yaml", source.redacted())
        variables = source.variables if source else {}
        played = _common.play("doctor", target, folder, variables, quiet=True)  # the result says it all
        result = Diagnosed.from_run(played.state, interrupted=played.interrupted)
        _common.keep(folder, result.as_dict(), hosts=len(result.hosts), seconds=played.seconds)
        if json:
            _common.print_json(result.as_dict())
        elif played.interrupted:
            _views.interrupted(_common.stderr(), played.state, _common.again(context))
        else:
            _doctor_view.show(_common.stdout(), result)
            if not result.ok:
                _views.following([_common.again(context)], _common.stderr())
        return result.exit_code
