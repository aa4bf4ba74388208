"""What provision did, for people: hosts that went the same way are shown once, with the names of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text

from sglang_ops.commands import _views
from sglang_ops.commands._plan_view import spans

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_ops.provisioned import Host, Provisioned


def show(console: Console, result: Provisioned) -> None:
    """A line for each part of a group of hosts; below it what is worth knowing, and who still waits for a reboot."""
    table = _views.grid("host", "part", "result", "detail")
    alike: dict[object, list[Host]] = {}
    for host in result.hosts:
        key = (host.parts, host.reboot, host.failure is None)
        alike.setdefault(key, []).append(host)
    for hosts in alike.values():
        names = spans([host.host for host in hosts])
        for part in hosts[0].parts:
            table.add_row(names, part.name, _word(part.changed, check=result.check), escape(part.detail))
        if hosts[0].reboot:
            done = hosts[0].reboot == "done"
            word = Text("rebooted", style="green") if done else Text("needed", style="yellow")
            table.add_row(names, "reboot", word, "" if done else escape(hosts[0].reboot))
    if table.row_count:
        console.print(table)
    for hosts in alike.values():
        for text in dict.fromkeys(text for part in hosts[0].parts for text in part.warnings):
            console.print(f"[yellow]Warning:[/] {escape(spans([host.host for host in hosts]))}: {escape(text)}")
    if result.ok and result.check and not result.pending:
        count = len(result.hosts)
        console.print(f"Nothing to do: {count} host{' is' if count == 1 else 's are'} ready.")


def _word(changed: bool, *, check: bool) -> Text:
    if not changed:
        return Text("as it should be")
    return Text("would change" if check else "changed", style="green")
