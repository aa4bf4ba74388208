"""A plan for people: hosts with the same plan are shown once, with the names of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from sglang_ops.commands._views import grid

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sglang_ops.planned import Host, Planned, Service

# What a step does, in the words of a person.
WORDS = {"engine": "prepare", "image": "pull", "model": "fetch", "kernels": "copy"}
# Why a host has no plan, where nothing refused it.
ENDS = {"connect": "not reached", "plan": "failed"}
# How far the size of the cache is to be trusted.
FIDELITY = {"exact": "", "at least": "at least ", "estimate": "about "}
NAMES_SHOWN = 8
GIB = 2**30
_NUMBERED = re.compile(r"^(.*?)(\d+)(\D*)$")
_DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def show(console: Console, result: Planned) -> None:
    """Every group of hosts: what will be done there and why, the services, their memory, their units' changes."""
    for alike in groups(result.hosts):
        _group(console, alike)
    console.print(summary(result))


def groups(hosts: Iterable[Host]) -> list[list[Host]]:
    """Hosts whose plans differ in nothing but the host's own name and address."""
    alike: dict[str, list[Host]] = {}
    for host in hosts:
        alike.setdefault(_plan_of(host), []).append(host)
    return list(alike.values())


def _plan_of(host: Host) -> str:
    own = {host.host, *(address(service) for service in host.services)}
    said = repr(astuple(host))
    for name in sorted(own, key=len, reverse=True):
        said = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "*", said)
    return said


def address(service: Service) -> str:
    """The host part of the endpoint, in brackets where it is IPv6."""
    return service.endpoint.partition("://")[2].rpartition(":")[0]


def spans(names: Sequence[str]) -> str:
    """`lab-1 … lab-8, other`: runs of numbered names as their first and last, and not more than a line can hold."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    parts = [part for run in runs for part in (run if len(run) < 3 else [f"{run[0]} … {run[-1]}"])]
    if len(parts) <= NAMES_SHOWN:
        return ", ".join(parts)
    return ", ".join(parts[:NAMES_SHOWN]) + ", …"


def _follows(first: str, second: str) -> bool:
    one, two = _NUMBERED.match(first), _NUMBERED.match(second)
    if not one or not two or one.group(1, 3) != two.group(1, 3):
        return False
    return str(int(one[2]) + 1).zfill(len(one[2])) == two[2]


def _group(console: Console, alike: Sequence[Host]) -> None:
    host = alike[0]
    count = f" ({len(alike)} hosts, all the same)" if len(alike) > 1 else ""
    console.print(f"[bold]{escape(spans([item.host for item in alike]))}[/]{count}", soft_wrap=True)
    for error in host.errors:
        label = ENDS.get(error.check, f"refused ({error.check})")
        console.print(f"  [bold red]{escape(label)}:[/] {escape(error.message)}", soft_wrap=True)
    if host.steps:
        table = grid("", "", "")
        table.show_header = False
        for step in host.steps:
            table.add_row(WORDS.get(step.step, step.step), step.subject, step.why)
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
    elif not host.errors:
        console.print("  nothing to do")
    for service in host.services:
        _service(console, service, endpoint=service.endpoint if len(alike) == 1 else f"port {service.port}")
    for warning in host.warnings:
        console.print(f"  [yellow]Warning:[/] {escape(warning)}", soft_wrap=True)
    console.print()


def _service(console: Console, service: Service, *, endpoint: str) -> None:
    gpus = f"GPU {','.join(map(str, service.gpus))}" if service.gpus else "no GPU"
    gpus += f" ({service.link})" if service.link else ""
    facts = [f"release {service.release}", gpus, endpoint, f"outage: {service.outage}"]
    console.print(f"  {escape(service.name)}: {escape(', '.join(facts))}", soft_wrap=True)
    if service.way:
        console.print(f"    {escape(f'changes by {service.way}: {service.way_why}')}", soft_wrap=True)
    if service.memory:
        console.print(Padding(_memory(service.memory), (0, 0, 0, 4), expand=False))
    for line in service.unit_diff.splitlines():
        console.print(Text(f"    {line}", style=_DIFF_STYLES.get(line[0], "") if line else ""), soft_wrap=True)


def _memory(memory: Mapping[str, Any]) -> Table:
    """Where the memory of each GPU goes: `sglang_ops.planning.fit.as_mapping` of its plan, in GiB."""
    table = grid("memory of each GPU", "GiB", "")
    table.columns[1].justify = "right"
    given = "as given" if memory["mem_fraction_given"] else "automatic"
    tokens, length = memory["tokens"], memory["context_length"]
    cached = f"{FIDELITY[memory['fidelity']]}{tokens:,} tokens: {_requests(tokens, length)} of {length:,} tokens"
    rows = [
        ("total", memory["gpu_total"], f"{memory['free_before'] / GIB:.1f} free when SGLang starts"),
        ("weights", memory["weights"], "" if memory["weights_known"] else "counted from the model's configuration"),
        ("KV cache", memory["kv_cache"], cached),
        *([("states of linear attention", memory["states"], "")] if memory["states"] else []),
        ("request table", memory["request_table"], f"{memory['max_running_requests']:,} requests at once at most"),
        ("left", memory["free_after"], f"--mem-fraction-static {memory['mem_fraction_static']:g} ({given})"),
    ]
    for label, count, note in rows:
        table.add_row(label, f"{count / GIB:.1f}", note)
    return table


def _requests(tokens: int, length: int) -> str:
    fitting = f"{tokens / length:.1f}"
    return "1 request" if fitting == "1.0" else f"{fitting} requests"


def summary(result: Planned) -> str:
    """How many hosts there are of each kind."""
    refused = sum(1 for host in result.hosts if host.errors)
    pending = sum(1 for host in result.hosts if host.steps)
    rest = len(result.hosts) - refused - pending
    counted = {"to change": pending, "unchanged": rest, "refused or not reached": refused}
    hosts = "1 host" if len(result.hosts) == 1 else f"{len(result.hosts)} hosts"
    return f"{hosts}: {', '.join(f'{count} {kind}' for kind, count in counted.items() if count)}."
