"""Findings for people: hosts with the same ones are shown once, with the names of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.markup import escape

from sglang_ops.commands._plan_view import spans

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_ops.diagnosed import Diagnosed, Host, Problem


def show(console: Console, result: Diagnosed) -> None:
    """A line for each group of hosts, below it what is wrong or worth knowing, and at the end how many are fit."""
    for alike in groups(result.hosts):
        host = alike[0]
        verdict = "[green]fit[/]" if host.ok else "[bold red]not fit[/]"
        console.print(f"[bold]{escape(spans([item.host for item in alike]))}[/]  {verdict}", soft_wrap=True)
        for problem in host.problems:
            _finding(console, problem, "red")
        for warning in host.warnings:
            _finding(console, warning, "yellow", "warning: ")
    console.print(summary(result))


def groups(hosts: Iterable[Host]) -> list[list[Host]]:
    """Hosts of which the same is to be said."""
    alike: dict[object, list[Host]] = {}
    for host in hosts:
        alike.setdefault((host.problems, host.warnings), []).append(host)
    return list(alike.values())


def _finding(console: Console, found: Problem, style: str, word: str = "") -> None:
    console.print(f"  [{style}]{word}{escape(found.check)}[/]  {escape(found.detail)}", soft_wrap=True)
    console.print(f"    fix: {escape(found.remedy)}", soft_wrap=True)


def summary(result: Diagnosed) -> str:
    fit = sum(1 for host in result.hosts if host.ok)
    problems = sum(len(host.problems) for host in result.hosts)
    hosts = "1 host" if len(result.hosts) == 1 else f"{len(result.hosts)} hosts"
    told = f", {problems} problem{'s' if problems != 1 else ''}" if problems else ""
    return f"{hosts}: {fit} fit, {len(result.hosts) - fit} not fit{told}."
