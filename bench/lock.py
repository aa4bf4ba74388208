"""python -m bench.lock: two operators at the same moment, many times. Of each pair exactly one may proceed.

Lab hosts with the simulator of SGLang. Both operators type `sglang-ops restart` within half a second, in turns on the
same hosts and on sets that overlap without sharing their first host. Exactly one must end with 0 and the other with 5,
saying who was faster; a host that only the other one wanted must run what it ran before.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from bench import fleet, programs
from bench.process import BenchError, call
from bench.progress import teller

HOSTS = 3
APART_SECONDS = 0.5
START_SECONDS = 3  # a restart lasts longer than the other operator needs to get as far as the lock
DONE, LOCKED = 0, 5
# By number of the host; the operators change places by themselves.
SHAPES = {
    "the same hosts": ((1, 2, 3), (1, 2, 3)),
    "one in common, the last of one and the first of the other": ((1, 2), (2, 3)),
    "one in common, the last of both": ((1, 3), (2, 3)),
    "one has all, the other not the first": ((1, 2, 3), (2, 3)),
}


@dataclass(frozen=True)
class Race:
    """`codes` are how both ended. `proceeded` counts those who did; `wrong` says what must not be, "" for nothing."""

    shape: str
    apart: float
    codes: tuple[int, int]
    wrong: str

    @property
    def proceeded(self) -> int:
        return self.codes.count(DONE)


class Fleet:
    """The hosts, and what tells whether a server of theirs has been restarted."""

    def __init__(self, cli: str, lab: fleet.Lab) -> None:
        self.cli, self.lab, self.hosts = cli, lab, lab.hosts[:HOSTS]

    def deploy(self) -> None:
        data = yaml.safe_load(self.lab.deployment.read_text())
        variables = {"SGLANG_SIMULATOR_DRAIN_POLL": "0.2", "SGLANG_SIMULATOR_STARTUP_SECONDS": str(START_SECONDS)}
        data["deployment"]["env_vars"] = variables
        self.lab.deployment.write_text(yaml.safe_dump(data))
        call(self.cli, "deploy", "--yes", "-i", str(self.lab.inventory), "-e", "sglang_server_soak=1")

    def restart(self, hosts: Sequence[str]) -> subprocess.Popen[str]:
        words = [self.cli, "restart", "-i", str(self.lab.inventory), "--limit", ",".join(hosts), "--service"]
        return subprocess.Popen([*words, "tiny-llama"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def starts(self) -> dict[str, str]:
        """The name that systemd gives to each start of a server, by host."""
        show = "systemctl show --property InvocationID --value sglang-tiny-llama"
        return {host: call("ssh", "-F", str(self.lab.ssh_config), host, show).strip() for host in self.hosts}


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parse(arguments)
    console = Console(stderr=True, highlight=False)
    say = teller(console)

    races: list[Race] = []
    try:
        cli = programs.find("sglang-ops")
        with fleet.lab(cli, HOSTS, say) as lab:
            hosts = Fleet(cli, lab)
            say("the first release")
            hosts.deploy()
            for number in range(asked.races):
                races.append(race(hosts, number))
                if races[-1].wrong:
                    say(escape(f"race {number}, {races[-1].shape}: {races[-1].wrong}"))
    except BenchError as error:
        console.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    for line in report(races):
        print(line)
    if asked.json:
        asked.json.write_text(json.dumps([race.__dict__ for race in races], indent=2) + "\n")
    return int(any(race.wrong for race in races))


def race(hosts: Fleet, number: int) -> Race:
    """Two operators, the second up to half a second after the first."""
    chance = random.Random(number)  # noqa: S311 - which of them is first shall vary
    shape = list(SHAPES)[number % len(SHAPES)]
    sets = [[hosts.hosts[index - 1] for index in wanted] for wanted in SHAPES[shape]]
    chance.shuffle(sets)
    apart = round(chance.uniform(0, APART_SECONDS), 2)
    before = hosts.starts()
    first = hosts.restart(sets[0])
    time.sleep(apart)
    second = hosts.restart(sets[1])
    said = [process.communicate(timeout=300)[0] for process in (first, second)]
    codes = (first.returncode, second.returncode)
    now = hosts.starts()
    return Race(shape, apart, codes, wrong(sets, codes, said, {host for host in before if before[host] != now[host]}))


def wrong(sets: Sequence[Sequence[str]], codes: tuple[int, int], said: Sequence[str], restarted: set[str]) -> str:
    """What must not be: "" where one has restarted all of its hosts and the other none, and was told why."""
    if sorted(codes) != [DONE, LOCKED]:
        return f"they ended with {codes[0]} and {codes[1]}: {said[0][-400:]} | {said[1][-400:]}"
    winner = codes.index(DONE)
    if restarted != set(sets[winner]):
        return f"restarted are {', '.join(sorted(restarted))}, and who proceeded wanted {', '.join(sets[winner])}"
    return "" if " is locked by " in said[1 - winner] else "who did not proceed was not told why"


def report(races: Sequence[Race]) -> Iterator[str]:
    for shape in SHAPES:
        some = [race for race in races if race.shape == shape]
        if some:
            counted = Counter(race.proceeded for race in some)
            one = f"exactly one proceeded {counted.pop(1, 0)} times"
            others = ", ".join(f"{number} proceeded {times} times" for number, times in sorted(counted.items()))
            yield f"{shape}: {len(some)} races, {one}{', ' if others else ''}{others}"
    good = sum(not race.wrong for race in races)
    yield f"{len(races)} races: in {good} exactly one proceeded, on all of its hosts, and the other touched none"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.lock", description=__doc__)
    parser.add_argument("--races", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--json", type=Path, help="where every single race goes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
