"""drain and undrain: the same course for both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_ops.commands import _common, _deployment, _views
from sglang_ops.events import RunState

Hosts = Annotated[str, typer.Argument(metavar="HOSTS", help="Pattern of hosts, for example one host's name.")]


def play(
    verb: str,
    target: _common.Target,
    context: typer.Context,
    *,
    config: Sequence[Path] | None,
    variables: Mapping[str, Any],
    json: bool,
) -> int:
    """Play `verb` on the hosts; show and keep what each gateway said."""
    with (
        _deployment.find(config, target.inventory, target.limit, {}) as found,
        _common.run_folder(verb, target) as folder,
    ):
        files = found.variables if found else {}  # without a file the hosts' own records tell
        played = _common.play(verb, target, folder, {**files, **variables}, quiet=json)
        result: dict[str, Any] = {
            "ok": played.exit_code == 0,
            "exit_code": int(played.exit_code),
            "hosts": list(_hosts(played.state)),
            "failures": [asdict(failure) | {"exit_code": int(failure.exit_code)} for failure in played.state.failures],
            "seconds": round(played.seconds, 2),
            "run": str(folder.path),
        }
        _common.keep(folder, result, hosts=len(played.state.hosts), seconds=played.seconds)
        err = _common.stderr()
        if json:
            _common.print_json(result)
        elif not played.interrupted:
            _show(verb, result["hosts"])
        if played.interrupted:
            _views.interrupted(err, played.state, _common.again(context))
        else:
            _views.failures(err, played.state.failures, folder, target, _common.again(context))
        return played.exit_code


def _hosts(state: RunState) -> Iterator[dict[str, Any]]:
    for host in state.hosts.values():
        told = host.results.get("gateway", ())
        yield {
            "host": host.name,
            "changed": host.changed,
            "gateways": [{"service": item["service"], "workers": item["workers"]} for item in told],
            "warnings": [text for item in told for text in item.get("warnings") or ()],
            "seconds": round(host.seconds, 2),
        }


def _show(verb: str, hosts: Sequence[Mapping[str, Any]]) -> None:
    table = _views.grid("host", "result", "gateway", "servers left")
    word = {"drain": "drained", "undrain": "in use"}[verb]
    for host in hosts:
        for number, item in enumerate(host["gateways"] or [{"service": "-", "workers": []}]):
            count = str(sum(1 for worker in item["workers"] if worker["healthy"])) if item["workers"] else "-"
            table.add_row(*(("", "") if number else (host["host"], word)), item["service"], count)
    _common.stdout().print(table)
    for text in dict.fromkeys(text for host in hosts for text in host["warnings"]):
        _common.stdout().print(f"[yellow]Warning:[/] {text}")
