"""python -m bench.size: what a fleet of many hosts costs the machine that deploys to it.

Lab hosts with the simulator of SGLang. A first release goes to all of them at once, a second one through them in
batches, a third command finds nothing to do. For each: seconds, the controller's CPU seconds per host, its memory at
the worst moment (Ansible's workers and ssh included, pages that they share counted once), executions per host.
Compare two numbers of hosts to see whether anything grows faster than they do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile

import yaml
from rich.console import Console
from rich.markup import escape

from bench import fleet, process, programs
from bench.process import BenchError
from bench.progress import teller
from sglang_ops import processes

LOOK_SECONDS = 0.5
FLAGS = ("--soak", "3", "--start-timeout", "300")


@dataclass(frozen=True)
class Cost:
    """One deploy. `cpu_per_host` in seconds, memory in MiB."""

    hosts: int
    exit_code: int
    result: str
    batches: tuple[int, ...]
    seconds: float
    cpu_per_host: float
    peak_mib: float
    mib_per_host: float
    executions: int


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parse(arguments)
    console = Console(stderr=True, highlight=False)
    say = teller(console)

    found: dict[str, Cost] = {}
    load = os.getloadavg()[0]
    try:
        cli = programs.find("sglang-ops")
        with fleet.lab(cli, asked.hosts, say) as lab:
            for name, release in (("first deploy", "first"), ("roll-out", "second"), ("nothing to do", "second")):
                words = ["--batch", asked.batch] if release == "second" else []
                found[name] = deploy(cli, lab, release, words)
                say(f"{name}: {found[name].result}, {found[name].seconds:.0f} s")
    except BenchError as error:
        console.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    if asked.json:
        figures = {"hosts": asked.hosts, "cpus": os.cpu_count(), "load_before": load}
        asked.json.write_text(json.dumps(figures | {name: asdict(cost) for name, cost in found.items()}, indent=2))
    for line in report(found):
        print(line)
    return int(any(cost.exit_code for cost in found.values()))


def deploy(cli: str, lab: fleet.Lab, release: str, words: Sequence[str]) -> Cost:
    """Deploy a release of that name, and what it cost. Raises BenchError where it printed no result."""
    data = yaml.safe_load(lab.deployment.read_text())
    data["deployment"]["env_vars"] = {"RELEASE": release, "SGLANG_SIMULATOR_DRAIN_POLL": "0.2"}
    config = lab.deployment.parent / "bench-size.yaml"
    config.write_text(yaml.safe_dump(data))
    command = [cli, "deploy", "-i", str(lab.inventory), "-c", str(config), "--yes", "--output", "json", *FLAGS, *words]
    code, output, cpu, peak = watched(command)
    try:
        told = json.loads(output)
    except ValueError as error:
        raise BenchError(f"{' '.join(command)} ended with {code}") from error
    rollout = told["rollout"] or {"result": "nothing", "batches": []}
    hosts = len(lab.hosts)
    sizes = tuple(map(len, rollout["batches"]))
    executions = max((host["module_executions"] for host in told["hosts"]), default=0)
    per_host = round(peak / hosts, 1)
    result = str(rollout["result"])
    seconds = float(told["seconds"])
    return Cost(hosts, code, result, sizes, seconds, round(cpu / hosts, 2), round(peak, 1), per_host, executions)


def watched(command: Sequence[str]) -> tuple[int, str, float, float]:
    """(exit code, stdout, CPU seconds, MiB at the worst moment) of a command with everything that it starts."""
    mark = f"size-{os.getpid()}"
    before = process.background(mark)
    with TemporaryFile() as out:
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, env=os.environ | {process.MARK: mark})
        peak, status, usage = 0.0, 0, None
        while True:
            pid, status, usage = os.wait4(started.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, memory(started.pid))
            time.sleep(LOOK_SECONDS)
        started.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        output = out.read().decode(errors="replace")
    cpu = usage.ru_utime + usage.ru_stime
    cpu += sum(used - before.get(pid, 0.0) for pid, used in process.background(mark).items())
    return started.returncode, output, cpu, peak


def memory(leader: int) -> float:
    """MiB that a process and everything below it have in memory, what they share counted once (PSS)."""
    total = 0
    for pid in processes.tree([leader]):
        try:
            rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
    return total / 1024


def report(found: dict[str, Cost]) -> Iterator[str]:
    heads = ("", "result", "batches", "seconds", "CPU s per host", "MiB in all", "MiB per host", "executions per host")
    widths = (15, 9, 18, 9, 16, 12, 14, 20)
    yield "".join(f"{head:{'<' if place < 3 else '>'}{width}}" for place, (head, width) in enumerate(
        zip(heads, widths, strict=True)))  # fmt: skip
    for name, cost in found.items():
        sizes = ", ".join(map(str, cost.batches)) or "-"
        figures = (f"{cost.seconds:.0f}", cost.cpu_per_host, cost.peak_mib, cost.mib_per_host, cost.executions)
        cells = [f"{text:<{width}}" for text, width in zip((name, cost.result, sizes), widths[:3], strict=True)]
        yield "".join(cells + [f"{value:>{width}}" for value, width in zip(figures, widths[3:], strict=True)])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.size", description=__doc__)
    parser.add_argument("--hosts", type=int, default=40, help="lab hosts (default: 40; each takes some 200 MiB)")
    parser.add_argument("--batch", default="25%", help="hosts at a time after the canary (default: 25%%)")
    parser.add_argument("--json", type=Path, help="where the figures go")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
