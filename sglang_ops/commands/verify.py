"""sglang-ops verify"""

from __future__ import annotations

from typing import Annotated

import typer

from sglang_ops.commands import _common, _options, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode, UsageError
from sglang_ops.result import Verified

# What plugins/module_utils/sglang_host_features.py knows to ask for.
FEATURES = ("json_schema", "regex", "vision")


def verify(
    context: typer.Context,
    inventory: _options.Inventory,
    service: _options.ServiceName = None,
    features: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help=f"Ask also for these, with commas between them: {', '.join(FEATURES)}."),
    ] = None,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Ask every service the questions of the gate: unit, port, readiness, model, a real completion."""
    wanted = {"sglang_health_features": _known(features) if features is not None else None}
    target = _common.Target.of(inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass)
    json = output is Output.JSON
    with _common.run_folder("verify", target) as folder:
        played = _common.play("verify", target, folder, _common.only(service) | wanted, quiet=json)
        result = Verified.from_run(played.state)
        code = ExitCode.INTERRUPTED if played.interrupted else result.exit_code
        _common.keep(
            folder, {**result.as_dict(), "exit_code": code}, hosts=len(played.state.hosts), seconds=played.seconds
        )
        if json:
            _common.print_json(result.as_dict())
        else:
            _views.verified(_common.stdout(), result)
            _views.failures(_common.stderr(), result.failures, folder, target, _common.again(context))
            _common.stderr().print(f"Finished in {played.seconds:.1f} s.")
        return code


def _known(text: str) -> list[str]:
    """The features in a list such as "json_schema,regex". Raises UsageError for what is none."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in FEATURES:
            fix = f"Write one or more of {', '.join(FEATURES)}, with commas between them."
            raise UsageError(f"--features: '{name}' is not known.", fix=fix)
    return list(dict.fromkeys(names))
