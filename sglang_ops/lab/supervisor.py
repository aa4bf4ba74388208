"""The one process that a lab hangs on. Usage: python -m sglang_ops.lab.supervisor STATE_DIRECTORY

It is process 1 of the lab's own pid, mount and network namespaces: as soon as it is killed, the kernel ends
every host, the registry and the model source, and with them every mount and bridge. It mounts, boots, reaps,
and answers requests on a socket.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_ops.lab import cgroups, disk, hosts, network, services
from sglang_ops.lab.processes import pid_in_namespaces
from sglang_ops.lab.settings import Folder, Plan, write

BOOT_AGAIN = 133  # systemd-nspawn's exit code when the host wants to be rebooted
RESTART_DELAY = 1.0  # seconds before a service that ended is started again
UPLINK_PATIENCE = 30.0  # seconds for the machine's end of the cable to be plugged in

# What systemd as process 1 understands (man systemd, SIGNALS), by request and whether it is a hard one.
_POWER_SIGNALS = {
    ("off", False): signal.SIGRTMIN + 4,
    ("off", True): signal.SIGKILL,
    ("reboot", False): signal.SIGRTMIN + 5,
    ("reboot", True): signal.SIGKILL,
}


@dataclass
class Child:
    """A process that the supervisor keeps: systemd-nspawn with a host in it, or a service."""

    name: str
    command: Sequence[str]
    is_host: bool
    process: subprocess.Popen[bytes] | None = None
    boots: int = 0  # how often it was started
    state: str = "off"  # running, off, or failed: ended with an error that nobody asked for
    wanted: str = ""  # what was asked of a running host: "off", "reboot" or nothing


class Supervisor:
    """Builds the lab of a plan, and keeps its children."""

    def __init__(self, folder: Folder, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        kept = [Child(name, command, False) for name, command in services.service_commands(folder, plan).items()]
        systems = [Child(host.name, hosts.nspawn_command(folder, host), True) for host in plan.hosts]
        self.children = {child.name: child for child in (*kept, *systems)}

    def run(self) -> None:
        """Build the lab and keep it; does not return."""
        cgroups.enter(self.plan.shape.name, "supervisor")  # out of the login session that it shall outlive
        disk.mount(self.folder.disk_image, self.folder.disk)
        services.prepare(self.folder, self.plan)
        for host in self.plan.hosts:
            hosts.prepare(self.folder, self.plan, host, resolv_conf=network.resolv_conf())
        self._mount_layers()
        _mount("tmpfs", "tmpfs", Path("/run"), "mode=755")  # nspawn's locks shall end with the lab
        _network(self.plan)
        selector = selectors.DefaultSelector()
        ended = _child_signals()
        selector.register(ended, selectors.EVENT_READ, lambda: ended.recv(4096))
        control = _listen(self.folder.control)
        selector.register(control, selectors.EVENT_READ, lambda: self._answer(control))
        for child in self.children.values():
            self._start(child)
        while True:
            self._report()
            handlers: list[Callable[[], object]] = [key.data for key, _ in selector.select(self._patience())]
            for handle in handlers:
                handle()
            self._reap()
            if not handlers:
                self._restart_services()

    def _mount_layers(self) -> None:
        for host in self.plan.hosts:
            root = self.folder.host(host.name) / "root"
            _mount("overlay", "overlay", root, hosts.overlay_options(self.folder, self.plan, host))
        registry = self.folder.registry
        layers = f"lowerdir={self.plan.registry},upperdir={registry / 'upper'},workdir={registry / 'work'}"
        _mount("overlay", "overlay", registry / "root", layers)

    def _start(self, child: Child) -> None:
        def enter_cgroup() -> None:
            cgroups.enter(self.plan.shape.name, child.name)

        with self.folder.log(child.name).open("ab") as log:
            child.process = subprocess.Popen(
                child.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(hosts.NSPAWN_ENVIRONMENT if child.is_host else {})},
                preexec_fn=enter_cgroup if child.is_host else None,  # noqa: PLW1509 - no threads here
            )
        child.boots += 1
        child.state, child.wanted = "running", ""

    def _reap(self) -> None:
        """Take leave of every process that has ended, orphans included, and boot hosts that want it again."""
        while ended := _ended_process():
            for child in self.children.values():
                if child.process and child.process.pid == ended:
                    self._note_end(child, child.process.wait())
                    break
            else:
                os.waitpid(ended, 0)

    def _note_end(self, child: Child, code: int) -> None:
        asked = child.is_host and (code == 0 or child.wanted == "off")
        child.process, child.state = None, "off" if asked else "failed"
        if child.is_host and (code == BOOT_AGAIN or child.wanted == "reboot"):
            self._start(child)

    def _patience(self) -> float | None:
        """How long to wait for events: for ever, unless a service is to be started again."""
        down = any(not child.process for child in self.children.values() if not child.is_host)
        return RESTART_DELAY if down else None

    def _restart_services(self) -> None:
        for child in self.children.values():
            if not child.is_host and not child.process:
                self._start(child)

    def _report(self) -> None:
        report = {child.name: {"state": child.state, "boots": child.boots} for child in self.children.values()}
        write(self.folder.status, json.dumps(report) + "\n")

    def _answer(self, control: socket.socket) -> None:
        """Serve one request: a JSON line {"host", "power": on|off|reboot, "hard"}, answered by {"error"}."""
        connection, _ = control.accept()
        with connection:
            connection.settimeout(1)
            try:
                request = json.loads(connection.makefile().readline())
                error = self._power(request["host"], request["power"], hard=request["hard"])
                connection.sendall(json.dumps({"error": error}).encode() + b"\n")
            except (OSError, ValueError, KeyError) as problem:  # a client that went away, or spoke nonsense
                print(f"request not understood: {problem!r}", file=sys.stderr, flush=True)

    def _power(self, name: str, power: str, *, hard: bool) -> str | None:
        """Do what was asked of a host; the reason why not, if it cannot be done."""
        child = self.children.get(name)
        if child is None or not child.is_host:
            return f"There is no host {name}."
        if power == "on":
            if not child.process:
                self._start(child)
            return None
        init = _init_of(child.process.pid) if child.process else None
        if init is None:
            return f"{name} is not running."
        child.wanted = power
        os.kill(init, _POWER_SIGNALS[power, hard])
        return None


def _ended_process() -> int | None:
    """The pid of a child that has ended and waits to be reaped, if there is one."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return ended.si_pid if ended else None


