"""sglang-ops logs"""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer

from sglang_ops.commands import _common, _options, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode
from sglang_ops.logged import log_lines

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on printing new lines until Ctrl-C.")]
Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="TIME", help="Only lines since then: '10m', '2h', '2026-11-22 10:00'.", show_default=False
    ),
]
Lines = Annotated[
    int, typer.Option("--lines", "-n", metavar="N", min=0, help="Last lines of each service to begin with.")
]
Forks = Annotated[
    int | None,
    typer.Option(
        "--forks", metavar="N", min=1, help="Hosts worked on at a time. Default: 25.", rich_help_panel=_options.ANSIBLE
    ),
]


_SPAN = re.compile(r"^(\d+(s|m|min|h|d|w))+$")


def logs(
    context: typer.Context,
    inventory: _options.Inventory,
    service: _options.ServiceName = None,
    follow: Follow = False,
    since: Since = None,
    lines: Lines = 100,
    limit: _options.Limit = None,
    forks: Forks = None,
    verbose: _options.Verbose = 0,
    ask_become_pass: _options.AskBecomePass = False,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Print the logs of the services of all hosts, in the order in which they were written."""
    target = _common.Target.of(inventory, limit, forks=forks, verbose=verbose, ask_become_pass=ask_become_pass)
    json = output is Output.JSON
    variables = {
        **_common.only(service),
        "sglang_health_logs_follow": follow,
        "sglang_health_logs_since": _since(since),
        "sglang_health_logs_lines": lines,
    }

    def on_line(line: Mapping[str, Any]) -> None:
        typer.echo(jsonlib.dumps(dict(line), ensure_ascii=False) if json else _format(line))

    with _common.run_folder("logs", target) as folder:
        played = _common.play("logs", target, folder, variables, quiet=True, on_line=on_line if follow else None)
        code = played.exit_code
        _common.keep(folder, {"exit_code": code}, hosts=len(played.state.hosts), seconds=played.seconds)
        if not follow:
            found = [asdict(line) for line in log_lines(played.state)]
            if json:
                _common.print_json({"ok": code is ExitCode.DONE, "exit_code": int(code), "lines": found})
            else:
                for line in found:
                    typer.echo(_format(line))
        _views.failures(_common.stderr(), played.state.failures, folder, target, _common.again(context))
        return code


def _since(text: str | None) -> str:
    """What journalctl understands: it wants a minus before a time span (10m, 2h30m, 1d)."""
    return f"-{text}" if text and _SPAN.match(text) else text or ""


def _format(line: Mapping[str, Any]) -> str:
    """`host service time text`: the time in the reader's own zone."""
    try:
        time = f"{datetime.fromisoformat(str(line['time'])).astimezone():%m-%d %H:%M:%S}"
    except ValueError:
        time = str(line["time"])
    return f"{line['host']} {line['service']} {time} {line['text']}"
