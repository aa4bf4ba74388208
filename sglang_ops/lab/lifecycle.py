"""Making a lab, looking at it, and ending it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sglang_ops.errors import OpsError, UsageError
from sglang_ops.lab import cgroups, hosts, inventory, network, processes, requirements, services, ssh, tree
from sglang_ops.lab.locks import locked
from sglang_ops.lab.settings import MARK, Folder, Host, Plan, Shape, cache_root, folder, state_root, write

Log = Callable[[str], None]

_BOOT_PATIENCE = 60.0  # seconds for a lab of a few hosts to answer on port 22 ...
_BOOT_PATIENCE_EACH = 3.0  # ... and for every host more
_POLL = 0.05  # seconds between two looks at what is being waited for


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


def up(shape: Shape, *, log: Log) -> Folder:
    """Bring up a lab; one of this shape that is already running is left as it is.

    Raises PreflightError, before anything is touched, on a machine that cannot carry it, and OpsError where
    something fails on the way: then nothing of the lab is left.
    """
    lab = folder(shape.name)
    requirements.check_root("up")
    if is_up(shape):
        log(f"lab {shape.name} is already up: {shape}")
        return lab
    cache = cache_root()
    requirements.check(shape, lab.root, cache, cold=not is_cached(shape))
    lab.root.mkdir(parents=True, exist_ok=True)
    with locked(lab.root):
        if any(lab.root.iterdir()):
            log("clearing away what an interrupted lab up has left")
            _remove(shape.name)
            lab.root.mkdir()
        try:
            _build(lab, shape, cache, log=log)
        except BaseException:
            _remove(shape.name)
            raise
    return lab


def is_up(shape: Shape) -> bool:
    """Whether this very lab is up. Raises UsageError where another one has its name."""
    lab = folder(shape.name)
    plan = lab.load_plan()
    if plan is None or not lab.inventory.exists() or processes.find_supervisor(lab) is None:
        return False
    if plan.shape != shape:
        raise UsageError(
            f"lab {shape.name} is up with another shape: {plan.shape}",
            fix=f"end it with: sglang-ops lab down --name {shape.name}, or choose another --name",
        )
    return True


def is_cached(shape: Shape) -> bool:
    """Whether everything that takes long has been made by an earlier lab."""
    return tree.is_cached(shape.os, cache_root())


def status(name: str) -> LabState:
    """What there is of a lab; asks nothing but the state directory and the machine's processes."""
    lab = folder(name)
    plan = lab.load_plan()
    running = plan is not None and processes.find_supervisor(lab) is not None
    states: dict[str, str] = {}
    if running:
        with contextlib.suppress(FileNotFoundError):
            states = json.loads(lab.status.read_text())
    return LabState(
        name=name,
        inventory=str(lab.inventory),
        running=running,
        hosts=tuple(_host_state(plan, host, states.get(host.name, "off")) for host in plan.hosts) if plan else (),
        registry=plan.registry_address if plan else "",
        model_source=plan.model_source if plan else "",
    )


def down(name: str, *, log: Log) -> bool:
    """End a lab and remove all of it but the cache; False if there was nothing of it."""
    requirements.check_root("down")
    lab = folder(name)
    if not lab.root.exists() and processes.find_supervisor(lab) is None:
        return False
    processes.end_all(lab)  # before the lock: an interrupted lab up may leave a build behind, a running one has it
    lab.root.mkdir(parents=True, exist_ok=True)
    with locked(lab.root):
        _remove(name)
    log(f"lab {name} is gone")
    return True
