"""The results as tables and sentences for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sglang_ops.errors import ExitCode
from sglang_ops.rollout import summed_up

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_ops.commands._common import Target
    from sglang_ops.events import Failure, RunState
    from sglang_ops.result import Deployed, Host, Service, Status, Verified
    from sglang_ops.runs import RunFolder, RunRecord

ACTIONS = {
    "none": "unchanged",
    "check": "unchanged",
    "start": "started",
    "restart": "restarted",
    "stop": "stopped",
    "remove": "removed",
    "pending": "not begun",
}
ENDINGS: dict[int, str] = {
    ExitCode.DONE: "done",
    ExitCode.PENDING: "changes pending",
    ExitCode.ROLLED_BACK: "rolled back",
    ExitCode.NEEDS_HANDS: "needs hands",
    ExitCode.LOCKED: "locked",
    ExitCode.UNREACHABLE: "unreachable",
    ExitCode.REFUSED: "refused",
    ExitCode.INTERRUPTED: "interrupted",
}


def grid(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def plan(console: Console, result: Deployed) -> None:
    """What a check run announces, host by host."""
    if result.steps:
        table = grid("host", "service", "step", "why", "outage")
        for host in result.hosts:
            outages = {service.name: service.outage for service in host.services}
            only = host.services[0].name if len(host.services) == 1 else ""
            for step in result.steps:
                if step.host == host.host:
                    name = step.subject if step.subject in outages else only
                    touches = step.step in ("start", "restart", "stop", "remove")
                    what = step.step if step.subject in ("", name) else f"{step.step} {step.subject}"
                    table.add_row(step.host, name, what, step.why, outages.get(name, "") if touches else "")
        console.print(table)
    if result.rolled and len(result.rolled.batches) > 1:
        console.print(f"Roll-out: {summed_up([len(batch) for batch in result.rolled.batches])} hosts at a time.")
    for warning in result.warnings:
        console.print(f"[yellow]Warning:[/] {escape(warning)}")


def deployed(console: Console, result: Deployed) -> None:
    """One line per service: what happened, and where it answers. Columns that would be empty are left out."""
    rows = []
    for host in result.hosts:
        for service in host.services:
            gpus = ",".join(map(str, service.gpus))
            rows.append(
                (
                    host.host,
                    service.name,
                    (service.release or "")[:12],
                    _outcome(host, service),
                    gpus,
                    service.endpoint or "",
                )
            )
        if not host.services and not host.failure:
            rows.append((host.host, "", "", _outcome(host, None), "", ""))
    headers = ("host", "service", "release", "result", "GPUs", "endpoint")
    used = [index for index in range(len(headers)) if any(row[index] for row in rows)]
    table = grid(*(headers[index] for index in used))
    for row in rows:
        table.add_row(*(row[index] or "-" for index in used))
    if rows:
        console.print(table)
    for host in result.hosts:
        for item in host.kernels:
            line = f"{host.host}: {item['files']} files of compiled kernels from {item['giver']}."
            console.print(escape(line), soft_wrap=True)


def _outcome(host: Host, service: Service | None) -> Text:
    if host.failure:
        rolled_back = ENDINGS[ExitCode.ROLLED_BACK] if host.failure.exit_code is ExitCode.ROLLED_BACK else "failed"
        return Text("unreachable" if host.failure.exit_code is ExitCode.UNREACHABLE else rolled_back, style="red")
    word = ACTIONS.get(service.action, service.action) if service else ("changed" if host.changed else "unchanged")
    return Text(word, style="green" if host.changed else "")


def failures(console: Console, found: Iterable[Failure], folder: RunFolder, target: Target, again: str) -> None:
    """Where each host stopped, why, the end of the container's log, and what to type next.

    Hosts that stopped for the same reason share one paragraph, with the log of the first: on a fleet it is mostly
    one reason.
    """
    alike: dict[tuple[str, str], list[Failure]] = {}
    for failure in found:
        alike.setdefault((failure.step, failure.cause.replace(failure.host, "*")), []).append(failure)
    for first, *others in alike.values():
        names = ", ".join(failure.host for failure in (first, *others))
        what = "could not be reached" if first.exit_code is ExitCode.UNREACHABLE else "failed"
        console.print(f"\n[bold red]{escape(names)}[/] {what} at [bold]{escape(first.step)}[/]:", soft_wrap=True)
        for line in first.cause.splitlines():
            console.print(f"  {escape(line)}", soft_wrap=True)
        if first.log:
            where = f"the container's log on {first.host}" if others else "the container's log"
            console.print(f"  The last {len(first.log)} lines of {escape(where)}:", style="dim")
            for line in first.log:
                console.print(f"    {escape(line)}", soft_wrap=True, style="dim")
        if first.exit_code is ExitCode.REFUSED:
            console.print("  Nothing was touched there.")
    if alike:
        console.print(f"\nFull log: {folder.log}", soft_wrap=True)
        commands = [_next_after(group[0], target, again) for group in alike.values()]
        following([command for command in commands if command], console)


def _next_after(failure: Failure, target: Target, again: str) -> str | None:
    if failure.exit_code == ExitCode.REFUSED:
        return None  # the cause says what to change
    if failure.log:
        return target.command("logs", "--limit", failure.host, "-n", "200")
    return again


def following(commands: Sequence[str], console: Console) -> None:
    """The commands to type next."""
    for number, command in enumerate(dict.fromkeys(commands)):
        console.print(f"{'Next: ' if number == 0 else '      '}{escape(command)}", soft_wrap=True)


def out_of(reports: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The gateways that the servers of a host have left and not joined again, and after how many minutes they do."""
    last = {str(report.get("service")): report for report in reports}
    return {
        name: math.ceil(int(report.get("rejoin") or 0) / 60)
        for name, report in last.items()
        if report.get("state") == "left" and not report.get("failed")
    }


