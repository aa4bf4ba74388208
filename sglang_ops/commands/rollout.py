"""sglang-ops rollout status | pause | resume | undo"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from sglang_ops import rollouts
from sglang_ops.commands import _common, _deployment, _options, _rollout, _views
from sglang_ops.commands._options import Output
from sglang_ops.commands.deploy import Work
from sglang_ops.commands.rollback import go_back
from sglang_ops.errors import ExitCode, UsageError
from sglang_ops.runs import RunFolder

NOTHING = "No roll-out is unfinished on these hosts."

app = typer.Typer(
    help="See how far a roll-out is, pause it, let it go on, or take it back.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def status(
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
        found, played = _look(target, folder)
        open_ones, rows = rollouts.unfinished(found), rollouts.running(found)
        code = played.exit_code
        if code is ExitCode.DONE and any(item.paused for item in open_ones):
            code = ExitCode.PENDING
        data = {
            "ok": code is ExitCode.DONE,
            "exit_code": int(code),
            "rollouts": rollouts.as_dicts(open_ones),
            "services": rollouts.as_dicts(rows),
        }
        _common.keep(folder, data, hosts=len(found), seconds=played.seconds)
        if output is Output.JSON:
            _common.print_json(data)
        else:
            _common.stdout().print(_rollout.running(rows))
            for item in open_ones:
                _rollout.told(_common.stdout(), item)
            if not open_ones:
                _common.stderr().print("No roll-out is unfinished.")
            else:
                words = ["undo"] if any(item.failed for item in open_ones) else ["resume", "undo"]
                _views.following([target.command(f"rollout {word}") for word in words], _common.stderr())
        return code


@app.command()
def pause(
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
        played = _rollout.play("pause", target, folder)
        waiting = sorted(host.name for host in played.state.hosts.values() if host.result("rollout").get("unfinished"))
        if not waiting and played.exit_code is ExitCode.DONE:
            raise UsageError(NOTHING, fix=f"See {target.command('rollout status')}")
        data = {"ok": played.exit_code is ExitCode.DONE, "exit_code": int(played.exit_code), "waiting": waiting}
        _common.keep(folder, data, hosts=len(played.state.hosts), seconds=played.seconds)
        if output is Output.JSON:
            _common.print_json(data)
        else:
            _common.stdout().print(f"Paused. Not changed yet, or changing now: {', '.join(waiting)}.", soft_wrap=True)
            _views.following([target.command(f"rollout {word}") for word in ("resume", "undo")], _common.stderr())
        return played.exit_code


@app.command()
def resume(
    context: typer.Context,
    inventory: _options.Inventory,
    config: _options.Configs = None,
    lock_wait: _options.LockWait = 0,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    extra_vars: _options.ExtraVars = None,
    override: _options.Overrides = None,
    strict: _options.Strict = False,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Let a roll-out go on that was paused, or whose controller died.

    With the same deployment file; a changed one is refused. The image is the
    one that the roll-out began with, wherever its tag is by now.
    """
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
        open_ones = _unfinished(target, folder)
        failed = [host for item in open_ones for host in item.failed]
        if failed:
            raise UsageError(
                f"The roll-out failed on {', '.join(failed)}: there is nothing to go on with.",
                fix="Correct the deployment and deploy again, or take it back with `rollout undo`.",
            )
        digests = {ref: digest for item in open_ones for ref, digest in item.digests.items()}
        work = Work(
            target,
            folder,
            source,
            _common.again(context),
            {"resume": True, "digests": digests},
            json=json,
            diff=False,
            strict=strict,
        )
        planned = work.run(check=True, playbook="plan")  # a file that has changed is refused before the mark is gone
        if not planned.ok:
            return work.show(planned)
        _rollout.play("resume", target, folder)
        return work.show(work.run(check=False))


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
    with _common.run_folder("rollout_status", target) as folder:
        ids = [item.id for item in _unfinished(target, folder)]
        _common.keep(folder, {"ok": True, "exit_code": 0}, hosts=0, seconds=0.0)
    size = _options.batch(batch)
    return go_back("rollout_undo", target, _common.again(context), {"sglang_server_undo": ids}, None, size, output)


def _look(target: _common.Target, folder: RunFolder) -> tuple[dict[str, list[Mapping[str, Any]]], _common.Played]:
    played = _rollout.play("look", target, folder)
    return rollouts.looked(played.state), played


def _unfinished(target: _common.Target, folder: RunFolder) -> list[rollouts.Unfinished]:
    """Raises UsageError where there is none."""
    found = rollouts.unfinished(_look(target, folder)[0])
    if not found:
        fix = f"See {target.command('rollout status')}; `rollback` returns to the release of before."
        raise UsageError(NOTHING, fix=fix)
    return found
