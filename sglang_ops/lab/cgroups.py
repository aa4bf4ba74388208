"""Control groups of a lab: one for each host, so that no two systemds manage the same one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")


def enter(lab: str, host: str) -> None:
    """Move the calling process into the group of a host; systemd-nspawn puts the host below it.

    Where the machine mounts cgroup v2 alone, the machine's controllers are handed down, as far as it has them.
    """
    for mount in _hierarchies("cgroup2"):
        group = mount / _name(lab) / host
        group.mkdir(parents=True, exist_ok=True)
        controllers = (mount / "cgroup.controllers").read_text().split()
        for parent in (mount, group.parent):
            for controller in controllers:
                with contextlib.suppress(OSError):
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        (group / "cgroup.procs").write_text(str(os.getpid()))


def remove(lab: str) -> None:
    """Remove the lab's groups in every hierarchy; its processes must have ended."""
    for mount in _hierarchies("cgroup2", "cgroup"):
        group = mount / _name(lab)
        if group.is_dir():
            for directory, _, _ in os.walk(group, topdown=False):
                Path(directory).rmdir()


def _name(lab: str) -> str:
    return f"sglang-ops-lab-{lab}"


def _hierarchies(*kinds: str) -> list[Path]:
    """Where control group file systems of these kinds are mounted."""
    mounts = []
    for line in _MOUNTS.read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] in kinds:
            mounts.append(Path(left.split()[4]))
    return mounts
