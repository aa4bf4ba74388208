"""Making a lab, looking at it, and ending it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from sglang_ops.errors import UsageError
from sglang_ops.lab import construction, images, network, power, processes, requirements, tree
from sglang_ops.lab.locks import locked
from sglang_ops.lab.settings import Folder, Plan, Shape, cache_root, folder, state_root

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
        f"  {', '.join(network.needed_settings(shape.machines))}",
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
            construction.clear(lab)
            construction.build(lab, shape, log=log)
        except BaseException:
            construction.remove(lab)
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
    return tree.is_cached(shape.os, cache) and images.is_cached(shape.server, cache, gateway=shape.gateway)


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
    construction.end(lab)
    try:
        with locked(lab.root):
            construction.remove(lab)
    except FileNotFoundError:
        if lab.root.exists():
            raise
    return True


def purge() -> int:
    """Remove the cache; the bytes won. Raises UsageError while a lab shows what is in it."""
    requirements.check_root()
    if labs := construction.labs():
        raise UsageError(
            f"Lab {labs[0].root.name} uses the cache.",
            fix="End it first: sglang-ops lab down --name " + labs[0].root.name,
        )
    won = sum(path.lstat().st_size for path in cache_root().rglob("*"))
    if cache_root().exists():
        shutil.rmtree(cache_root())
        construction.remove_own_parent(cache_root())
    return won


def _name_option(name: str) -> str:
    return "" if name == Shape().name else f" --name {name}"
