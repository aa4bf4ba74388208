"""Finding a lab's processes, and ending them all.

Nothing has to be recorded for this: what belongs to a lab carries its state directory in the environment,
from the supervisor down to a half-done build, and the kernel keeps that readable in /proc.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

from sglang_ops.errors import OpsError
from sglang_ops.lab.settings import MARK, Folder

_PATIENCE = 30.0  # seconds for the kernel to take down a lab's namespaces; a full one takes a few


def pid_in_namespaces(pid: int) -> list[int]:
    """The pid of a process in each pid namespace it is in, the reader's own first. Empty if it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return []


def find_supervisor(folder: Folder) -> int | None:
    """The lab's supervisor: the marked process that is the first one of a namespace right below ours."""
    for pid in marked(folder):
        namespaces = pid_in_namespaces(pid)
        if len(namespaces) == 2 and namespaces[1] == 1:
            return pid
    return None


def marked(folder: Folder) -> Iterator[int]:
    """The pids of all processes that carry the lab's mark, the caller and its ancestors apart."""
    mark = f"{MARK}={folder.root}".encode()
    family = _family()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in family:
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:  # it has ended
                continue
            if mark in environment.split(b"\0"):
                yield int(entry.name)


def end_all(folder: Folder) -> None:
    """Kill the lab's supervisor, and with it all that runs in the lab, and whatever else carries its mark.

    Returns when they have ended. Raises OpsError if the kernel has not done it within half a minute.
    """
    while pids := list(marked(folder)):
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
            raise OpsError(f"process {pid} of the lab does not end", fix="look at it with: ps -fp " + str(pid))
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _family() -> set[int]:
    """The caller and its ancestors, who may have the mark in their environment for a reason of their own."""
    family = {os.getpid()}
    pid = os.getppid()
    while pid > 1:
        family.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return family
