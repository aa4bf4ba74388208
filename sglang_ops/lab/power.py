"""Hosts on, off and over again, and whether they answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sglang_ops.errors import OpsError, UsageError
from sglang_ops.lab import processes, requirements
from sglang_ops.lab.settings import MODEL_SOURCE_PORT, REGISTRY_PORT, Folder, Host, Plan

Log = Callable[[str], None]

_BOOT_PATIENCE = 60.0  # seconds for a host to answer on port 22 ...
_BOOT_PATIENCE_EACH = 2.0  # ... and more for each one that boots beside it
_STOP_PATIENCE = 120.0  # seconds for a host to shut down in order; systemd itself gives up after 90
_POLL = 0.05
_SSH_PORT = 22
_SERVICE_STARTS = 3  # a service that ended so often at the start will not come up


@dataclass(frozen=True)
class Report:
    """What the supervisor says of a host or service: running, off or failed, and how often it was started."""

    state: str = "running"
    boots: int = 0


def states(lab: Folder, plan: Plan) -> dict[str, str]:
    """Each host's state: running (it answers), booting, off or failed."""
    known = _report(lab)
    up = [host for host in plan.hosts if known.get(host.name, Report("off")).state == "running"]
    with ThreadPoolExecutor(max(len(up), 1)) as pool:
        answers = dict(zip(up, pool.map(lambda host: _answers(host.address, _SSH_PORT), up), strict=True))
    return {
        host.name: ("running" if answers[host] else "booting") if host in answers else known[host.name].state
        for host in plan.hosts
        if host.name in known
    }


def find(plan: Plan, name: str) -> Host:
    """The host of that name. Raises UsageError if the lab has none."""
    for host in plan.hosts:
        if host.name == name:
            return host
    names = f"{plan.hosts[0].name} … {plan.hosts[-1].name}"
    raise UsageError(f"Lab {plan.shape.name} has no host {name}.", fix=f"Its hosts are {names}.")


def switch(lab: Folder, plan: Plan, name: str, position: str, *, hard: bool = False) -> None:
    """Switch a host "on", "off" or let it "reboot", and wait until it has; `hard` pulls the plug.

    Raises UsageError for a host that the lab does not have, OpsError for one that does not follow.
    """
    host = find(plan, name)
    requirements.check_root()
    boots = _report(lab)[name].boots
    _request(lab, {"host": name, "power": position, "hard": hard})
    deadline = time.monotonic() + _STOP_PATIENCE
    while not _has_followed(lab, name, position, boots):
        if time.monotonic() > deadline:
            raise OpsError(f"{name} did not follow within {_STOP_PATIENCE:.0f} s.", fix=f"Read {lab.log(name)}")
        time.sleep(_POLL)
    if position != "off":
        wait_for_hosts(lab, [host], log=lambda _: None)


def wait_for_hosts(lab: Folder, hosts: Sequence[Host], *, log: Log) -> None:
    """Wait until every host answers on its SSH port. Raises OpsError with the end of a host's console."""
    started = time.monotonic()
    deadline = started + _BOOT_PATIENCE + _BOOT_PATIENCE_EACH * len(hosts)
    over = threading.Event()  # one host failed, or the user has had enough

    def wait(host: Host) -> None:
        while not _answers(host.address, _SSH_PORT):
            if over.is_set():
                return
            state = _report(lab).get(host.name, Report()).state
            _require_supervisor(lab)
            if time.monotonic() > deadline or state != "running":
                raise OpsError(f"{host.name} did not boot; the end of its console: {_tail(lab, host.name)}")
            time.sleep(_POLL)
        log(f"{host.name} {host.address} answers after {time.monotonic() - started:.1f} s")

    with ThreadPoolExecutor(len(hosts)) as pool:
        try:
            list(pool.map(wait, hosts))
        finally:
            over.set()


def wait_for_services(lab: Folder, plan: Plan) -> None:
    """Wait until registry and model source accept connections."""
    for name, port in (("registry", REGISTRY_PORT), ("model-source", MODEL_SOURCE_PORT)):
        deadline = time.monotonic() + _BOOT_PATIENCE
        while not _connects(plan.services, port):
            in_vain = time.monotonic() > deadline or _report(lab).get(name, Report()).boots > _SERVICE_STARTS
            _require_supervisor(lab)
            if in_vain:
                raise OpsError(f"The lab's {name} did not start: {_tail(lab, name)}")
            time.sleep(_POLL)


def _require_supervisor(lab: Folder) -> None:
    if processes.find_supervisor(lab) is None:
        raise OpsError(f"The lab's supervisor has ended; its last words: {_tail(lab, 'supervisor')}")


def _has_followed(lab: Folder, name: str, power: str, boots: int) -> bool:
    report = _report(lab)[name]
    if power == "reboot":
        return report.boots > boots
    return (report.state == "running") == (power == "on")


def _request(lab: Folder, request: dict[str, object]) -> None:
    """Ask the supervisor. Raises OpsError where it refuses or is not there."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(5)
        try:
            control.connect(str(lab.control))
            control.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(control.makefile().readline())
        except (OSError, ValueError) as error:
            raise OpsError(
                f"The lab's supervisor does not answer: {error}", fix="See `sglang-ops lab status`."
            ) from error
    if answer["error"]:
        raise OpsError(answer["error"])


def _report(lab: Folder) -> dict[str, Report]:
    """What the supervisor last wrote of its children, by name; nothing before it has begun."""
    try:
        return {name: Report(**report) for name, report in json.loads(lab.status.read_text()).items()}
    except FileNotFoundError:
        return {}


def _connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _answers(address: str, port: int) -> bool:
    """Whether an SSH server greets; that a port is open says little while a host goes down."""
    try:
        with socket.create_connection((address, port), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _tail(lab: Folder, name: str, lines: int = 5) -> str:
    """The end of a log, on one line."""
    try:
        text = lab.log(name).read_text(errors="replace")
    except FileNotFoundError:
        return "(nothing)"
    return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip()) or "(nothing)"
