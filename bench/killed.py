"""The controller killed at an event of a roll-out, and the same command once more: what clients and hosts notice.

Killed is everything that the command has started, its connections included, as when the operator's machine goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from bench.faults import Fleet, Seen
from bench.process import BenchError
from bench.progress import Say


@dataclass
class Killed:
    """What one kill came to. `wrong` says in which way it was not as promised."""

    index: int
    event: str
    next_exit: int
    next_seconds: float
    next_touched: list[str]
    starts: dict[str, int]
    longest_out: float
    requests: int
    lost: int
    wrong: list[str] = field(default_factory=list)


def settle(fleet: Fleet, config: Path) -> None:
    """Bring the fleet to where a measurement begins. Raises BenchError."""
    done = fleet.deploy(config, "--soak", "0", "--batch", "100%", "--canary", "0")
    if done["exit_code"] or not all(seen.settled for seen in fleet.look().values()):
        raise BenchError(f"the fleet is not as it should be at the start: {done['run']}")


def sweep(fleet: Fleet, indices: Callable[[int], Sequence[int]], say: Say) -> Iterator[Killed]:
    """Kill a roll-out at each of the `indices`, given the number of events that an undisturbed one has."""
    numbers = count(int(time.time()))
    settle(fleet, fleet.release(f"{next(numbers)}"))
    whole = fleet.begin(fleet.release(f"{next(numbers)}"))
    events = sum(1 for _ in whole.events())
    if whole.result()["exit_code"]:
        raise BenchError(f"an undisturbed roll-out failed: {whole.folder}")
    chosen = indices(events)
    say(f"an undisturbed roll-out has {events} events; killed at {len(chosen)} of them")
    for index in chosen:
        killed = at(fleet, index, fleet.release(f"{next(numbers)}"))
        say(f"event {index}, {killed.event}: {', '.join(killed.wrong) or 'as promised'}")
        yield killed


def at(fleet: Fleet, index: int, config: Path) -> Killed:
    """Kill a roll-out at its event `index`, and run the same command again."""
    before = fleet.look()
    with fleet.asked() as (load, watch):
        deploy = fleet.begin(config)
        last: Mapping[str, Any] = {}
        for number, event in enumerate(deploy.events()):
            last = event
            if number >= index:
                break
        deploy.kill()
        began = time.monotonic()
        done = fleet.deploy(config)
        seconds = time.monotonic() - began
        time.sleep(1)
    after = fleet.look()
    rollout = done["rollout"] or {}
    killed = Killed(
        index=index,
        event=called(last),
        next_exit=done["exit_code"],
        next_seconds=round(seconds, 1),
        next_touched=[host for batch in rollout.get("batches") or [] for host in batch],
        starts={host: seen.starts - before[host].starts for host, seen in after.items()},
        longest_out=round(max(watch.longest.values(), default=0.0), 1),
        requests=len(load.answered),
        lost=len(load.lost),
    )
    killed.wrong = list(wrong(fleet, killed, after, load.lost))
    return killed


def wrong(fleet: Fleet, killed: Killed, after: Mapping[str, Seen], lost: Sequence[str]) -> Iterator[str]:
    """In which way this is not what was promised."""
    if killed.next_exit:
        yield f"the next run ended with {killed.next_exit}"
    if lost:
        yield f"{len(lost)} requests lost ({lost[0]})"
    for host, seen in after.items():
        if not seen.settled:
            yield f"{host} is {seen}"
    if len({seen.release for seen in after.values()}) > 1:
        yield "the fleet is split"
    twice = [host for host, starts in killed.starts.items() if starts > 1]
    if twice:
        yield f"started more than once: {', '.join(twice)}"
    if held := fleet.locked():
        yield f"still locked: {', '.join(held)}"


def called(event: Mapping[str, Any]) -> str:
    """An event in a few words: what, which task, where."""
    data = event.get("event_data") or {}
    what = str(event.get("event", "none")).removeprefix("runner_").removeprefix("playbook_")
    task = str(data.get("task") or data.get("play") or "").partition(" : ")[2] or data.get("task") or data.get("play")
    return " ".join(str(part) for part in (what, f"'{task}'" if task else "", data.get("host") or "") if part)


def report(rows: Sequence[Killed]) -> Iterator[str]:
    """The table of a sweep, and what it comes to."""
    yield f"{'event':>5}  {'which':72} next run  touched  starts  out of it  lost  wrong"
    for row in rows:
        starts = "+".join(str(starts) for starts in row.starts.values())
        yield (
            f"{row.index:5}  {row.event[:72]:72} {row.next_exit} {row.next_seconds:4.0f} s  {len(row.next_touched):7}"
            f"  {starts:>6}  {row.longest_out:7.1f} s  {row.lost:4}  {', '.join(row.wrong) or '-'}"
        )
    asked, lost = sum(row.requests for row in rows), sum(row.lost for row in rows)
    yield (
        f"killed at {len(rows)} events: {sum(1 for row in rows if row.wrong)} not as promised, {lost} of {asked} "
        f"requests lost, no server out of the gateway for more than "
        f"{max((row.longest_out for row in rows), default=0):.1f} s"
    )
