"""Making a lab, looking at it, and ending it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sglang_ops.errors import OpsError, UsageError
from sglang_ops.lab import (
    cgroups,
    hosts,
    images,
    inventory,
    model,
    network,
    power,
    processes,
    requirements,
    services,
    ssh,
    tree,
)
from sglang_ops.lab.locks import locked
from sglang_ops.lab.settings import MARK, Folder, Plan, Shape, cache_root, folder, state_root, write

Log = Callable[[str], None]


@dataclass(frozen=True)
class HostState:
    """A host as `lab status` shows it; `state` is running, booting, off or failed."""

    name: str
    address: str
    state: str
    os: str
    engine: str


@dataclass(frozen=True)
class LabState:
    """A lab as `lab status` shows it."""

    name: str
    inventory: str
    running: bool
    hosts: tuple[HostState, ...]
    registry: str
    model_source: str


def intentions(shape: Shape) -> list[str]:
    """What `up` will do to the machine, as sentences, and what it needs root for."""
    packages = requirements.missing_packages()
    lines = [f"lab {shape.name}: {shape}"]
    if packages:
        lines.append(f"installs with apt: {' '.join(packages)}")
    if not is_cached(shape):
        lines.append(f"builds once, some minutes, kept in {cache_root()}: host tree, images, model")
    lines += [
        "needs root for: process, mount and network namespaces, in which all of the lab lives; a virtual cable into",
        "  them; a masquerade rule, so that hosts reach package mirrors; control groups; and the kernel settings",
        f"  {', '.join(network.needed_settings(shape.hosts))}",
        f"`sglang-ops lab down{_name_option(shape.name)}` takes all of that back",
    ]
    return lines


def up(shape: Shape, *, log: Log) -> Folder:
    """Bring up a lab; one of this shape that is already up is left as it is.

    Raises PreflightError, before anything is touched, on a machine that cannot carry it, and OpsError where
    something fails on the way: then nothing of the lab is left.
    """
    lab = folder(shape.name)
    if is_up(shape):
        return lab
    check(shape)
    lab.root.mkdir(parents=True, exist_ok=True)
    with locked(lab.root):
        if is_up(shape):  # by someone who held the lock before us
            return lab
        try:
            _clear(lab)
            with _marking_children(lab):
                _build(lab, shape, log=log)
        except BaseException:
            _remove(lab)
            raise
    return lab


def check(shape: Shape) -> None:
    """Refuse a machine that cannot carry the lab. Raises PreflightError; touches nothing."""
    requirements.check(shape, state_root(), cache_root(), cold=not is_cached(shape))


def is_up(shape: Shape) -> bool:
    """Whether this very lab is up. Raises UsageError where another one has its name."""
    lab = folder(shape.name)
    plan = lab.load_plan()
    if plan is None or not lab.inventory.exists() or processes.find_supervisor(lab) is None:
        return False
    if plan.shape != shape:
        raise UsageError(
            f"Lab {shape.name} is up with another shape: {plan.shape}.",
            fix=f"End it with `sglang-ops lab down{_name_option(shape.name)}`, or choose another --name.",
        )
    return True


def is_cached(shape: Shape) -> bool:
    """Whether everything that takes long was made by an earlier lab."""
    cache = cache_root()
    return tree.is_cached(shape.os, cache) and images.is_cached(shape.server, cache)


def load(name: str) -> tuple[Folder, Plan]:
    """The lab of that name. Raises UsageError if there is none."""
    lab = folder(name)
    plan = lab.load_plan()
    if plan is None:
        raise UsageError(f"There is no lab {name}.", fix=f"Make one with `sglang-ops lab up{_name_option(name)}`.")
    return lab, plan


def status(name: str) -> LabState:
    """What there is of a lab: its plan, its processes, and whether its hosts answer."""
    lab = folder(name)
    plan = lab.load_plan()
    if plan is None:
        return LabState(name, str(lab.inventory), False, (), "", "")
    running = processes.find_supervisor(lab) is not None
    states = power.states(lab, plan) if running else {}
    return LabState(
        name=name,
        inventory=str(lab.inventory),
        running=running,
        hosts=tuple(
            HostState(host.name, host.address, states.get(host.name, "off"), plan.shape.os, plan.shape.engine)
            for host in plan.hosts
        ),
        registry=plan.registry_address,
        model_source=plan.model_source,
    )


def down(name: str) -> bool:
    """End a lab and remove all of it but the cache; False if there was nothing to end.

    A `lab up` that is still at work loses what it started, fails, and clears away the rest itself.
    """
    requirements.check_root()
    lab = folder(name)
    if not lab.root.exists():
        return False
    processes.end_all(lab)
    with locked(lab.root):
        _remove(lab)
    return True


def purge() -> int:
    """Remove the cache; the bytes won. Raises UsageError while a lab shows what is in it."""
    requirements.check_root()
    if labs := _labs():
        raise UsageError(
            f"Lab {labs[0].root.name} uses the cache.",
            fix="End it first: sglang-ops lab down --name " + labs[0].root.name,
        )
    won = sum(path.lstat().st_size for path in cache_root().rglob("*"))
    shutil.rmtree(cache_root(), ignore_errors=True)
    return won


@contextlib.contextmanager
def _marking_children(lab: Folder) -> Iterator[None]:
    """What is started in here carries the lab's mark, and is found by it whatever becomes of us."""
    os.environ[MARK] = str(lab.root)
    try:
        yield
    finally:
        del os.environ[MARK]


