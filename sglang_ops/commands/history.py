"""sglang-ops history"""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from sglang_ops import rollouts, runs
from sglang_ops.commands import _common, _looks, _options, _rollout, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode, UsageError

Number = Annotated[int, typer.Option("--lines", "-n", metavar="N", min=1, help="Newest runs to show.")]
All = Annotated[bool, typer.Option("--all", "-a", help="Also runs that only looked: status, logs, verify.")]


Releases = Annotated[
    bool, typer.Option("--releases", help="Changes of release that the hosts remember, instead of runs.")
]
Inventory = Annotated[
    list[str] | None,
    typer.Option(
        "--inventory",
        "-i",
        metavar="SOURCE",
        envvar="SGLANG_OPS_INVENTORY",
        help="With --releases: the hosts to ask.",
        rich_help_panel=_options.ANSIBLE,
    ),
]


def history(
    number: Number = 20,
    everything: All = False,
    releases: Releases = False,
    inventory: Inventory = None,
    limit: _options.Limit = None,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """List the runs of this machine, or the releases of its hosts.

    A run: when, who, what, on which hosts, how it ended.

    With --releases and an inventory, what its hosts remember instead: every
    change of release with its image, its model, what differs from the one
    before, who made it, and what came of it.
    """
    if releases:
        if not inventory:
            raise UsageError("--releases asks hosts, and no inventory is given.", fix="Name it with -i.")
        return _releases(_common.Target.of(inventory, limit, ask_become_pass=ask_become_pass), number, output)
    chosen = (record for record in runs.history() if everything or record.verb not in runs.READS)
    found = list(islice(chosen, number))
    if output is Output.JSON:
        _common.print_json({"runs": [record.as_dict() for record in found], "folder": str(runs.state_dir() / "runs")})
    elif found:
        _common.stdout().print(_views.history(found))
        _common.stderr().print(f"Run folders: {runs.state_dir() / 'runs'}", soft_wrap=True)
    else:
        _common.stderr().print(f"No run is recorded in {runs.state_dir() / 'runs'}.", soft_wrap=True)
    return ExitCode.DONE


def _releases(target: _common.Target, number: int, output: Output) -> int:
    with _common.run_folder("history", target) as folder:
        played = _rollout.play("look", target, folder)
        found = rollouts.changes(rollouts.looked(played.state))[:number]

        def shown() -> None:
            if found:
                _common.stdout().print(_rollout.changes(found))
            elif any(host.result("rollout") for host in played.state.hosts.values()):
                _common.stderr().print("These hosts remember no change of release.")

        look = _looks.Look(target, folder, target.command("history", "--releases"), output is Output.JSON)
        return look.end(played, {"releases": rollouts.as_dicts(found)}, shown)
