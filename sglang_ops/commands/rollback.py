"""sglang-ops rollback"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sglang_ops import identity, rollout, rollout_run
from sglang_ops.commands import _common, _options, _rollout, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode
from sglang_ops.result import Deployed

Release = Annotated[
    str | None,
    typer.Argument(help="Release to go back to, as 'history --releases' names it; its first digits are enough."),
]
Batch = Annotated[str, typer.Option(metavar="N", help="Hosts at a time: a number, or 25%.")]


def rollback(
    context: typer.Context,
    inventory: _options.Inventory,
    release: Release = None,
    service: _options.ServiceName = None,
    batch: Batch = "25%",
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Return to a release of before.

    That is the last stable one before the current, or the one that is named.

    Every host is asked first whether it knows the release and still has its
    image; only then does anything stop. There is no canary and no soak: the
    hosts go back a batch at a time.
    """
    target = _common.Target.of(
        inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass, lock_wait=lock_wait
    )
    size = rollout_run.checked({"batch": batch})["batch"]
    again = _common.again(context)
    return go_back("rollback", target, again, {"sglang_server_release": release or ""}, service, size, output)


def go_back(
    verb: str,
    target: _common.Target,
    again: str,
    variables: dict[str, Any],
    service: str | None,
    batch: int | str,
    output: Output,
) -> int:
    """Play rollback.yml and tell what came of it."""
    json = output is Output.JSON
    with _common.run_folder(verb, target) as folder:
        change = {"who": identity.who(), "rollout": rollout.identity(folder.path.name)}
        wanted = {**variables, **_common.only(service), "sglang_ops_batch": batch, "sglang_server_change": change}
        played = _common.play("rollback", target, folder, wanted, quiet=json)
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
            _views.interrupted(err, played.state, again)
            return result.exit_code
        _views.failures(err, played.state.failures, folder, target, again)
        if not json:
            _rollout.summary(err, result, target, again)
            if variables.get("sglang_server_undo") and result.exit_code not in (ExitCode.DONE, ExitCode.LOCKED):
                _kept(played, again)
            if result.ok and not result.rolled:
                err.print("Nothing to take back.")
            err.print(f"Finished in {result.seconds:.1f} s.")
        return result.exit_code


def _kept(played: _common.Played, again: str) -> None:
    """Say that a roll-out which could not be taken back everywhere is known still."""
    if any(host.results.get("rollout") for host in played.state.hosts.values()):
        return
    err = _common.stderr()
    err.print("\nNot every host was taken back, so the hosts keep the roll-out on record. Once they can go back:")
    err.print(f"  {again}", markup=False, soft_wrap=True)
