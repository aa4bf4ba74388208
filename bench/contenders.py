"""The three that are measured: how each is started, and how to read from its output what it did on each host."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.process import BenchError, Run, end_background, measure
from sglang_ops.events import CONTROLLER_ACTIONS

OURS, PLAIN, PYINFRA = "sglang-ops", "plain Ansible role", "pyinfra"
PEERS = Path(__file__).resolve().parent / "peers"
# These operations of the pyinfra peer ask a question; pyinfra calls whatever it runs a change.
_QUESTIONS = ("Check ", "Ask ")
_PYINFRA_COMMAND = re.compile(r"^\[(?P<host>[^\]]+)\]\s+>>> ", re.MULTILINE)


@dataclass(frozen=True)
class Work:
    """What was done on one host: commands or modules that were executed there, and how many changed something."""

    executions: int
    changed: int


@dataclass(frozen=True)
class Sample:
    """One run of a contender over its hosts. Seconds; `executions` is that of the host with the most."""

    wall: float
    cpu: float
    executions: int


@dataclass(frozen=True)
class Contender:
    """One of the tools with its hosts. `read` is pure: what the run wrote → what it did, host by host."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    hosts: tuple[str, ...]
    log: Path
    read: Callable[[Run, str], Mapping[str, Work]]

    def deploy(self, *, first: bool, connected: bool = False) -> Sample:
        """Deploy once. Raises BenchError if it failed, or did not do what a first or a second deploy does.

        SSH connections that an earlier run has left open are closed before, unless `connected`.
        """
        if not connected:
            end_background(self.name)
        self.log.write_text("")
        run = measure(self.argv, mark=self.name, env=self.env, cwd=self.cwd)
        work = self.read(run, self.log.read_text())
        check(self.name, work, self.hosts, first=first)
        return Sample(run.wall, run.cpu, max(host.executions for host in work.values()))

    def disconnect(self) -> None:
        end_background(self.name)


def check(name: str, work: Mapping[str, Work], hosts: Iterable[str], *, first: bool) -> None:
    """Raises BenchError unless every host was worked on, and changed by a first deploy only."""
    wrong = [host for host in hosts if host not in work or (work[host].changed > 0) != first]
    if wrong:
        expected = "changed nothing" if first else "changed something"
        raise BenchError(f"{name} {expected} on {', '.join(wrong)}: this is not the run that was to be measured")


def ours(cli: str, inventory: Path, deployment: Path, hosts: tuple[str, ...], scratch: Path) -> Contender:
    argv = (cli, "deploy", "-i", str(inventory), "--config", str(deployment), "--yes", "--output", "json")
    return Contender(OURS, argv, {}, scratch, hosts, scratch / "ours.log", read_ours)


def plain_role(playbook: str, inventory: Path, hosts: tuple[str, ...], scratch: Path) -> Contender:
    home, log = PEERS / "ansible", scratch / "plain-role.ndjson"
    env = {"ANSIBLE_CONFIG": str(home / "ansible.cfg"), "BENCH_EXECUTIONS": str(log)}
    argv = (playbook, "-i", str(inventory), "deploy.yml")
    return Contender(PLAIN, argv, env, home, hosts, log, read_plain_role)


def pyinfra(program: str, inventory: Path, hosts: tuple[str, ...], scratch: Path) -> Contender:
    argv = (program, "--yes", "--json", "-vv", "inventory.py", "deploy.py")
    env = {"BENCH_INVENTORY": str(inventory)}
    return Contender(PYINFRA, argv, env, PEERS / "pyinfra", hosts, scratch / "pyinfra.log", read_pyinfra)


def read_ours(run: Run, _log: str = "") -> dict[str, Work]:
    """From ``--output json``."""
    hosts = json.loads(run.stdout)["hosts"]
    return {host["host"]: Work(host["module_executions"], host["changed"]) for host in hosts}


def read_plain_role(_run: Run, log: str) -> dict[str, Work]:
    """From the lines of the callback plugin `executions`, by the rule of `sglang_ops.events`."""
    executions: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    for line in log.splitlines():
        event = json.loads(line)
        executions[event["host"]] += event["action"] not in CONTROLLER_ACTIONS
        changed[event["host"]] += event["changed"]
    return {host: Work(count, changed[host]) for host, count in executions.items()}


def read_pyinfra(run: Run, _log: str = "") -> dict[str, Work]:
    """From ``--json`` (what changed) and ``-vv`` (every command sent to a host: facts, operations, transfers)."""
    changed: Counter[str] = Counter()
    for operation in json.loads(run.stdout)["results"]["operations"]:
        if not operation["name"].startswith(_QUESTIONS):
            changed.update(operation["success"])
    executions = Counter(match["host"] for match in _PYINFRA_COMMAND.finditer(run.stderr))
    return {host: Work(count, changed[host]) for host, count in executions.items()}
