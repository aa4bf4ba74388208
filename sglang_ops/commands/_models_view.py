"""Models of hosts for people."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.text import Text

from sglang_ops.commands._views import grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from sglang_ops.held import Cached, Pulled


def pulled(console: Console, result: Pulled) -> None:
    """One line for each model of each host, and what else was brought."""
    table = grid("host", "model", "revision", "result", "size", "from")
    for host in result.run.hosts:
        models = result.models.get(host.host, ())
        for model in models:
            word = "to fetch" if result.run.check else "failed" if host.failure else "fetched"
            style = "red" if word == "failed" else "green"
            shown = Text(word, style=style) if model.fetched else Text("unchanged")
            came = (model.origin or "the cache") if word == "fetched" and model.fetched else "-"
            table.add_row(host.host, model.repo, model.commit[:12] or "-", shown, size(model.bytes), came)
        for item in host.kernels:
            copied = Text("copied", style="green")
            table.add_row(host.host, f"kernels {item['key']}", "-", copied, size(item["bytes"]), item["giver"])
        if not models:
            table.add_row(host.host, "-", "-", Text("failed", style="red") if host.failure else "-", "-", "-")
    console.print(table)


def listed(console: Console, result: Cached) -> None:
    """One line for each revision of each model, and what downloads have left."""
    table = grid("host", "model", "revision", "size", "state", "used by", "last used")
    for host in result.hosts:
        for model in host.models:
            for row in model["revisions"]:
                name = " ".join([str(row["commit"])[:12], *row["refs"]])
                used = " ".join(row["used_by"]) or "-"
                table.add_row(
                    host.host, model["repo"], name, size(row["bytes"]), _state(model, row), used, day(row["last_used"])
                )
            if model["left_bytes"]:
                left = Text("left by downloads", style="yellow")
                table.add_row(host.host, model["repo"], "-", size(model["left_bytes"]), left, "-", "-")
        if not host.models and not host.failure:
            table.add_row(host.host, "-", "-", "-", "empty", "-", "-")
    console.print(table)


def _state(model: Mapping[str, Any], row: Mapping[str, Any]) -> Text:
    if row["complete"]:
        return Text("whole", style="green")
    if model["under_way"]:
        return Text("under way", style="yellow")
    return Text(f"{size(row['missing'])} missing" if row["missing"] else "not whole", style="red")


def verified(console: Console, result: Cached) -> None:
    """The bad files, and for every host how much was read."""
    table = grid("host", "model", "file", "what is wrong")
    for host in result.hosts:
        for file in host.bad:
            table.add_row(host.host, file["repo"], " ".join(file["files"]), Text(file["why"], style="red"))
    if table.row_count:
        console.print(table)
    for host in result.hosts:
        if host.failure and not host.bad:
            continue
        models = f"{len(host.models)} model{'s' if len(host.models) != 1 else ''}"
        bad = f"{len(host.bad)} file{'s' if len(host.bad) != 1 else ''} wrong" if host.bad else "all right"
        would = ", which --repair would delete" if host.bad and result.check and not host.failure else ""
        done = ", deleted" if host.repaired else would
        console.print(f"{escape(host.host)}: {models}, {size(host.checked_bytes)} read, {bad}{done}.")
        if host.unnamed:
            shown = ", ".join(host.unnamed[:3]) + (", …" if len(host.unnamed) > 3 else "")
            console.print(f"  {len(host.unnamed)} without a checksum, not looked at: {escape(shown)}", soft_wrap=True)


def pruned(console: Console, result: Cached) -> None:
    """What was removed, or would be."""
    table = grid("host", "model", "revision", "would free" if result.check else "freed")
    for host in result.hosts:
        for item in host.removed if not host.failure else ():
            revisions = " ".join(commit[:12] for commit in item["commits"]) or "left by downloads"
            table.add_row(host.host, item["repo"], revisions, size(item["bytes"]))
    if table.row_count:
        console.print(table)
    freed = sum(host.freed_bytes for host in result.hosts if not host.failure)
    if result.ok and not table.row_count:
        console.print("Nothing to remove: a deployed service uses each model, or the deployment file names it.")
    elif table.row_count > 1:
        console.print(f"{size(freed)} in all.")


def size(count: Any) -> str:
    """Bytes in decimal units, as sglang_host_command.size: 14.9 GB."""
    value = float(count or 0)
    for unit, scale, digits in (("GB", 1e9, 1), ("MB", 1e6, 0), ("kB", 1e3, 0)):
        if value >= scale:
            return f"{value / scale:.{digits}f} {unit}"
    return f"{value:.0f} bytes" if value else "-"


def day(seconds: Any) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d}" if seconds else "-"
