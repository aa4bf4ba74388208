"""python -m bench: bring up a lab, measure, print the table, write the JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bench import contenders, fleet, programs, report
from bench.contenders import Contender, Sample
from bench.figures import HELP, PASS, VALIDATE, Figures
from bench.process import BenchError, measure, measure_together
from bench.progress import Say, teller

RESULTS = Path(__file__).resolve().parent / "results"
STARTS = 10  # of each command whose start-up is measured
BUSY = 0.3  # processes that want to run, per core, before the bench begins



def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parse(arguments)
    console = Console(stderr=True, highlight=False)
    say = teller(console)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every `finally`, which removes the lab
    load = os.getloadavg()[0]
    if load > BUSY * (os.cpu_count() or 1):
        say(f"[yellow]this machine is busy (load {load:.1f}): the figures will be too high, and ratios may be off[/]")
    try:
        figures, about = measure_all(asked.hosts, asked.repetitions, say)
    except BenchError as error:
        console.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    path = asked.json or RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "load_before": load, **figures.as_dict()}, indent=2) + "\n")
    shape = f"{fleet.SHAPE['os']}, {fleet.SHAPE['engine']}, {fleet.SHAPE['server']}"
    title = f"{asked.hosts} lab hosts each ({shape}); median of {asked.repetitions}; {about['cpus']} cores"
    Console(width=None if sys.stdout.isatty() else 160).print(report.render(figures, title))
    say(f"written to {path}")
    return 0


def measure_all(hosts: int, repetitions: int, say: Say) -> tuple[Figures, dict[str, Any]]:
    """Everything, in one run on one machine. Raises BenchError."""
    cli, pyinfra = programs.find("sglang-ops"), programs.pyinfra()
    figures = Figures(hosts)
    with tempfile.TemporaryDirectory(prefix="sglang-ops-bench-") as folder, fleet.lab(cli, 3 * hosts + 1, say) as lab:
        spare, entered = _enter(lab, Path(folder), cli, pyinfra)
        try:
            say("warming up on a host of its own, so that nobody pays for cold caches")
            spare.deploy(first=True)
            _first_deploys(figures, entered, say)
            say("one round of no-ops that does not count")
            for contender in entered:
                contender.deploy(first=False)
            for number in range(repetitions):
                _noops(figures, entered[number % 3 :] + entered[: number % 3], say)
                figures.floor.append(_floor(lab, entered[0].hosts))
        finally:
            for contender in (spare, *entered):
                contender.disconnect()
        say("start-up of the command line")
        _startup(figures, cli, lab.deployment)
    return figures, _about(programs.versions(pyinfra))


def _enter(lab: fleet.Lab, scratch: Path, cli: str, pyinfra: str) -> tuple[Contender, list[Contender]]:
    """One contender for the first host, and the three to be measured, each with a third of the others."""
    extra = fleet.variables(lab)
    parts = [lab.hosts[:1], *fleet.slices(lab.hosts[1:], 3)]
    files = [fleet.write_inventory(scratch / f"inventory-{part[0]}.json", lab, part, extra) for part in parts]
    return contenders.pyinfra(pyinfra, files[0], parts[0], scratch), [
        contenders.ours(cli, files[1], lab.deployment, parts[1], scratch),
        contenders.plain_role(programs.find("ansible-playbook"), files[2], parts[2], scratch),
        contenders.pyinfra(pyinfra, files[3], parts[3], scratch),
    ]


def _first_deploys(figures: Figures, entered: Sequence[Contender], say: Say) -> None:
    for contender in entered:
        sample = contender.deploy(first=True)
        say(f"first deploy, {contender.name}: {report.seconds(sample.wall)}")
        figures.first.setdefault(contender.name, []).append(sample)


def _noops(figures: Figures, entered: Sequence[Contender], say: Say) -> None:
    """One round: the contenders take turns, so that whatever else the machine does hits all alike."""
    for contender in entered:
        fresh, connected = contender.deploy(first=False), contender.deploy(first=False, connected=True)
        say(f"no-op, {contender.name}: {report.seconds(fresh.wall)}, connected {report.seconds(connected.wall)}")
        figures.noop.setdefault(contender.name, []).append(fresh)
        figures.connected.setdefault(contender.name, []).append(connected)


def _floor(lab: fleet.Lab, hosts: Sequence[str]) -> Sample:
    """What no tool over SSH can beat: one connection to each host at the same time, and nothing done there."""
    run = measure_together([("ssh", "-F", str(lab.ssh_config), host, "true") for host in hosts])
    return Sample(run.wall, run.cpu, 1)


def _startup(figures: Figures, cli: str, deployment: Path) -> None:
    commands = {
        PASS: [sys.executable, "-c", "pass"],
        HELP: [cli, "--help"],
        VALIDATE: [cli, "validate", "--config", str(deployment)],
    }
    for _ in range(STARTS):
        for name, command in commands.items():
            figures.startup.setdefault(name, []).append(measure(command).wall)


def _about(versions: dict[str, str]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "lab": fleet.SHAPE,
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--hosts", type=int, default=8, metavar="N", help="hosts of each contender (default: 8)")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="no-op runs of each (default: 5)")
    parser.add_argument("--quick", action="store_true", help="two hosts, one repetition: does it work at all?")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the figures go (default: bench/results/)")
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.hosts, asked.repetitions = 2, 1
    if min(asked.hosts, asked.repetitions) < 1:
        parser.error("--hosts and --repetitions must be at least 1")
    return asked


if __name__ == "__main__":
    sys.exit(main())
