"""python -m bench.rollout: what bad releases reach, how soon they are noticed, and what a good one costs a fleet.

Lab hosts with the simulator of SGLang, which can be given faults. One bad release after the other is deployed over a
good one: how many hosts it changed, how long after its start it was noticed, how long after that the old release served
again. Then a good release goes through the same fleet. With `--gateway`, clients ask through the lab's gateway
meanwhile, and what they lose is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from bench import fleet, programs
from bench.gateway import Load
from bench.process import BenchError

RESULTS = Path(__file__).resolve().parent / "results"
SOAK, START_TIMEOUT, CRASH_AFTER = 6, 12, 2
# By name: the simulator's fault. What it is told of the times is in the flags below.
FAULTS = {
    "crashes at start": "crash-at-start",
    "exits 0": "exit-zero",
    "never healthy": "never-healthy",
    "answers garbage": "garbage",
    "names another model": "wrong-model",
    "dies in the soak": f"crash-after:{CRASH_AFTER}",
}
FLAGS = ("--soak", str(SOAK), "--start-timeout", str(START_TIMEOUT))


@dataclass
class Roll:
    """One roll-out. Times in seconds; `noticed` counts from the start of the server, `back` from then on."""

    exit_code: int
    result: str
    batches: list[list[str]]
    changed: int
    seconds: float
    noticed: float | None = None
    back: float | None = None
    start: float | None = None  # what the old release took the last time it started
    clients: dict[str, Any] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parse(arguments)
    console = Console(stderr=True, highlight=False)
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.0f} s[/]  {text}", soft_wrap=True)

    load = os.getloadavg()[0]
    try:
        cli = programs.find("sglang-ops")
        with fleet.lab(cli, asked.hosts, say, gateway=asked.gateway) as lab:
            bad, good = measured(cli, lab, asked, say)
    except BenchError as error:
        console.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    figures = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "load_before": load,
        "hosts": asked.hosts,
        "batch": asked.batch,
        "bad": {name: asdict(roll) for name, roll in bad.items()},
        "good": asdict(good),
        "controller": controller(asked.hosts),
    }
    path = asked.json or RESULTS / f"rollout-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")
    for line in report(bad, good, figures["controller"]):
        print(line)
    say(f"written to {path}")
    return 0


def measured(
    cli: str, lab: fleet.Lab, asked: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Roll], Roll]:
    """Every bad release over a good one, then a good one, under load where there is a gateway."""
    say("the first release, on all hosts at once")
    rolled(cli, lab, release(lab, "first"), asked)
    bad = {}
    for name, fault in FAULTS.items() if asked.faults else ():
        bad[name] = rolled(cli, lab, release(lab, name, fault), asked)
        say(f"a release that {name}: {bad[name].changed} changed, exit {bad[name].exit_code}")
    say(f"a good release through {asked.hosts} hosts")
    if not asked.gateway:
        return bad, rolled(cli, lab, release(lab, "second"), asked)
    load = Load(lab.gateway, asked.clients)
    load.start()
    try:
        good = rolled(cli, lab, release(lab, "second"), asked)
        while len(load.answered) < asked.requests:
            time.sleep(0.2)
    finally:
        load.stop()
    good.clients = {
        "requests": len(load.answered),
        "streamed": sum(streamed for _, _, streamed in load.answered),
        "lost": len(load.lost),
        "errors": sorted(set(load.lost))[:5],
        "usual_seconds": round(load.usual(), 3),
        "longest_seconds": round(load.longest(), 2),
    }
    return bad, good


def release(lab: fleet.Lab, name: str, fault: str = "") -> Path:
    """A deployment file whose release is another one by its name."""
    data = yaml.safe_load(lab.deployment.read_text())
    variables = {"RELEASE": name, "SGLANG_SIMULATOR_DRAIN_POLL": "0.2"}
    data["deployment"]["env_vars"] = variables | ({"SGLANG_SIMULATOR_FAULT": fault} if fault else {})
    path = lab.deployment.parent / "bench-rollout.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def rolled(cli: str, lab: fleet.Lab, config: Path, asked: argparse.Namespace) -> Roll:
    """Deploy, and what its run folder tells of it."""
    words = [cli, "deploy", "-i", str(lab.inventory), "-c", str(config), "--yes", "--output", "json", *FLAGS]
    words += ["--batch", asked.batch] if asked.batch and "first" not in config.read_text() else []
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout)
        rollout = told["rollout"] or {}
    except (ValueError, KeyError) as error:
        raise BenchError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}") from error
    batches = rollout.get("batches") or []
    roll = Roll(told["exit_code"], rollout.get("result", "none"), batches, sum(map(len, batches)), told["seconds"])
    failed = next((host["host"] for host in told["hosts"] if host.get("failure")), None)
    if failed:
        roll.noticed, roll.back, roll.start = moments(Path(told["run"]) / "events.ndjson", failed)
    return roll


def moments(events: Path, host: str) -> tuple[float | None, float | None, float | None]:
    """(from the server's start until it was found bad, from then until the old one served, its own start).

    The times of events are the controller's.
    """
    started = noticed = back = restarted = None
    for action, event, at in _of(events, host):
        if action == "sglang_service" and event == "runner_on_ok":
            started, restarted = (at, restarted) if noticed is None else (started, at)
        elif action == "sglang_gate" and event == "runner_on_failed":
            noticed, back = (at, back) if noticed is None else (noticed, at)
    return _between(started, noticed), _between(noticed, back), _between(restarted, back)


def _of(events: Path, host: str) -> Iterator[tuple[str, str, float]]:
    for line in events.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        data: Mapping[str, Any] = event.get("event_data") or {}
        if data.get("host") == host and event.get("created"):
            action = str(data.get("resolved_action") or data.get("task_action") or "").rpartition(".")[2]
            yield action, str(event["event"]), datetime.fromisoformat(event["created"]).timestamp()


def _between(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else round(second - first, 1)


def controller(hosts: int) -> dict[str, float]:
    """What all runs together cost this machine: CPU seconds and peak memory (MiB) of the commands, by host."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_seconds_per_host": round((used.ru_utime + used.ru_stime) / hosts, 2),
        "peak_mib_of_one_process": round(used.ru_maxrss / 1024, 1),
    }


