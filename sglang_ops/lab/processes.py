"""Finding a lab's processes, and ending them all.

Nothing has to be recorded for this: what belongs to a lab carries its state directory in the environment,
from the supervisor down to a half-done build, and the kernel keeps that readable in /proc.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path

from sglang_ops.errors import OpsError
from sglang_ops.lab.settings import MARK, Folder

_PATIENCE = 30.0  # seconds for the kernel to take down a lab's namespaces; a full one takes a few


def pid_in_namespaces(pid: int) -> list[int]:
    """The pid of a process in each pid namespace it is in, the reader's own first. Empty if it has ended."""
    for line in _read(pid, "status").splitlines():
        if line.startswith(b"NSpid:"):
            return [int(number) for number in line.split()[1:]]
    return []


def supervisor_command(folder: Folder) -> list[str]:
    return [sys.executable, "-m", "sglang_ops.lab.supervisor", str(folder.root)]


def find_supervisor(folder: Folder) -> int | None:
    """The lab's supervisor, known by its command line, which everyone may read, and by being process 1."""
    arguments = "\0".join([*supervisor_command(folder)[1:], ""]).encode()
    for pid in _pids():
        if _read(pid, "cmdline").endswith(arguments) and pid_in_namespaces(pid)[-1:] == [1]:
            return pid
    return None


def marked(folder: Folder) -> list[int]:
    """The pids of all processes that carry the lab's mark, the caller and its ancestors apart."""
    mark = f"{MARK}={folder.root}".encode()
    family = _family()
    return [pid for pid in _pids() if pid not in family and mark in _read(pid, "environ").split(b"\0")]


def end_all(folder: Folder) -> None:
    """Kill the lab's supervisor, and with it all that runs in the lab, and whatever else carries its mark.

    Returns when they have ended. Raises OpsError if the kernel has not done it within half a minute.
    """
    while pids := marked(folder):
        for pid in pids:
            _kill(pid)


def _kill(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], _PATIENCE)[0]:
            raise OpsError(f"Process {pid} of the lab does not end.", fix=f"Look at it with `ps -fp {pid}`.")
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    """A file of a process in /proc; empty if the process has ended or is none of the caller's business."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _family() -> set[int]:
    """The caller and its ancestors, who may have the mark in their environment for a reason of their own."""
    family = {os.getpid()}
    pid = os.getppid()
    while pid > 1:
        family.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return family
