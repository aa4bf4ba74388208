"""A fleet behind a gateway that clients ask all the time, a change that goes through it, and what is seen of both."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.gateway import Load
from bench.process import MARK, BenchError, background, call
from sglang_ops.spec import Gateway

SERVICE = "sglang-tiny-llama"
SETTINGS = ("--soak", "2", "--start-timeout", "12", "--drain-timeout", "10", "--batch", "2", "--lock-wait", "100")
LOOK_SECONDS = 0.3
# A link that is dead is noticed after six seconds, where ansible.cfg's patience is a minute.
SSH = (
    "-o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=2 -o ServerAliveCountMax=3 -o ConnectTimeout=5"
)
# What a host itself says of a service. Half a file would not be JSON, or end without a line break.
LOOK = r"""
import glob, json, os, subprocess, sys
name = sys.argv[1]
home = "/var/lib/sglang-ops/services/" + name
def read(path):
    try:
        return json.load(open(path))
    except FileNotFoundError:
        return None
    except ValueError:
        broken.append(path)
broken = []
state, rollout = read(home + "/state.json") or {}, read(home + "/rollout.json")
for path in glob.glob(home + "/releases/*/record.json") + [home + "/history.json"]:
    read(path)
unit = "/etc/systemd/system/" + name + ".service"
broken += [unit] if os.path.exists(unit) and not open(unit).read().endswith("WantedBy=multi-user.target\n") else []
active = subprocess.run(["systemctl", "is-active", name], capture_output=True, text=True).stdout.strip()
count = ["journalctl", "-q", "-o", "cat", "UNIT=" + name + ".service", "JOB_RESULT=done", "JOB_TYPE=start",
         "JOB_TYPE=restart"]
starts = len(subprocess.run(count, capture_output=True, text=True).stdout.splitlines())
print(json.dumps(dict(release=state.get("release"), stable=state.get("stable"), active=active, starts=starts,
                      rollout=bool(rollout), broken=broken)))
"""
ASK_WORKERS = "cat /var/lib/sglang-ops/services/*-gateway/gateway/control-plane.key"


@dataclass(frozen=True)
class Seen:
    """A service as its host has it. `starts` counts all of its starts so far, `broken` are files that are half."""

    release: str | None
    stable: str | None
    active: str
    starts: int
    rollout: bool
    broken: tuple[str, ...]

    @property
    def serves(self) -> bool:
        """Whether it serves a stable release."""
        return self.active == "active" and self.release == self.stable and not self.broken

    @property
    def settled(self) -> bool:
        """Whether it serves a stable release, and no roll-out waits for it."""
        return self.serves and not self.rollout


class Deploy:
    """A deploy that runs beside us."""

    def __init__(self, words: list[str], env: Mapping[str, str], runs: Path) -> None:
        before = set(runs.glob("*")) if runs.is_dir() else set()
        self.mark = f"deploy-{time.monotonic_ns()}"
        self._output = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**env, MARK: self.mark},
        )  # fmt: skip
        while not (new := set(runs.glob("*-deploy-*")) - before if runs.is_dir() else set()):
            if self.over:
                raise BenchError(f"{shlex.join(words)} ended with {self._process.returncode} before it began")
            time.sleep(0.02)
        self.folder = new.pop()

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    def events(self) -> Iterator[Mapping[str, Any]]:
        """Ansible's events as they come, until the deploy is over."""
        path, kept = self.folder / "events.ndjson", ""
        while not path.exists() and not self.over:
            time.sleep(0.02)
        with path.open(encoding="utf-8") as stream:
            while True:
                over = self.over
                kept += stream.readline()
                if kept.endswith("\n"):
                    yield json.loads(kept)
                    kept = ""
                elif over:
                    return
                else:
                    time.sleep(0.02)

    def kill(self) -> None:
        """End it and everything that it has started, connections included, as when its machine goes."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        while found := background(self.mark):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self._process.wait()

    def result(self, seconds: float = 300) -> dict[str, Any]:
        """What it printed in the end."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BenchError(f"a deploy did not end within {seconds:.0f} s: {self.folder}") from None
        self._output.seek(0)
        text = self._output.read()
        try:
            return dict(json.loads(text))
        except ValueError:
            raise BenchError(f"a deploy ended with {self._process.returncode} and said: {text[-500:]}") from None