def report(bad: Mapping[str, Roll], good: Roll, cost: Mapping[str, float]) -> Iterator[str]:
    if bad:
        yield f"{'a release that':22} exit  hosts changed  noticed after  old one serves after  of which its start"
    for name, roll in bad.items():
        times = "".join(f"{'-' if value is None else f'{value:.1f} s':>{width}}" for value, width in zip(
            (roll.noticed, roll.back, roll.start), (15, 22, 20), strict=True))  # fmt: skip
        yield f"{name:22} {roll.exit_code:4}  {roll.changed:13}{times}"
    sizes = ", ".join(str(len(batch)) for batch in good.batches)
    yield f"a good release: {good.result} in {good.seconds:.0f} s, in batches of {sizes}"
    if good.clients:
        yield "clients: " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in good.clients.items())
    yield "controller: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in cost.items())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description=__doc__)
    parser.add_argument("--hosts", type=int, default=4, help="lab hosts (default: 4)")
    parser.add_argument("--batch", default="25%", help="hosts at a time after the canary (default: 25%%)")
    parser.add_argument("--no-faults", dest="faults", action="store_false", help="only the good release")
    parser.add_argument("--gateway", action="store_true", help="with a gateway, and clients that ask through it")
    parser.add_argument("--clients", type=int, default=8, help="clients that ask at a time (default: 8)")
    parser.add_argument("--requests", type=int, default=10_000, help="requests at least (default: 10000)")
    parser.add_argument("--json", type=Path, help="where the figures go (default: bench/results/)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