def _init_of(nspawn: int) -> int | None:
    """Process 1 of the host that a systemd-nspawn runs, or None while it is not there."""
    for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
        if pid_in_namespaces(int(child))[-1] == 1:
            return int(child)
    return None


def _mount(kind: str, source: str, target: Path, options: str) -> None:
    subprocess.run(["mount", "-t", kind, "-o", options, source, str(target)], check=True)


def _network(plan: Plan) -> None:
    """Make the bridge that hosts and services sit on, and plug in the cable from the machine."""
    bridge = hosts.BRIDGE
    _ip("link", "set", "lo", "up")
    _ip("link", "add", bridge, "mtu", str(plan.mtu), "type", "bridge")
    _ip("address", "add", f"{plan.services}/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    deadline = time.monotonic() + UPLINK_PATIENCE
    while "uplink" not in (name for _, name in socket.if_nameindex()):
        if time.monotonic() > deadline:
            raise TimeoutError("the machine's end of the cable was not plugged in")
        time.sleep(0.01)
    _ip("link", "set", "uplink", "master", bridge, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _child_signals() -> socket.socket:
    """A socket that becomes readable whenever a child ends."""
    readable, writable = socket.socketpair()
    readable.setblocking(False)
    writable.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writable.detach(), warn_on_full_buffer=False)
    return readable


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(path))
    control.listen()
    return control


def main() -> None:
    folder = Folder(Path(sys.argv[1]))
    plan = folder.load_plan()
    if plan is None:
        sys.exit(f"{folder.plan} is missing")
    Supervisor(folder, plan).run()


if __name__ == "__main__":
    main()
