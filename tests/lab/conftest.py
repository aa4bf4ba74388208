"""Labs for tests: a module's own, or one that modules of this process share; taken down whatever happens."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import sharing
import yaml

ROOT = Path(__file__).resolve().parents[2]


# Files that take longest begin first, so that at the end no worker is left alone with one; the others follow.
LONGEST_FIRST = (
    "test_plan_deploy", "test_lab", "test_deploy", "test_interrupted", "test_driver", "test_fanout", "test_engine",
    "test_injection", "test_air_gap", "test_models", "test_cache_devices", "test_survival", "test_diagnosis",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lab tests need root on Linux; anywhere else they are skipped, and say so. In CI they must run."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
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
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        cwd=os.environ.get("PYTEST_CWD", "/"),
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
        """Hosts without services, engines and caches kept: the state after a `remove` of all of them."""
        for name in {row["name"] for row in self.json("status")["services"]}:
            self.run("remove", "--yes", "--service", name.removeprefix("sglang-"))


def quicken(lab: Path) -> None:
    """Times that a test need not take: a server is proven as soon as it serves, and a simulator drains at once.

    A test of the soak says how long it is to be.
    """
    inventory, deployment = lab / "inventory.yml", lab / "deployment.yaml"
    hosts = yaml.safe_load(inventory.read_text())
    hosts["all"]["vars"]["sglang_server_soak"] = 0
    inventory.write_text(yaml.safe_dump(hosts))
    data = yaml.safe_load(deployment.read_text())
    if "simulator" in data["deployment"]["image"]:
        data["deployment"]["env_vars"] = {"SGLANG_SIMULATOR_DRAIN_POLL": "0.2"}
        deployment.write_text(yaml.safe_dump(data))


def bring_up(name: str, state: Path, **options: object) -> Lab:
    """`lab up --name …`, and what of it tests need; runs leave their folders in `state`."""
    given = [[f"--{key}"] if value is True else [f"--{key}", str(value)] for key, value in options.items()]
    done = ops("lab", "up", "--name", name, *(word for words in given for word in words), timeout=900)
    assert done.returncode == 0, done.stderr
    status = json.loads(ops("lab", "status", "--name", name, "--output", "json").stdout)
    inventory = Path(status["inventory"])
    quicken(inventory.parent)
    hosts = [host["name"] for host in status["hosts"]]
    return Lab(name, inventory, hosts, inventory.parent, {"SGLANG_OPS_STATE": str(state)})


@pytest.fixture(scope="module")
def make_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Lab]]:
    """`make_lab(hosts=1, engine="docker", ...)`: a lab of the module's own with blank hosts, removed at its end."""
    made: list[str] = []
    state = tmp_path_factory.mktemp("state")

    def make(name: str, **options: object) -> Lab:
        made.append(name)
        return bring_up(name, state, **options)

    yield make
    for name in made:
        ops("lab", "down", "--name", name)


@pytest.fixture(scope="session", autouse=True)
def scratch() -> Iterator[None]:
    """What killed runs leave of temporary files lies in one directory, and goes; its path is short, for sockets."""
    made = tempfile.mkdtemp(prefix="t-")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", made)
        yield
    shutil.rmtree(made, ignore_errors=True)


class Shared:
    """The lab that the modules of one process share: two hosts with twelve GPUs, docker and the simulator's image."""

    def __init__(self, name: str, state: Path) -> None:
        self.name, self.state = name, state
        self.lab: Lab | None = None
        self.files: dict[Path, str] = {}

    def use(self) -> Lab:
        if self.lab is None:
            self.lab = bring_up(self.name, self.state, hosts=2, gpus=12, server="simulator")
            done = self.lab.run("models pull")  # brings engine, image and model
            assert done.returncode == 0, done.stderr
            sharing.remember(self.lab)
            self.files = {path: path.read_text() for path in self.lab.folder.glob("*.y*ml")}
        return self.lab

    def put_back(self) -> None:
        """For the next module; a lab that cannot be put back goes, and the next module gets a new one."""
        if self.lab is None:
            return
        for path in self.lab.folder.glob("*.y*ml"):
            path.unlink()
        for path, text in self.files.items():
            path.write_text(text)
        if different := sharing.put_back(self.lab):
            warnings.warn(f"The shared lab is made anew; what was left:\n{different}", stacklevel=1)
            self.end()

    def end(self) -> None:
        ops("lab", "down", "--name", self.name)
        self.lab = None


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "one")
    found = Shared(f"t-share-{worker}", tmp_path_factory.mktemp("state"))
    yield found
    found.end()


@pytest.fixture(scope="module")
def share_lab(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Lab]]:
    """`share_lab(hosts=1)`: the first hosts of the shared lab, ready and without services; put back afterwards.

    For modules that need no blank hosts: they save the installation of the engine, which is most of a first deploy.
    """

    def share(hosts: int = 1) -> Lab:
        lab = shared.use()
        data = yaml.safe_load(lab.inventory.read_text())
        data["all"]["hosts"] = {host: data["all"]["hosts"][host] for host in lab.hosts[:hosts]}
        lab.inventory.write_text(yaml.safe_dump(data))
        return replace(lab, hosts=lab.hosts[:hosts], env={"SGLANG_OPS_STATE": str(tmp_path_factory.mktemp("state"))})

    yield share
    shared.put_back()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test shows the journals of its hosts' services."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.when == "call" and report.failed and isinstance(lab, Lab):
        for host in lab.hosts:
            report.sections.append((f"journal of {host}", lab.ssh("journalctl -q -n 60 --no-pager -t 'sglang*'", host)))
    return report
