"""sglang-ops rollout status | pause | resume | undo"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from sglang_ops import rollout_run, rollouts
from sglang_ops.commands import _common, _deployment, _looks, _options, _rollout, _views
from sglang_ops.commands._options import Output
from sglang_ops.commands.deploy import Work
from sglang_ops.commands.rollback import go_back
from sglang_ops.errors import ExitCode, UsageError

NOTHING = "No roll-out is unfinished on these hosts."

app = typer.Typer(
    help="See how far a roll-out is, pause it, let it go on, or take it back.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def status(
    context: typer.Context,
    inventory: _options.Inventory,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Show which release each host runs, and whether a roll-out is unfinished or paused.

    Ends with 2 when one is paused.
    """
    target = _common.Target.of(inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass)
    with _common.run_folder("rollout_status", target) as folder:
        look = _looks.Look(target, folder, _common.again(context), output is Output.JSON)
        found, played = _look(look)
        open_ones, rows = rollouts.unfinished(found), rollouts.running(found)
        code = played.exit_code
        if code is ExitCode.DONE and any(item.paused for item in open_ones):
            code = ExitCode.PENDING
        data = {"rollouts": rollouts.as_dicts(open_ones), "services": rollouts.as_dicts(rows)}
        return look.end(played, data, lambda: _status(target, open_ones, rows, played), code)


def _status(
    target: _common.Target,
    open_ones: Sequence[rollouts.Unfinished],
    rows: Sequence[rollouts.Running],
    played: _common.Played,
) -> None:
    if rows:
        _common.stdout().print(_rollout.running(rows))
    for item in open_ones:
        _rollout.told(_common.stdout(), item)
    if open_ones:
        words = ["undo"] if any(item.failed for item in open_ones) else ["resume", "undo"]
        _views.following([target.command(f"rollout {word}") for word in words], _common.stderr())
    elif not played.state.failures:
        _common.stderr().print("No roll-out is unfinished.")
    elif any(host.results.get("rollout") for host in played.state.hosts.values()):
        _common.stderr().print("No roll-out is unfinished on the hosts that answered.")


