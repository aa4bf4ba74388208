"""What the verbs about roll-outs and releases share: one look at the hosts, and how it is shown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.text import Text

from sglang_ops import identity, rollouts
from sglang_ops.commands import _common, _views
from sglang_ops.errors import ExitCode
from sglang_ops.runs import RunFolder

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_ops.result import Deployed


def play(do: str, target: _common.Target, folder: RunFolder, *, quiet: bool = True) -> _common.Played:
    """Run one of the module's deeds on every host: look, pause, resume, forget."""
    wanted = {"sglang_server_rollout": {"do": do, "who": identity.who()}}
    return _common.play("rollout", target, folder, wanted, quiet=quiet)


def running(items: Sequence[rollouts.Running]) -> Any:
    table = _views.grid("host", "service", "release", "stable", "roll-out")
    for item in items:
        stable = Text("yes", style="green") if item.stable else Text("no", style="yellow")
        waiting = f"waits for {item.rollout}" if item.rollout else "-"
        table.add_row(item.host, item.service, item.release or "-", stable, waiting)
    return table


def changes(items: Sequence[rollouts.Change]) -> Any:
    table = _views.grid("when", "host", "service", "release", "verb", "who", "result", "image", "model", "changed")
    for item in items:
        table.add_row(
            item.time[:19].replace("T", " "),
            item.host,
            item.service,
            item.release,
            item.verb,
            item.who,
            Text(item.result, style={"stable": "green", "failed": "red"}.get(item.result, "yellow")),
            item.image_digest.removeprefix("sha256:")[:12],
            item.model[:12],
            item.differences or "-",
        )
    return table


def told(console: Console, item: rollouts.Unfinished) -> None:
    """One unfinished roll-out in a few lines."""
    console.print(f"Roll-out {item.id} of {', '.join(item.services)}, begun {item.started} by {item.who}.")
    console.print(f"  changed: {', '.join(item.changed) or 'none'}", soft_wrap=True)
    console.print(f"  waiting: {', '.join(item.waiting) or 'none'}", soft_wrap=True)
    if item.failed:
        console.print(f"  [red]failed[/] on {', '.join(item.failed)}: correct the deployment and deploy again")
    if item.paused:
        mark = item.paused
        console.print(
            f"  [yellow]paused[/] by {mark['who']} since {mark['since']} ({escape(mark['why'])})", soft_wrap=True
        )


def summary(console: Console, result: Deployed, target: _common.Target, again: str) -> None:
    """Who runs what after a roll-out that did not reach every host, and what to type next; `again` was typed now."""
    rolled = result.rolled
    if target.limit and result.exit_code not in (ExitCode.REFUSED, ExitCode.LOCKED):
        _limited(console, result, target)
    if not rolled or result.check:
        return
    if rolled.waiting:
        runs = {host.host: host.release or "nothing" for host in result.hosts}
        by_release: dict[str, list[str]] = {}
        for host in rolled.waiting:
            by_release.setdefault(runs[host], []).append(host)
        told = "; ".join(f"{', '.join(hosts)} (running {release})" for release, hosts in by_release.items())
        console.print(f"\nThe roll-out stopped. Not reached: {told}.", soft_wrap=True)
    if rolled.result == "paused":
        mark = rolled.paused
        since = rollouts.moment(mark.get("since"))
        console.print(f"Paused by {mark['who']} since {since}: {escape(str(mark['why']))}.", soft_wrap=True)
        _views.following([target.command(f"rollout {word}") for word in ("resume", "undo", "status")], console)
    repairs = [command for host in result.hosts for command in _repair(host, target, again)]
    if repairs:
        console.print("\nOnce you know the cause, put right by:")
        for command in repairs:
            console.print(f"  {escape(command)}", soft_wrap=True)


def _limited(console: Console, result: Deployed, target: _common.Target) -> None:
    """What --limit has kept out of a change, so that nobody takes the fleet to be of one kind."""
    if result.check or not (result.left_out or result.rolled):
        return
    who = ", ".join(result.left_out) or "Hosts outside it"
    console.print(f"\nNot looked at, because of --limit: {who}. What runs there stays as it was.", soft_wrap=True)
    _views.following([replace(target, limit=None).command("rollout status")], console)


def _repair(host: Any, target: _common.Target, again: str) -> list[str]:
    """The commands that mend a host which nobody put right: look, go back, or try again once the cause is gone."""
    if not host.failure or host.failure.exit_code is not ExitCode.NEEDS_HANDS:
        return []
    only = ("--limit", host.host)
    if host.failure.step == "gateway":  # it serves, but no gateway sends it anything
        return [target.command("status"), target.command("undrain", host.host)]
    mending = [target.command("logs", *only, "-n", "200"), target.command("rollback", *only)]
    once_more = again.replace("sglang-ops rollout resume ", "sglang-ops deploy ", 1)
    return [*mending, f"{once_more} {shlex.join(only)}"] if once_more.startswith("sglang-ops deploy ") else mending