@dataclass
class Watch:
    """Who is behind the gateway, looked at a few times a second: how long each server was out of it."""

    endpoint: str
    key: str
    urls: tuple[str, ...]
    longest: dict[str, float] = field(default_factory=dict)
    fewest: int = 99
    over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.over.set()
        self._thread.join()

    def renew(self) -> None:
        self.longest, self.fewest = {}, 99

    def listed(self) -> set[str] | None:
        """The servers that the router takes for healthy; None where it does not answer."""
        connection = http.client.HTTPConnection(self.endpoint.partition("://")[2], timeout=5)
        try:
            connection.request("GET", "/workers", headers={"Authorization": f"Bearer {self.key}"})
            answer = json.loads(connection.getresponse().read())
            return {worker["url"] for worker in answer["workers"] if worker["is_healthy"]}
        except (OSError, ValueError, KeyError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _watch(self) -> None:
        left: dict[str, float] = {}
        while not self.over.wait(LOOK_SECONDS):
            there, now = self.listed(), time.monotonic()
            if there is None:
                continue
            self.fewest = min(self.fewest, len(there))
            for url in self.urls:
                if url in there:
                    left.pop(url, None)
                else:
                    self.longest[url] = max(self.longest.get(url, 0.0), now - left.setdefault(url, now))


class Fleet:
    """A lab with a gateway and the simulator, and the commands that are tried on it."""

    def __init__(self, inventory: Path, state: Path) -> None:
        self.inventory, self.state = inventory, state
        self.deployment = yaml.safe_load((inventory.parent / "deployment.yaml").read_text())["deployment"]
        content = yaml.safe_load(inventory.read_text())
        (self.front,) = content["gateways"]["hosts"]
        self.addresses = {name: said["ansible_host"] for name, said in content["all"]["hosts"].items()}
        self.hosts = [name for name in self.addresses if name != self.front]
        gateway = Gateway.model_validate(self.deployment["gateway"])
        self.endpoint = f"http://{self.addresses[self.front]}:{gateway.port}"
        self._ssh = ["ssh", "-F", str(inventory.parent / "ssh" / "config")]

    def url(self, host: str) -> str:
        return f"http://{self.addresses[host]}:{self.deployment['port']}"

    def release(self, name: str, **variables: str) -> Path:
        """A deployment file whose release differs from others by its name."""
        usual = {"RELEASE": name, "SGLANG_SIMULATOR_DRAIN_POLL": "0.2"}
        data = {"deployment": {**self.deployment, "env_vars": {**usual, **variables}}}
        path = self.inventory.parent / "bench-faults.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    def words(self, verb: str, *words: str) -> list[str]:
        return [sys.executable, "-m", "sglang_ops", *verb.split(), "-i", str(self.inventory), *words]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "SGLANG_OPS_STATE": str(self.state), "ANSIBLE_SSH_ARGS": SSH, "NO_COLOR": "1"}

    def begin(self, config: Path, *flags: str) -> Deploy:
        words = self.words("deploy", "-c", str(config), "--yes", "--output", "json", *SETTINGS, *flags)
        return Deploy(words, self.env, self.state / "runs")

    def deploy(self, config: Path, *flags: str) -> dict[str, Any]:
        return self.begin(config, *flags).result()

    def ops(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.words(verb, *words), capture_output=True, text=True, check=False, env=self.env)

    def ssh(self, host: str, command: str, stdin: str = "") -> str:
        """What root's command on a host printed."""
        full = [*self._ssh, host, f"sudo sh -c {shlex.quote(command)}"]
        done = subprocess.run(full, input=stdin, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout

    def look(self) -> dict[str, Seen]:
        return {host: self.look_at(host) for host in self.hosts}

    def look_at(self, host: str) -> Seen:
        told = json.loads(self.ssh(host, f"python3 - {SERVICE}", LOOK))
        return Seen(**{**told, "broken": tuple(told["broken"])})

    def locked(self) -> list[str]:
        """The hosts whose lock is held."""
        told = json.loads(self.ops("lock status", "--output", "json").stdout)
        return [host["host"] for host in told["hosts"] if host["held"]]

    def watch(self) -> Watch:
        key = self.ssh(self.front, ASK_WORKERS).strip()
        return Watch(self.endpoint, key, tuple(self.url(host) for host in self.hosts))

    @contextmanager
    def asked(self, clients: int = 2) -> Iterator[tuple[Load, Watch]]:
        """Clients ask, a few times a second each, for as long as the block lasts."""
        load, watch = Load(self.endpoint, clients, pause=0.1), self.watch()
        load.start()
        watch.start()
        try:
            yield load, watch
        finally:
            load.stop()
            watch.stop()


@contextmanager
def fleet(name: str, hosts: int, say: Callable[[str], None]) -> Iterator[Fleet]:
    """The fleet of a lab of this name; one that is up is used and stays, else one is brought up and removed."""
    lab = [sys.executable, "-m", "sglang_ops", "lab"]
    up = json.loads(call(*lab, "status", "--name", name, "--output", "json"))["running"]
    try:
        if not up:
            say(f"bringing up {hosts} lab hosts and a gateway")
            shape = ("--hosts", str(hosts), "--gpus", "1", "--server", "simulator", "--gateway")
            call(*lab, "up", "--name", name, *shape)
        status = json.loads(call(*lab, "status", "--name", name, "--output", "json"))
        with tempfile.TemporaryDirectory(prefix="bench-state-") as state:
            yield Fleet(Path(status["inventory"]), Path(state))
    finally:
        if not up:
            say("removing the lab")
            call(*lab, "down", "--name", name)