def _build(lab: Folder, shape: Shape, *, log: Log) -> None:
    cache = cache_root()
    requirements.install_packages(log)
    tree_path = tree.ensure(shape.os, cache, log=log)
    registry = images.ensure_registry(shape.server, cache, log)
    models = model.ensure_model(cache)

    with locked(state_root()):
        taken = network.machine_networks() + [network.as_network(plan) for plan in _plans()]
        plan = Plan(
            shape=shape,
            network=network.free_network(taken),
            mtu=network.uplink_mtu(),
            tree=str(tree_path),
            registry=str(registry),
            models=str(models),
        )
        write(lab.plan, plan.to_json())
        network.raise_settings(shape.hosts, _settings_record())

    log(f"making {shape.hosts} hosts in {plan.subnet}")
    _prepare(lab, plan)
    network.connect(plan, _supervise(lab))
    power.wait_for_services(lab, plan)
    power.wait_for_hosts(lab, plan.hosts, log=log)
    write(lab.deployment, inventory.deployment(plan))
    write(lab.inventory, inventory.inventory(lab, plan))  # last: its presence says that the lab is complete


def _prepare(lab: Folder, plan: Plan) -> None:
    lab.logs.mkdir()
    ssh.make_keys(lab, plan)
    services.prepare(lab, plan)
    resolv_conf = network.resolv_conf()
    for host in plan.hosts:
        hosts.prepare(lab, plan, host, resolv_conf=resolv_conf)


def _supervise(lab: Folder) -> int:
    """Start the supervisor, detached from us, as process 1 of new namespaces; its pid."""
    package_root = str(Path(__file__).parents[2])
    with lab.log("supervisor").open("ab") as log:
        unshare = subprocess.Popen(
            [
                "unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net",
                *processes.supervisor_command(lab),
            ],
            env={"PATH": requirements.search_path(), "PYTHONPATH": package_root, MARK: str(lab.root)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )  # fmt: skip
    while (supervisor := processes.find_supervisor(lab)) is None:
        if unshare.poll() is not None:
            raise OpsError(f"The lab's supervisor did not start: {lab.log('supervisor').read_text().strip()}")
    return supervisor


def _clear(lab: Folder) -> None:
    """Undo everything of a lab, however far it came, and empty its directory."""
    processes.end_all(lab)
    network.disconnect(lab.root.name, lab.load_plan())
    cgroups.remove(lab.root.name)
    for path in lab.root.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(lab: Folder) -> None:
    """Undo everything of a lab and forget it; the last one also puts back the machine's settings."""
    _clear(lab)
    with locked(state_root()):
        lab.root.rmdir()
        if not _labs():
            network.restore_settings(_settings_record())
            state_root().rmdir()
            if state_root().parent.name == "sglang-ops":
                with contextlib.suppress(OSError):  # there is something else in it
                    state_root().parent.rmdir()


def _labs() -> list[Folder]:
    root = state_root()
    return [Folder(path) for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []


def _plans() -> list[Plan]:
    return [plan for plan in (lab.load_plan() for lab in _labs()) if plan]


def _settings_record() -> Path:
    return state_root() / "kernel-settings.json"


def _name_option(name: str) -> str:
    return "" if name == Shape().name else f" --name {name}"
