"""sglang-ops lock: who is at work on the hosts"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import typer

from sglang_ops import holding
from sglang_ops.commands import _common, _looks, _options, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode, LockedError, UsageError
from sglang_ops.runs import RunFolder

app = typer.Typer(
    help="See who is at work on the hosts, and release a lock.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Holder = Mapping[str, Any]
HEADERS = ("host", "lock", "by", "since", "doing", "run")


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
    """Show who is at work on each host, since when, and doing what."""
    target = _common.Target.of(inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass)
    with _common.run_folder("lock_status", target) as folder:
        look = _Locks(target, folder, context, json=output is Output.JSON)
        return look.show(look.play("lock_status"))


@app.command()
def release(
    context: typer.Context,
    inventory: _options.Inventory,
    yes: _options.Yes = False,
    limit: _options.Limit = None,
    forks: _options.Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Take the lock from whoever holds it; the run that loses it ends. Asks first.

    Never needed after a crash: a lock ends with its run. It is for a run that
    hangs where nobody can reach it. One of this machine that still lives is
    ended with Ctrl-C; its lock is released only with --yes.
    """
    target = _common.Target.of(inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass)
    json = output is Output.JSON
    with _common.run_folder("lock_release", target) as folder:
        look = _Locks(target, folder, context, json=json)
        if yes:
            return look.show(look.play("lock_release"))
        held = look.holders(look.play("lock_status"))
        if not held:
            return look.show(look.played)
        own = next((holder for holder in held.values() if _lives_here(holder)), None)
        if own:
            where = f"on this machine (process {own['pid']})"
            message = f"the run that holds the lock is alive {where}: {holding.described(own)}."
            raise LockedError(message, fix=f"End it with Ctrl-C, or take its lock: {_common.again(context)} --yes")
        if not _common.interactive():
            message = f"release would end the run of {_first(held)} and there is no terminal to ask on."
            raise UsageError(message, fix="Add --yes.")
        look.table(_common.stderr(), look.played)
        if not _common.confirm("Take these locks, and end what is done under them?"):
            _common.stderr().print("Nothing was changed.")
            return ExitCode.ERROR
        look.target = replace(target, limit=",".join(held))
        variables = {"sglang_ops_release": {host: holder.get("run", "") for host, holder in held.items()}}
        return look.show(look.play("lock_release", variables))


class _Locks:
    """One look at the locks of hosts, or one release, and what is said about it."""

    def __init__(self, target: _common.Target, folder: RunFolder, context: typer.Context, *, json: bool) -> None:
        self.target, self.folder, self.context, self.json = target, folder, context, json

    def play(self, verb: str, variables: Mapping[str, Any] | None = None) -> _common.Played:
        self.played = _common.play(verb, self.target, self.folder, variables or {}, quiet=True)
        return self.played

    def holders(self, played: _common.Played) -> dict[str, Holder]:
        found = {name: host.result("lock").get("holder") for name, host in played.state.hosts.items()}
        return {name: holder for name, holder in found.items() if holder}

    def show(self, played: _common.Played) -> int:
        hosts = [
            {
                "host": host.name,
                "held": bool(host.result("lock").get("holder")) and not host.result("lock").get("released"),
                "released": bool(host.result("lock").get("released")),
                **{key: (host.result("lock").get("holder") or {}).get(key) for key in KEYS},
            }
            for host in played.state.hosts.values()
            if not host.failure
        ]
        look = _looks.Look(self.target, self.folder, _common.again(self.context), self.json)
        return look.end(played, {"hosts": hosts}, lambda: self.table(_common.stdout(), played))

    def table(self, console: Any, played: _common.Played) -> None:
        made = _views.grid(*HEADERS)
        for host in played.state.hosts.values():
            if host.failure:
                continue
            found = host.result("lock")
            holder = found.get("holder") or {}
            word = "released" if found.get("released") else "held" if holder else "free"
            since = f"{holding.age(holder['since'])} ago" if holder.get("since") else "-"
            doing = (str(holder.get(key) or "-") for key in ("verb", "run"))
            made.add_row(host.name, word, str(holder.get("who") or "-"), since, *doing)
        if made.row_count:
            console.print(made)


KEYS = ("who", "controller", "pid", "verb", "run", "since", "holder")


def _lives_here(holder: Holder) -> bool:
    """Whether the run is one of this machine, and has not ended."""
    if holder.get("controller") != socket.gethostname():
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.kill(int(holder["pid"]), 0)
        return True
    return False


def _first(held: Mapping[str, Holder]) -> str:
    return holding.described(next(iter(held.values())))
