"""Building a lab on the machine, and taking it away again, however far it came."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sglang_ops.errors import OpsError
from sglang_ops.lab import (
    cgroups,
    disk,
    images,
    inventory,
    model,
    network,
    power,
    processes,
    questions,
    requirements,
    ssh,
    tree,
)
from sglang_ops.lab.locks import locked
from sglang_ops.lab.settings import MARK, Folder, Plan, Shape, cache_root, state_root, write

Log = Callable[[str], None]

_MACHINE = Path("/run/sglang-ops-lab")
_SETTINGS = "kernel-settings.json"


def build(lab: Folder, shape: Shape, *, log: Log) -> None:
    """Make everything that a lab needs, and the lab; its empty directory is there and locked.

    Raises OpsError and leaves what it has made: for `remove`.
    """
    with _marking_children(lab):
        plan = _provide(lab, shape, log=log)
        log(f"making {shape.machines} hosts in {plan.subnet}")
        lab.logs.mkdir()
        lab.disk.mkdir()
        disk.make(lab.disk_image)
        ssh.make_keys(lab, plan)
        network.connect(plan, _supervise(lab))
        power.wait_for_services(lab, plan)
        power.wait_for_hosts(lab, plan.hosts, log=log)
    write(lab.deployment, inventory.deployment(plan))
    questions.write(lab.root)
    write(lab.inventory, inventory.inventory(lab, plan))  # last: its presence says that the lab is complete


@contextlib.contextmanager
def _marking_children(lab: Folder) -> Iterator[None]:
    """What is started in here carries the lab's mark, and is found by it whatever becomes of us."""
    os.environ[MARK] = str(lab.root)
    try:
        yield
    finally:
        del os.environ[MARK]


def _provide(lab: Folder, shape: Shape, *, log: Log) -> Plan:
    """See that packages, host tree, images and model are there, and settle the lab's plan."""
    cache = cache_root()
    requirements.install_packages(log)
    with ThreadPoolExecutor() as pool:  # both wait for the network most of the time
        host_tree = pool.submit(tree.ensure, shape.os, cache, log=log)
        registry = images.ensure_registry(shape.server, cache, log, gateway=shape.gateway)
        models = model.ensure_model(cache)

    with _machine() as machine:
        taken = network.machine_networks() + [network.as_network(plan) for plan in _plans()]
        plan = Plan(
            shape=shape,
            network=network.free_network(taken),
            mtu=network.uplink_mtu(),
            tree=str(host_tree.result()),
            registry=str(registry),
            models=str(models),
        )
        write(lab.plan, plan.to_json())
        (machine / plan.uplink).unlink(missing_ok=True)
        (machine / plan.uplink).symlink_to(lab.root)
        network.raise_settings(sum(plan.shape.machines for plan in _plans()), machine / _SETTINGS)
    return plan


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


def end(lab: Folder) -> None:
    """End all processes of a lab, and with them what only they see."""
    if supervisor := processes.find_supervisor(lab):
        disk.abandon(lab.disk_image, Path(f"/proc/{supervisor}/root{lab.disk}"))
    processes.end_all(lab)


def clear(lab: Folder) -> None:
    """Undo everything of a lab, however far it came, and empty its directory."""
    end(lab)
    network.disconnect(lab.root.name, lab.load_plan())
    cgroups.remove(lab.root.name)
    disk.wait_until_free(lab.disk_image)
    for path in lab.root.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove(lab: Folder) -> None:
    """Undo everything of a lab and forget it; the last one of the machine also puts back its settings."""
    clear(lab)
    with _machine() as machine:
        for link in machine.glob("sglab-*"):
            if Folder(link.readlink()).load_plan() is None:
                link.unlink()
        if not _plans():
            network.restore_settings(machine / _SETTINGS)
    with locked(state_root()):
        lab.root.rmdir()
        if not labs():
            with contextlib.suppress(OSError):  # not empty: another version kept the machine's settings here
                state_root().rmdir()
            remove_own_parent(state_root())


def remove_own_parent(path: Path) -> None:
    """The directory above, if it bears our name and is empty now."""
    if path.parent.name == "sglang-ops":
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def labs() -> list[Folder]:
    root = state_root()
    return [Folder(path) for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []


@contextlib.contextmanager
def _machine() -> Iterator[Path]:
    """The lock of all labs of this machine, in whatever state directory they are, and the directory of what they agree
    on: a link to each, and the settings that the first one found. It goes with a reboot, as they do.
    """
    with contextlib.ExitStack() as held:
        while True:
            _MACHINE.mkdir(mode=0o755, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # whoever held it before has removed it
                held.enter_context(locked(_MACHINE))
                break
        yield _MACHINE
        if not any(_MACHINE.iterdir()):
            _MACHINE.rmdir()


def _plans() -> list[Plan]:
    """Of all labs of this machine that have one."""
    folders = {lab.root for lab in labs()} | {link.readlink() for link in _MACHINE.glob("sglab-*")}
    return [plan for plan in (Folder(root).load_plan() for root in folders) if plan]
