"""The figures as tables for a terminal."""

from __future__ import annotations

from statistics import median

from rich.console import Group
from rich.table import Table

from bench.contenders import OURS, PLAIN, PYINFRA
from bench.figures import PASS, Figures, Median


def render(figures: Figures, title: str) -> Group:
    return Group(_deploys(figures, title), "", _startup(figures), "", _targets(figures))


def _deploys(figures: Figures, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("")
    for heading in ("first deploy", "no-op", "÷ plain role", "÷ pyinfra", "no-op, connected"):
        table.add_column(heading, justify="right")
    table.add_column("controller CPU per host\nfirst / no-op", justify="right")
    table.add_column("executions per host\nfirst / no-op", justify="right")
    floor = Median.of(figures.floor, figures.hosts)
    table.add_row("ssh HOST true", "", seconds(floor.wall), "", "", "", f"– / {seconds(floor.cpu_per_host)}", "– / 1")
    table.add_section()
    for name in (OURS, PLAIN, PYINFRA):
        first, noop = figures.median(figures.first, name), figures.median(figures.noop, name)
        table.add_row(
            name,
            seconds(first.wall),
            seconds(noop.wall),
            f"{figures.ratio(figures.noop, name, PLAIN):.2f}",
            f"{figures.ratio(figures.noop, name, PYINFRA):.2f}",
            seconds(figures.median(figures.connected, name).wall),
            f"{seconds(first.cpu_per_host)} / {seconds(noop.cpu_per_host)}",
            f"{first.executions} / {noop.executions}",
        )
    return table


def _startup(figures: Figures) -> Table:
    table = Table(title="Start-up", title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("median", "best", f"× {PASS}"):
        table.add_column(heading, justify="right")
    base = median(figures.startup[PASS])
    for name, walls in figures.startup.items():
        table.add_row(name, seconds(median(walls)), seconds(min(walls)), f"{median(walls) / base:.1f}")
    return table


def _targets(figures: Figures) -> Table:
    table = Table(title="Targets, for eight hosts", title_justify="left", title_style="bold")
    for heading in ("", "measured", "at most", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for target in figures.targets():
        verdict = "[green]reached[/]" if target.reached else "[red]missed[/]"
        table.add_row(target.name, f"{target.value:.3f}", f"{target.limit:.2f}", verdict)
    return table


def seconds(value: float) -> str:
    """Seconds with as many digits as they deserve."""
    return f"{value:.0f} s" if value >= 100 else f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"
