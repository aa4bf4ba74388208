"""Bad releases over a good one, behind a gateway: which hosts they reach, how soon they are noticed and undone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from bench.faults import SERVICE, Fleet, Seen
from bench.killed import settle

SOAK, START_TIMEOUT, CRASH_AFTER, PROBE = 6, 12, 2, 10  # seconds; a probe's longest question but the completion
FLAGS = ("--soak", str(SOAK), "--start-timeout", str(START_TIMEOUT), "--batch", "1")
STOP = 5  # where the start itself fails, what the old one takes to stop counts as well
BACK_SECONDS = 10  # in which the old release serves again, beside its own start
DROP_IN = f"/etc/systemd/system/{SERVICE}.service.d"


@dataclass(frozen=True)
class Bad:
    """A bad release: the simulator's fault, or the place of a host on which alone it does not start.

    `notice` is in how many seconds from its start it is to be noticed, `reaches` how many hosts it changes.
    """

    name: str
    notice: float
    fault: str = ""
    only_on: int | None = None
    flags: tuple[str, ...] = ()
    exit_code: int = 3
    reaches: int = 1


RELEASES = (
    Bad("crashes at start", 5, "crash-at-start"),
    Bad("exits 0", 5, "exit-zero"),
    Bad("never gets healthy", START_TIMEOUT + PROBE, "never-healthy"),
    Bad("answers garbage", PROBE, "garbage"),
    Bad("names another model", PROBE, "wrong-model"),
    Bad("dies in the soak", SOAK + 5, f"crash-after:{CRASH_AFTER}"),
    Bad("fails on the second host", 5 + STOP, only_on=1, reaches=2),
    Bad("the same, one may fail", 5 + STOP, only_on=1, flags=("--max-failures", "1"), reaches=3),
)


@dataclass
class Rolled:
    """What came of one. Times in seconds: `noticed` from the start of the server, `back` from then on."""

    name: str
    exit_code: int
    result: str
    changed: list[str]
    noticed: float | None
    back: float | None
    start: float | None  # what the old release took when it was started again
    requests: int
    lost: int
    wrong: list[str] = field(default_factory=list)


def run(fleet: Fleet, chosen: Sequence[str], say: Callable[[str], None]) -> Iterator[Rolled]:
    """Deploy the bad releases whose names hold one of `chosen`, all for none."""
    numbers = count(int(time.time()))
    settle(fleet, fleet.release(f"{next(numbers)}"))
    for bad in RELEASES:
        if not chosen or any(word in bad.name for word in chosen):
            rolled = deployed(fleet, bad, numbers)
            say(f"a release that {bad.name}: exit {rolled.exit_code}, {', '.join(rolled.wrong) or 'as promised'}")
            yield rolled


def deployed(fleet: Fleet, bad: Bad, numbers: Iterator[int]) -> Rolled:
    before, name = fleet.look(), f"{next(numbers)}"
    if not all(seen.serves for seen in before.values()) or len({seen.release for seen in before.values()}) > 1:
        settle(fleet, fleet.release(f"{next(numbers)}"))
        before = fleet.look()
    config = fleet.release(name, **({"SGLANG_SIMULATOR_FAULT": bad.fault} if bad.fault else {}))
    with fleet.asked() as (load, watch):
        if bad.only_on is not None:
            fleet.ssh(fleet.hosts[bad.only_on], unfit(name))
        try:
            told = fleet.deploy(config, *FLAGS, *bad.flags)
        finally:
            if bad.only_on is not None:
                fleet.ssh(fleet.hosts[bad.only_on], f"rm -r {DROP_IN}; systemctl daemon-reload")
        time.sleep(1)
        listed = watch.listed() or set()
    after = fleet.look()
    failed = next((host["host"] for host in told["hosts"] if host.get("failure")), "")
    noticed, back, start = moments(Path(told["run"]) / "events.ndjson", failed)
    rolled = Rolled(
        name=bad.name,
        exit_code=told["exit_code"],
        result=(told["rollout"] or {}).get("result", "-"),
        changed=[host for host, seen in after.items() if seen.starts > before[host].starts],
        noticed=noticed,
        back=back,
        start=start,
        requests=len(load.answered),
        lost=len(load.lost),
    )
    rolled.wrong = list(_wrong(fleet, bad, rolled, failed, before, after, listed))
    return rolled


def unfit(release: str) -> str:
    """A command that makes a host unable to start that release, and no other."""
    unit = f"/etc/systemd/system/{SERVICE}.service"
    line = f'[Service]\\nExecStartPre=/bin/sh -c \\"! grep -q RELEASE={release} {unit}\\"\\n'
    return f'mkdir -p {DROP_IN}; printf "{line}" > {DROP_IN}/bench.conf; systemctl daemon-reload'


def _wrong(
    fleet: Fleet,
    bad: Bad,
    rolled: Rolled,
    failed: str,
    before: Mapping[str, Seen],
    after: Mapping[str, Seen],
    listed: set[str],
) -> Iterator[str]:
    if rolled.exit_code != bad.exit_code:
        yield f"exit {rolled.exit_code}"
    if len(rolled.changed) != bad.reaches:
        yield f"it reached {', '.join(rolled.changed)}"
    if rolled.noticed is None or rolled.noticed > bad.notice:
        yield f"noticed after {rolled.noticed} s, not {bad.notice:g} s"
    if rolled.back is None or rolled.back > (rolled.start or 0) + BACK_SECONDS:
        yield f"the old one served after {rolled.back} s"
    if not failed or after[failed].release != before[failed].release:
        yield "the host that failed did not go back"
    for host, seen in after.items():
        if not seen.serves:
            yield f"{host} is {seen}"
    if missing := [host for host in fleet.hosts if fleet.url(host) not in listed]:
        yield f"not behind the gateway: {', '.join(missing)}"
    if rolled.lost:
        yield f"{rolled.lost} lost"


def moments(events: Path, host: str) -> tuple[float | None, float | None, float | None]:
    """(from the server's start until it was found bad, from then until the old one served, its own start).

    The times of events are the controller's.
    """
    started = noticed = back = restarted = None
    for action, event, at in _of(events, host):
        failed = event == "runner_on_failed"
        if action == "sglang_service" and event == "runner_on_start" and noticed is None:
            started = at  # where the start itself fails, no later moment is known
        elif action == "sglang_service" and not failed and event == "runner_on_ok":
            started, restarted = (at, restarted) if noticed is None else (started, at)
        elif action in ("sglang_service", "sglang_gate", "sglang_gateway") and failed:
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


def report(rows: Sequence[Rolled]) -> Iterator[str]:
    yield "a release that            exit  hosts changed  noticed after  old one serves after  of which its start  lost"
    for row in rows:
        times = "".join(f"{'-' if value is None else f'{value:.1f} s':>{width}}" for value, width in zip(
            (row.noticed, row.back, row.start), (15, 22, 20), strict=True))  # fmt: skip
        said = f"  {'; '.join(row.wrong)}" if row.wrong else ""
        yield f"{row.name:26}{row.exit_code:4}  {len(row.changed):13}{times}  {row.lost:4}{said}"