def interrupted(console: Console, state: RunState, again: str) -> None:
    """Where things stand after Ctrl-C."""
    console.print("\n[bold]Interrupted.[/] Nothing of this run keeps working on the hosts; services stay as they are.")
    for host in state.hosts.values():
        detail = f" ({host.detail})" if host.detail else ""
        changes = f"{host.changed} change{'s' if host.changed != 1 else ''} made"
        console.print(f"  {escape(host.name)}: at {escape(host.step or 'connecting')}{escape(detail)}, {changes}")
        for gateway, minutes in sorted(out_of(host.results.get("gateway") or ()).items()):
            back = (
                f"it comes back by itself within {minutes} minutes once it serves, or" if minutes else "it comes back"
            )
            text = f"    its server is out of {gateway}: {back} with the next deploy"
            console.print(escape(text), soft_wrap=True)
    following([again], console)


def verified(console: Console, result: Verified) -> None:
    table = grid("host", "service", "check", "", "what was seen")
    for check in result.checks:
        mark = Text("ok", style="green") if check.ok else Text("failed", style="bold red")
        table.add_row(check.host, check.service or "-", check.name, mark, check.detail)
    if table.row_count:
        console.print(table)


def status(result: Status) -> Table:
    table = grid(
        "host",
        "service",
        "state",
        "release",
        "image",
        "uptime",
        "restarts",
        "run/queued",
        "tokens/s",
        "GPU memory",
        "endpoint",
    )
    for service in result.services:
        table.add_row(
            str(service["host"]),
            str(service["name"]),
            _state(service),
            str(service.get("release") or "-")[:12],
            str(service.get("image_digest") or "-").removeprefix("sha256:")[:12],
            _duration(service.get("uptime_seconds")),
            _number(service.get("restarts")),
            f"{_number(service.get('running'))}/{_number(service.get('queued'))}",
            _number(service.get("tokens_per_second")),
            _memory(service),
            _endpoint(service),
        )
    for failure in result.failures:
        label = "unreachable" if failure.exit_code is ExitCode.UNREACHABLE else "failed"
        table.add_row(failure.host, "-", Text(label, style="bold red"))
    return table


def _endpoint(service: Any) -> str:
    """Where it answers; a host that serves together with others says which of them it is."""
    endpoint = str(service.get("endpoint") or "-")
    return f"{endpoint} (rank {service['rank']} of {len(service['group'])})" if service.get("group") else endpoint


def gateways(result: Status) -> Table:
    """One line for each server behind each gateway."""
    table = grid("gateway", "on", "endpoint", "server", "state", "load")
    for gateway in result.gateways:
        first = [str(gateway["service"]), str(gateway["host"]), str(gateway.get("endpoint") or "-")]
        if gateway["workers"] is None:
            table.add_row(*first, "-", Text("does not answer", style="bold red"), "-")
        for row in gateway["workers"] or [{"url": "-", "state": "in", "healthy": False}]:
            well = row["healthy"] and row["state"] == "in"
            word = _WORKER.get(row["state"]) or ("healthy" if well else "not healthy")
            style = "green" if well else "yellow"
            table.add_row(*first, str(row["url"]), Text(word, style=style), _number(row.get("load")))
            first = ["", "", ""]
    return table


_WORKER = {"out": "out, being rolled", "drained": "drained", "lost": "not registered"}


def drift(console: Console, result: Status, target: Target) -> None:
    """What is not as the last deploy left it, or not as on the other hosts."""
    for item in result.drift:
        console.print(
            f"[yellow]Drift:[/] {escape(item.host)} {escape(item.service)}: {escape(item.what)}", soft_wrap=True
        )
    if result.drift:
        following([target.command("plan"), target.command("deploy")], console)


def _state(service: Any) -> Text:
    if service.get("drained"):
        return Text("drained" if service.get("healthy") else "drained, not healthy", style="yellow")
    if service.get("healthy"):
        return Text("healthy", style="green")
    state = str(service.get("state") or "unknown")
    return Text("not healthy" if state == "active" else state, style="bold red" if state == "failed" else "yellow")


def _memory(service: Any) -> str:
    rows = service.get("gpu_memory") or []
    if rows:
        return " ".join(f"{row['gpu']}:{row['used_mib'] / 1024:.0f}/{row['total_mib'] / 1024:.0f}G" for row in rows)
    return ",".join(map(str, service.get("gpus") or ())) or "-"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if isinstance(value, float) and value >= 10 else f"{value:g}"


def _duration(seconds: Any) -> str:
    """Two units are enough: 3d4h, 2h5m, 4m10s."""
    if seconds is None:
        return "-"
    rest = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def history(records: Iterable[RunRecord]) -> Table:
    table = grid("when", "verb", "who", "inventory", "hosts", "result", "duration", "run")
    for record in records:
        ending = "running or killed" if record.exit_code is None else ENDINGS.get(record.exit_code, "failed")
        table.add_row(
            record.started[:19].replace("T", " "),
            record.verb,
            record.who,
            " ".join(record.inventory),
            _number(record.hosts),
            Text(ending, style="" if record.exit_code == 0 else "yellow" if record.exit_code is None else "red"),
            f"{record.seconds:.1f} s" if record.seconds is not None else "-",
            record.run,
        )
    return table