@app.command()
def pause(
    context: typer.Context,
    inventory: _options.Inventory,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Stop a roll-out before its next batch, from any machine.

    Hosts that are in the middle of their change finish it; the command that
    runs the roll-out ends with 2.
    """
    target = _common.Target.of(inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass)
    with _common.run_folder("rollout_pause", target) as folder:
        look = _looks.Look(target, folder, _common.again(context), output is Output.JSON)
        played = _rollout.play("pause", target, folder)
        waiting = sorted(host.name for host in played.state.hosts.values() if host.result("rollout").get("unfinished"))
        if not waiting and played.exit_code is ExitCode.DONE:
            raise UsageError(NOTHING, fix=f"See {target.command('rollout status')}")
        return look.end(played, {"waiting": waiting}, lambda: _paused(target, waiting, played))


def _paused(target: _common.Target, waiting: Sequence[str], played: _common.Played) -> None:
    untold = ", ".join(failure.host for failure in played.state.failures)
    if waiting:
        said = f"Paused. Not changed yet, or changing now: {', '.join(waiting)}."
        _common.stdout().print(f"{said} Not told: {untold}." if untold else said, soft_wrap=True)
        _views.following([target.command(f"rollout {word}") for word in ("resume", "undo")], _common.stderr())
    else:
        said = f"Nothing was paused: no roll-out is unfinished on the hosts that answered. Not told: {untold}."
        _common.stdout().print(said, soft_wrap=True)


@app.command()
def resume(
    context: typer.Context,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    canary: _options.Canary = None,
    batch: _options.Batch = None,
    max_failures: _options.MaxFailures = None,
    soak: _options.Soak = None,
    start_timeout: _options.StartTimeout = None,
    drain_timeout: _options.DrainTimeout = None,
    rollback: _options.Rollback = None,
    order: _options.Order = None,
    surge: _options.Surge = None,
    extra_vars: _options.ExtraVars = None,
    override: _options.Overrides = None,
    strict: _options.Strict = False,
    interrupt_evaluations: _options.InterruptEvaluations = False,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Let a roll-out go on that was paused, or whose controller died.

    With the same deployment file; a changed one is refused. The image is the
    one that the roll-out began with, wherever its tag is by now, and so are
    batches, times and the other flags below, unless they are given anew.
    """
    given = rollout_run.flags(
        canary=canary,
        batch=batch,
        max_failures=max_failures,
        soak=soak,
        start_timeout=start_timeout,
        drain_timeout=drain_timeout,
        rollback=rollback,
        order=order,
        surge=surge,
    )
    target = _common.Target.of(
        inventory,
        limit,
        forks=forks,
        verbose=verbose,
        extra_vars=extra_vars,
        ask_become_pass=ask_become_pass,
        lock_wait=lock_wait,
    )
    json = output is Output.JSON
    with _deployment.opened("rollout_resume", target, config, override) as (source, folder):
        look = _looks.Look(target, folder, _common.again(context), json)
        found, looked = _look(look)
        if looked.exit_code is not ExitCode.DONE:
            return look.end(looked, {})
        open_ones = _going_on(_unfinished(target, found), source)
        digests = {ref: digest for item in open_ones for ref, digest in item.digests.items()}
        options = {name: value for item in open_ones for name, value in item.options.items()} | given
        kept = rollout_run.typed({name: value for name, value in options.items() if name not in given})
        if kept and not json:
            _common.stderr().print(f"As the roll-out began: {' '.join(kept)}.")
        work = Work(
            target,
            folder,
            source,
            shlex.join([*shlex.split(look.again), *kept]),
            {
                "resume": True,
                "judged": any(item.changed for item in open_ones),
                "digests": digests,
                "options": options,
            },
            json=json,
            diff=False,
            strict=strict,
            interrupt=interrupt_evaluations,
        )
        planned = work.run(check=True, playbook="plan")  # a file that has changed is refused before the mark is gone
        if not planned.ok:
            return work.show(planned)
        let = _rollout.play("resume", target, folder, [name for item in open_ones for name in item.services])
        if let.exit_code is not ExitCode.DONE:  # where a host was not told, the deploy would stop as paused
            return look.end(let, {})
        return work.show(work.run(check=False))


def _going_on(open_ones: Sequence[rollouts.Unfinished], source: _deployment.Source) -> list[rollouts.Unfinished]:
    """The roll-outs of the file's services. Raises PreflightError, UsageError where they cannot go on with it."""
    meant = rollouts.of_file(open_ones, [item.service_name for item in source.deployments])
    failed = [host for item in meant for host in item.failed]
    if failed:
        raise UsageError(
            f"The roll-out failed on {', '.join(failed)}: there is nothing to go on with.",
            fix="Correct the deployment and deploy again, or take it back with `rollout undo`.",
        )
    return meant


@app.command()
def undo(
    context: typer.Context,
    inventory: _options.Inventory,
    batch: str = typer.Option("25%", metavar="N", help="Hosts at a time: a number, or 25%."),
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Bring back the hosts that an unfinished roll-out has changed; the others stay as they are."""
    target = _common.Target.of(
        inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass, lock_wait=lock_wait
    )
    size = rollout_run.checked({"batch": batch})["batch"]
    with _common.run_folder("rollout_status", target) as folder:
        look = _looks.Look(target, folder, _common.again(context), output is Output.JSON)
        found, looked = _look(look)
        if looked.exit_code is not ExitCode.DONE and not rollouts.unfinished(found):
            return look.end(looked, {})
        ids = [item.id for item in _unfinished(target, found)]
        _common.keep(folder, {"ok": True, "exit_code": 0}, hosts=0, seconds=0.0)
    return go_back("rollout_undo", target, look.again, {"sglang_server_undo": ids}, None, size, output)


def _look(look: _looks.Look) -> tuple[dict[str, list[Mapping[str, Any]]], _common.Played]:
    played = _rollout.play("look", look.target, look.folder)
    return rollouts.looked(played.state), played


def _unfinished(target: _common.Target, looked: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[rollouts.Unfinished]:
    """Raises UsageError where there is none."""
    found = rollouts.unfinished(looked)
    if not found:
        fix = f"See {target.command('rollout status')}; `rollback` returns to the release of before."
        raise UsageError(NOTHING, fix=fix)
    return found
