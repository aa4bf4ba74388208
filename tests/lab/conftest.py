"""Labs for tests: every module has its own, and takes it down, whatever happens."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lab tests need root on Linux; anywhere else they are skipped, and say so. In CI they must run."""
    if sys.platform == "linux" and os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        pytest.exit("the lab's tests need root on Linux, and CI must run them", returncode=1)
    for item in items:
        if "tests/lab" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="LAB TESTS NOT RUN: they need root on Linux (sudo make test)"))


def ops(*arguments: str, env: dict[str, str] | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `sglang-ops` as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "sglang_ops", *arguments],
        capture_output=True, text=True, check=False, timeout=timeout, cwd=os.environ.get("PYTEST_CWD", "/"),
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"} | (env or {}),
    )


@dataclass
class Lab:
    """A running lab and shortcuts to work with it."""

    name: str
    inventory: Path
    hosts: list[str]
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def deployment(self) -> dict[str, Any]:
        """The lab's own deployment file, to be changed by a test."""
        data: dict[str, Any] = yaml.safe_load((self.folder / "deployment.yaml").read_text())
        return data

    def write(self, name: str = "test", **changes: Any) -> Path:
        """A deployment file like the lab's own, with changed keys; env_vars are merged."""
        data = self.deployment
        env_vars = data["deployment"].get("env_vars", {}) | changes.pop("env_vars", {})
        data["deployment"] |= changes | {"env_vars": env_vars}
        data["deployment"] = {key: value for key, value in data["deployment"].items() if value is not None}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    def run(self, verb: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return ops(*verb.split(), "-i", str(self.inventory), *arguments, env=self.env, timeout=timeout)

    def json(self, verb: str, *arguments: str) -> dict[str, Any]:
        done = self.run(verb, *arguments, "--output", "json")
        assert done.stdout.startswith("{"), f"{verb} printed no JSON:\n{done.stdout}\n{done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def deploy(self, config: Path | None = None, *arguments: str) -> dict[str, Any]:
        """Deploy, and the JSON that came of it."""
        named = ["--config", str(config)] if config else []
        return self.json("deploy", "--yes", *named, *arguments)

    def ssh(self, command: str, host: str | None = None, timeout: float = 120) -> str:
        """Output of a command that root runs on a host."""
        config = str(self.folder / "ssh" / "config")
        full = ["ssh", "-F", config, host or self.hosts[0], f"sudo sh -c {shlex.quote(command)}"]
        done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=timeout)
        return done.stdout + done.stderr

    def clear(self) -> None:
        """Hosts without services, engines and caches kept: the state after a `remove`."""
        self.run("remove", "--yes")


def shorten_drains(path: Path) -> None:
    """The engine looks every five seconds whether it may stop; a simulator in a test need not take that long."""
    data = yaml.safe_load(path.read_text())
    if "simulator" in data["deployment"]["image"]:
        data["deployment"]["env_vars"] = {"SGLANG_SIMULATOR_DRAIN_POLL": "0.2"}
        path.write_text(yaml.safe_dump(data))


@pytest.fixture(scope="module")
def make_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Lab]]:
    """`make_lab(hosts=1, engine="docker", ...)`: a lab of the module's own, removed at its end."""
    made: list[str] = []
    state = tmp_path_factory.mktemp("state")

    def make(name: str, **options: object) -> Lab:
        given = [[f"--{key}"] if value is True else [f"--{key}", str(value)] for key, value in options.items()]
        arguments = [word for words in given for word in words]
        made.append(name)
        done = ops("lab", "up", "--name", name, *arguments, timeout=900)
        assert done.returncode == 0, done.stderr
        status = json.loads(ops("lab", "status", "--name", name, "--output", "json").stdout)
        inventory = Path(status["inventory"])
        shorten_drains(inventory.parent / "deployment.yaml")
        hosts = [host["name"] for host in status["hosts"]]
        return Lab(name, inventory, hosts, inventory.parent, {"SGLANG_OPS_STATE": str(state)})

    yield make
    for name in made:
        ops("lab", "down", "--name", name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test shows the journals of its hosts' services."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.when == "call" and report.failed and isinstance(lab, Lab):
        for host in lab.hosts:
            report.sections.append((f"journal of {host}", lab.ssh("journalctl -q -n 60 --no-pager -t 'sglang*'", host)))
    return report


