"""What the verbs about roll-outs and releases share: one look at the hosts, and how it is shown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.text import Text

from sglang_ops import identity, rollout_run, rollouts
from sglang_ops.commands import _common, _views
from sglang_ops.errors import ExitCode
from sglang_ops.groups import joined
from sglang_ops.runs import RunFolder

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_ops.result import Deployed, Host


def play(do: str, target: _common.Target, folder: RunFolder, services: Sequence[str] = ()) -> _common.Played:
    """Run one of the module's deeds on every host: look, pause, resume (of `services` alone, if any are named)."""
    wanted = {"sglang_server_rollout": {"do": do, "who": identity.who(), "names": list(services)}}
    return _common.play("rollout", target, folder, wanted, quiet=True)


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
    if item.options:
        console.print(f"  with {' '.join(rollout_run.typed(item.options))}", soft_wrap=True)
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
    repairs = [command for hosts in _needing(result) for command in _repair(hosts, result, target, again)]
    if repairs:
        console.print("\nOnce you know the cause, put right by:")
        for command in dict.fromkeys(repairs):
            console.print(f"  {escape(command)}", soft_wrap=True)


def _limited(console: Console, result: Deployed, target: _common.Target) -> None:
    """What --limit has kept out of a change, so that nobody takes the fleet to be of one kind."""
    if result.check or not (result.left_out or result.rolled):
        return
    who = ", ".join(result.left_out) or "Hosts outside it"
    console.print(f"\nNot looked at, because of --limit: {who}. What runs there stays as it was.", soft_wrap=True)
    _views.following([replace(target, limit=None).command("rollout status")], console)


def _needing(result: Deployed) -> list[list[str]]:
    """The hosts that nobody put right, each with those that serve something together with it."""
    parts = joined([host.host for host in result.hosts], {host.host: host.group for host in result.hosts})
    failed = {host.host for host in result.hosts if _needs_hands(host)}
    return [part for part in parts if failed.intersection(part)]


def _needs_hands(host: Host) -> bool:
    return host.failure is not None and host.failure.exit_code is ExitCode.NEEDS_HANDS


def _repair(hosts: Sequence[str], result: Deployed, target: _common.Target, again: str) -> list[str]:
    """The commands that mend hosts which change together: look, go back, or try again once the cause is gone."""
    whole, named = replace(target, limit=None), ",".join(hosts)
    words, _ = _without(shlex.split(again), "--limit", "-l")
    steps = {host.failure.step for host in result.hosts if host.host in hosts and host.failure and _needs_hands(host)}
    if steps == {"gateway"}:  # it serves, but no gateway sends it anything
        files = [word for file in _without(words, "--config", "-c")[1] for word in ("-c", file)]
        return [whole.command("status"), whole.command("undrain", named, *files)]
    only = ("--limit", named)
    mending = [whole.command("logs", *only, "-n", "200"), whole.command("rollback", *only)]
    once_more = ["deploy", *words[3:]] if words[1:3] == ["rollout", "resume"] else words[1:]
    return [*mending, shlex.join(["sglang-ops", *once_more, *only])] if once_more[0] == "deploy" else mending


def _without(words: Sequence[str], long: str, short: str) -> tuple[list[str], list[str]]:
    """A command line without an option that takes a value, and the values that it had."""
    rest, values, left = [], [], list(words)
    while left:
        word = left.pop(0)
        if word in (long, short) and left:
            values.append(left.pop(0))
        elif word.startswith(f"{long}="):
            values.append(word.partition("=")[2])
        elif word.startswith(short) and not word.startswith("--") and len(word) > len(short):
            values.append(word[len(short) :])
        else:
            rest.append(word)
    return rest, values
