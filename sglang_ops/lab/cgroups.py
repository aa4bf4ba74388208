"""Control groups of a lab: one for each host, so that no two systemds manage the same one."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from sglang_ops.errors import OpsError

_PATIENCE = 30.0  # seconds for killed processes to leave their group
_MOUNTS = Path("/proc/self/mountinfo")


def enter(lab: str, name: str) -> None:
    """Move the calling process into a group of the lab; systemd-nspawn puts the host that it boots below it.

    Where the machine mounts cgroup v2 alone, its controllers are handed down, as far as it has them.
    """
    for mount in _hierarchies("cgroup2"):
        group = mount / _name(lab) / name
        _remove(group)  # a host that was booted before has left groups below it, and then nothing may enter
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
        _remove(mount / _name(lab))


def _remove(group: Path) -> None:
    """Remove a group and all below it. What was killed a moment ago may still be in there, without a name in /proc."""
    deadline = time.monotonic() + _PATIENCE
    for directory, _, _ in os.walk(group, topdown=False):
        while not _removed(Path(directory)):
            if time.monotonic() > deadline:
                raise OpsError(f"The control group {directory} is still in use.", fix="See its cgroup.procs.")
            time.sleep(0.02)


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:  # somebody else clears up, too
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _name(lab: str) -> str:
    return f"sglang-ops-lab-{lab}"


def _hierarchies(*kinds: str) -> list[Path]:
    """Where control group file systems of these kinds are mounted; the first place of each."""
    mounts: dict[str, Path] = {}
    for line in _MOUNTS.read_text().splitlines():
        left, _, right = line.partition(" - ")
        _, _, device, _, place, *_ = left.split()
        if right.split()[0] in kinds:
            mounts.setdefault(device, Path(place))
    return list(mounts.values())
