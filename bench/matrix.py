"""Every step of a change × every way in which it can be disturbed, on the first host of a fleet behind a gateway.

A cell begins with a fleet that serves a good release, disturbs the change to another one, repairs what was disturbed
and, unless the release itself was at fault, runs the same command once more. Clients ask all the time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from bench.faults import SERVICE, Deploy, Fleet, Seen
from bench.gateway import ask
from bench.killed import settle
from bench.process import BenchError, call

STEPS = ("leave", "drain", "stop", "start", "gate", "join", "soak")
FAULTS = ("error", "hang", "killed", "rebooted", "cut")
# By step: the action of the task that begins it, and the how manieth of that on the host in its turn.
_BEGINS = {
    "turn": ("sglang_rollout", 1),
    "leave": ("sglang_gateway", 1),
    "drain": ("sglang_service", 1),
    "stop": ("sglang_service", 1),
    "start": ("sglang_service", 1),
    "gate": ("sglang_gate", 1),
    "join": ("sglang_gateway", 2),
    "soak": ("sglang_gate", 2),
}
_STATES = {"stop": "deactivating", "start": "activating"}  # of the unit, where the task alone does not tell the step
DROP_IN = f"/etc/systemd/system/{SERVICE}.service.d"
_KEY = "/var/lib/sglang-ops/services/*-gateway/gateway/control-plane.key"
_ROUTER = f"{SERVICE}-gateway"
CUT_SECONDS = 15
HELD_TOKENS = 120  # of a request that a server is to finish before it stops; at 20 a second
LONG_TOKENS = 800
SLOW = {"SGLANG_SIMULATOR_TOKENS_PER_SECOND": "20"}


@dataclass(frozen=True)
class Cell:
    """How a step is disturbed. Each command runs on the host, or on the gateway's where it begins with "@".

    `old` and `new` are environment variables of the releases, `before` is done before the deploy begins and `heal`
    once it is over, `at` where the step begins. `exits` are the codes in which that may end; `again` says that the same
    command then finishes the work. `held` is how many tokens a request has that the server is answering when it is to
    stop; `cut` whether it is right that this one is not answered to its end.
    """

    step: str
    fault: str
    exits: tuple[int, ...]
    old: Mapping[str, str] = field(default_factory=dict)
    new: Mapping[str, str] = field(default_factory=dict)
    before: str = ""
    at: str = ""
    when: str = ""
    heal: str = ""
    again: bool = True
    held: int = 0
    cut: bool = False

    @property
    def name(self) -> str:
        return f"{self.step}/{self.fault}"


@dataclass
class Ended:
    """What a cell came to; no `exit_code` where the controller was killed, no `again` where nothing was to be done."""

    step: str
    fault: str
    exit_code: int | None
    result: str
    serves: str
    again: int | None
    seconds: float
    longest_out: float
    fewest: int
    requests: int
    lost: int
    wrong: list[str] = field(default_factory=list)


def _once(what: str) -> str:
    """A drop-in of the unit that does something at its next start only."""
    script = f"test -e /run/bench-once || exit 0; rm /run/bench-once; {what}"
    line = f'ExecStartPre=/bin/sh -c "{script}"'
    return f"touch /run/bench-once; {_drop_in(line)}"


def _drop_in(line: str, section: str = "Service") -> str:
    text = f"[{section}]\\n{line}\\n".replace('"', '\\"')
    return f'mkdir -p {DROP_IN}; printf "{text}" > {DROP_IN}/bench.conf; systemctl daemon-reload'


_HEAL = f"rm -rf {DROP_IN}; systemctl daemon-reload"
_FREEZE_ROUTER = f"@systemd-run --quiet --collect sh -c 'docker pause {_ROUTER}; sleep 14; docker unpause {_ROUTER}'"
_BREAK_KEY = f"@for key in {_KEY}; do cp -p $key /run/bench-key; echo wrong > $key; done"
_MEND_KEY = f"@for key in {_KEY}; do cp -p /run/bench-key $key; done"
_REFUSE = "iptables -I OUTPUT -p tcp --dport 8000 -j REJECT"
_NO_COUNTERS = f"{_REFUSE}; systemd-run --quiet --collect sh -c 'sleep 5; {_REFUSE.replace('-I', '-D')}'"


def _fault(name: str) -> dict[str, str]:
    return {"SGLANG_SIMULATOR_FAULT": name}


def cells() -> list[Cell]:
    """All of them, step by step."""
    own = [
        Cell("leave", "error", (3, 4), at=_BREAK_KEY, when="turn", heal=_MEND_KEY),
        Cell("leave", "hang", (3, 4), at=_FREEZE_ROUTER, when="turn"),
        Cell("drain", "error", (0,), SLOW, held=HELD_TOKENS, at=_NO_COUNTERS),
        Cell("drain", "hang", (0,), SLOW, held=LONG_TOKENS, cut=True),
        Cell("stop", "error", (3, 4), before=_drop_in("RefuseManualStop=yes", "Unit"), heal=_HEAL),
        Cell("stop", "hang", (0,), _fault("ignore-sigterm")),
        Cell("start", "error", (3,), before=_once("exit 1"), heal=_HEAL),
        Cell("start", "hang", (3,), before=_once("sleep 1000"), heal=_HEAL),
        Cell("gate", "error", (3,), new=_fault("garbage"), again=False),
        Cell("gate", "hang", (3,), new=_fault("never-healthy"), again=False),
        Cell("join", "error", (4,), at=_BREAK_KEY, when="gate", heal=_MEND_KEY),
        Cell("join", "hang", (0, 3), new=_fault("slow-start:2"), at=_FREEZE_ROUTER, when="gate"),
        Cell("soak", "error", (3,), new=_fault("crash-after:3"), again=False),
        Cell("soak", "hang", (3,), at="pkill -STOP -f [s]glang.launch_server"),
    ]
    return sorted([*own, *_common()], key=lambda cell: (STEPS.index(cell.step), FAULTS.index(cell.fault)))


def _common() -> Iterator[Cell]:
    """What can happen in every step; each is made to last for a while."""
    lasting: dict[str, dict[str, Any]] = {
        "drain": {"old": SLOW, "held": HELD_TOKENS},
        "stop": {"before": _drop_in("ExecStop=/bin/sleep 5"), "heal": _HEAL},
        "start": {"before": _drop_in("ExecStartPre=/bin/sleep 5"), "heal": _HEAL},
        "gate": {"new": _fault("slow-start:4")},
    }
    for step in STEPS:
        for fault, exits in (("killed", ()), ("rebooted", (0, 3, 6)), ("cut", (0, 6))):
            cut = fault == "rebooted" and step == "drain"
            yield Cell(step, fault, exits, cut=cut, **lasting.get(step, {}))


class Try:
    """One cell on a fleet."""

    def __init__(self, fleet: Fleet, cell: Cell, lab: str, numbers: Iterator[int]) -> None:
        self.fleet, self.cell, self.lab = fleet, cell, lab
        self.host = fleet.hosts[0]
        self.numbers = numbers
        self.held: list[str] = []

    def run(self, *, settled: bool) -> Ended:
        """`settled` says that the fleet serves a stable release without peculiarities."""
        cell, fleet = self.cell, self.fleet
        if cell.old or not settled:
            settle(fleet, fleet.release(f"{next(self.numbers)}", **cell.old))
        old = fleet.look_at(self.host).release
        new = fleet.release(f"{next(self.numbers)}", **cell.new)
        self._do(cell.before)
        began = time.monotonic()
        with fleet.asked() as (load, watch):
            deploy = fleet.begin(new, "--soak", "5")
            try:
                told = self._disturbed(deploy)
            finally:
                deploy.kill()  # where something went wrong with the measurement itself
                self._do(cell.heal)
            serving = fleet.look_at(self.host) if cell.fault not in ("killed", "cut", "rebooted") else None
            again = fleet.deploy(new)["exit_code"] if cell.again else None
            time.sleep(1)
            listed = watch.listed() or set()
        after = fleet.look()
        ended = Ended(
            step=cell.step,
            fault=cell.fault,
            exit_code=told.get("exit_code"),
            result=(told.get("rollout") or {}).get("result", "-"),
            serves="-" if serving is None else "old" if serving.release == old else "new",
            again=again,
            seconds=round(time.monotonic() - began, 1),
            longest_out=round(max(watch.longest.values(), default=0.0), 1),
            fewest=watch.fewest,
            requests=len(load.answered) + len(self.held),
            lost=len(load.lost) + sum(1 for text in self.held if text),
        )
        allowed = self._may_be_lost(load.lost)
        ended.wrong = list(self._wrong(ended, after, listed, allowed, load.lost))
        return ended

    def _disturbed(self, deploy: Deploy) -> dict[str, Any]:
        cell, events = self.cell, deploy.events()
        holding = threading.Thread(target=self._hold, daemon=True)
        reached: list[str] = []
        if cell.held:
            self._reach(events, "turn", reached)
            holding.start()
        self._reach(events, cell.when or cell.step, reached)
        if cell.fault == "killed":
            deploy.kill()
        elif cell.fault == "rebooted":
            call(sys.executable, "-m", "sglang_ops", "lab", "reboot", self.host, "--name", self.lab, "--hard")
        elif cell.fault == "cut":
            machine = self.fleet.addresses[self.host].rpartition(".")[0] + ".1"
            way = f"ip route add blackhole {machine}; sleep {CUT_SECONDS}; ip route del blackhole {machine}"
            self._do(f"systemd-run --quiet --collect sh -c '{way}'")
        else:
            self._do(cell.at)
        told = {} if cell.fault == "killed" else deploy.result()
        if cell.held:
            holding.join(60)
        if cell.fault == "cut":
            time.sleep(CUT_SECONDS)
        return told

    def _reach(self, events: Iterator[Mapping[str, Any]], step: str, reached: list[str]) -> None:
        """Come to where `step` begins on the host, and a moment further."""
        action, times = _BEGINS[step]
        while reached.count(action) < times:
            event = next(events, None)
            if event is None:
                raise BenchError(f"{self.cell.name}: the deploy ended before {step}")
            data = event.get("event_data") or {}
            if event["event"] == "runner_on_start" and data.get("host") == self.host and in_turn(data):
                reached.append(str(data.get("resolved_action") or "").rpartition(".")[2])
        deadline = time.monotonic() + 45
        wanted = _STATES.get(step) if self.cell.fault in ("killed", "rebooted", "cut") else None
        while wanted and self.fleet.ssh(self.host, f"systemctl is-active {SERVICE}").strip() != wanted:
            if time.monotonic() > deadline:
                raise BenchError(f"{self.cell.name}: the unit was never {wanted}")
        if not wanted and step != "turn":
            time.sleep(1.0 if step in ("drain", "soak") else 0.2)

    def _hold(self) -> None:
        self.held.append(ask(self.fleet.url(self.host), streamed=False, tokens=self.cell.held))

    def _do(self, command: str) -> None:
        if command:
            self.fleet.ssh(self.fleet.front if command.startswith("@") else self.host, command.removeprefix("@"))

    def _may_be_lost(self, lost: Sequence[str]) -> int:
        """What dies with a host that loses its power: the requests that it is answering, one of each client."""
        serves = self.cell.fault == "rebooted" and self.cell.step in ("leave", "join", "soak")
        return (min(len(lost), 2) if serves else 0) + (1 if self.cell.cut and any(self.held) else 0)

    def _wrong(
        self, ended: Ended, after: Mapping[str, Seen], listed: set[str], allowed: int, lost: Sequence[str]
    ) -> Iterator[str]:
        if ended.exit_code not in (self.cell.exits or (None,)):
            yield f"exit {ended.exit_code}"
        if ended.again:
            yield f"the next run ended with {ended.again}"
        if ended.lost > allowed:
            yield f"{ended.lost} lost ({', '.join(sorted({*lost, *filter(None, self.held)})[:3])})"
        for host, seen in after.items():
            # Hosts that a bad release never reached go on saying so until the next deploy.
            if not (seen.settled if self.cell.again else seen.serves):
                yield f"{host} is {seen}"
        if len({seen.release for seen in after.values()}) > 1:
            yield "the fleet is split"
        if missing := [host for host in self.fleet.hosts if self.fleet.url(host) not in listed]:
            yield f"not behind the gateway: {', '.join(missing)}"
        if held := self.fleet.locked():
            yield f"still locked: {', '.join(held)}"


def in_turn(data: Mapping[str, Any]) -> bool:
    return str(data.get("play") or "").startswith("Change the services")


def run(fleet: Fleet, chosen: Sequence[str], lab: str, say: Callable[[str], None]) -> Iterator[Ended]:
    """The cells that are `chosen` (`gate/hang`, all of a step `gate`, all of a fault `/killed`); all for none."""
    numbers, settled = count(int(time.time())), False
    for cell in cells():
        if not chosen or any(cell.name == name or name in (cell.step, f"/{cell.fault}") for name in chosen):
            try:
                ended = Try(fleet, cell, lab, numbers).run(settled=settled)
            except BenchError as error:
                ended = Ended(cell.step, cell.fault, None, "-", "-", None, 0.0, 0.0, 0, 0, 0, [str(error)])
            settled = not ended.wrong and (cell.again or not cell.old)
            say(f"{cell.name}: exit {ended.exit_code}, {', '.join(ended.wrong) or 'as promised'}")
            yield ended


def report(rows: Sequence[Ended]) -> Iterator[str]:
    yield "step   disturbed by  exit  result       first host  again  out of it  fewest  requests  lost  not promised"
    for row in rows:
        exits = "-" if row.exit_code is None else str(row.exit_code)
        again = "-" if row.again is None else str(row.again)
        yield (
            f"{row.step:6} {row.fault:13} {exits:>4}  {row.result:12} {row.serves:10}  {again:>5}"
            f"  {row.longest_out:7.1f} s  {row.fewest:6}  {row.requests:8}  {row.lost:4}  {'; '.join(row.wrong) or '-'}"
        )
    yield (
        f"{len(rows)} cells, {sum(1 for row in rows if row.wrong)} not as promised; "
        f"{sum(row.lost for row in rows)} of {sum(row.requests for row in rows)} requests lost"
    )
