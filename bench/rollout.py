"""python -m bench.rollout: what bad releases reach, and what clients notice of a good one, of kills and of faults.

A lab of hosts with the simulator of SGLang, which can be given faults, behind SGLang's router; clients ask through it
all the time. One bad release after the other is deployed over a good one, then a good one goes through all hosts.
With `--killed` the controller is killed at every event of a roll-out instead; with `--matrix` every step of a change is
disturbed in every way. All print a table, with what was not as promised in its last column.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bench import bad, faults, killed, matrix
from bench.gateway import Load
from bench.process import BenchError
from bench.progress import Say, teller

RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parse(arguments)
    console = Console(stderr=True, highlight=False)
    tell = teller(console)

    def say(text: str) -> None:
        tell(escape(text))

    figures: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "hosts": asked.hosts,
    }
    path = asked.json or RESULTS / f"rollout-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Any]] = {}
    try:
        with faults.fleet(asked.lab, asked.hosts, say) as fleet:
            for name, rows in _measured(fleet, asked, say):
                for row in rows:
                    found.setdefault(name, []).append(row)
                    told = {kind: [asdict(each) for each in those] for kind, those in found.items()}
                    path.write_text(json.dumps({**figures, **told}, indent=2) + "\n")
            if asked.matrix is None and asked.killed is None:
                figures["good"] = good(fleet, asked, say)
                path.write_text(json.dumps({**json.loads(path.read_text()), **figures}, indent=2) + "\n")
    except BenchError as error:
        console.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    finally:
        for line in report(found, figures.get("good")):
            print(line)
    say(f"written to {path}")
    return int(any(row.wrong for rows in found.values() for row in rows))


def _measured(fleet: faults.Fleet, asked: argparse.Namespace, say: Say) -> Iterator[tuple[str, Iterable[Any]]]:
    if asked.matrix is not None:
        yield "matrix", matrix.run(fleet, asked.matrix, asked.lab, say)
    elif asked.killed is not None:

        def indices(events: int) -> list[int]:
            return asked.killed or list(islice(range(asked.first, events), None, None, asked.every))

        yield "killed", killed.sweep(fleet, indices, say)
    elif asked.faults:
        yield "bad", bad.run(fleet, asked.bad, say)


def good(fleet: faults.Fleet, asked: argparse.Namespace, say: Say) -> dict[str, Any]:
    """A good release through all hosts under load."""
    killed.settle(fleet, fleet.release("first"))
    say(f"a good release through {len(fleet.hosts)} hosts")
    load = Load(fleet.endpoint, asked.clients)
    load.start()
    try:
        done = fleet.deploy(fleet.release(f"{time.time()}"), "--batch", asked.batch)
        while len(load.answered) < asked.requests:
            time.sleep(0.2)
    finally:
        load.stop()
    rollout = done["rollout"] or {}
    return {
        "exit_code": done["exit_code"],
        "result": rollout.get("result", "-"),
        "seconds": done["seconds"],
        "batches": rollout.get("batches") or [],
        "requests": len(load.answered),
        "streamed": sum(streamed for _, _, streamed in load.answered),
        "lost": len(load.lost),
        "errors": sorted(set(load.lost))[:5],
        "usual_seconds": round(load.usual(), 3),
        "longest_seconds": round(load.longest(), 2),
    }


def report(found: Mapping[str, Sequence[Any]], rolled: Mapping[str, Any] | None) -> Iterator[str]:
    for name, rows in found.items():
        yield from {"matrix": matrix.report, "killed": killed.report, "bad": bad.report}[name](rows)  # type: ignore[operator]
    if rolled:
        sizes = ", ".join(str(len(batch)) for batch in rolled["batches"])
        yield (
            f"a good release: {rolled['result']} in {rolled['seconds']:.0f} s, in batches of {sizes}; "
            f"{rolled['requests']} requests, {rolled['streamed']} of them streamed, {rolled['lost']} lost, usually "
            f"{rolled['usual_seconds']} s, the longest {rolled['longest_seconds']} s"
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description=__doc__)
    parser.add_argument("--lab", default="bench", help="the lab's name; one that is up already is used and stays")
    parser.add_argument("--hosts", type=int, default=3, help="hosts of a lab that is not up yet (default: 3)")
    parser.add_argument("--batch", default="25%", help="hosts at a time of the good release (default: 25%%)")
    parser.add_argument("--bad", nargs="*", default=[], metavar="WORDS", help="only the bad releases with these words")
    parser.add_argument("--no-faults", dest="faults", action="store_false", help="only the good release")
    parser.add_argument("--clients", type=int, default=8, help="clients of the good release (default: 8)")
    parser.add_argument("--requests", type=int, default=10_000, help="requests at least (default: 10000)")
    parser.add_argument("--killed", nargs="*", type=int, metavar="EVENT", help="kill at these events, at all for none")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="with --killed: only every Nth event")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="with --killed: begin with the Nth event")
    cells = "step/fault, a step, or /fault; all for none"
    parser.add_argument("--matrix", nargs="*", metavar="CELL", help=f"disturb every step in every way: {cells}")
    parser.add_argument("--json", type=Path, help="where the figures go (default: bench/results/)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
