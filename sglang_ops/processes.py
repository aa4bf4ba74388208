"""Process trees, read from /proc. Where there is none (macOS) nothing is found, and nothing is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
STATE, PARENT, SESSION, BIRTH = 0, 1, 3, 19  # places of these, and of the start time (in ticks since boot), in _stat
ENDED = ("Z", "X")


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    found: list[int] = []
    with suppress(OSError):  # it, or a thread of it, may end at any moment
        for task in (PROC / str(pid) / "task").iterdir():
            with suppress(OSError):
                found += [int(word) for word in (task / "children").read_text().split()]
    return found


def parent(pid: int) -> int:
    """Its parent, or what has taken it in since that one died; 0 if there is none, or no /proc."""
    fields = _stat(pid)
    return int(fields[PARENT]) if fields else 0


def tree(leaders: Iterable[int]) -> dict[int, str]:
    """The leaders and everything below them, each with its birth, so that a reused number is not taken for it."""
    found: dict[int, str] = {}
    queue = list(leaders)
    while queue:
        pid = queue.pop()
        birth = born(pid)
        if birth and pid not in found:
            found[pid] = birth
            queue += children(pid)
    return found


def in_sessions(leaders: Iterable[int]) -> dict[int, str]:
    """Every process in a session that one of the leaders opened: also those whose parents are gone."""
    wanted = {str(pid) for pid in leaders}
    pids = [int(path.name) for path in PROC.glob("[0-9]*")]
    return {pid: fields[BIRTH] for pid in pids if (fields := _stat(pid)) and fields[SESSION] in wanted}


def kill(known: Mapping[int, str]) -> None:
    """Kill those that are still the processes they were."""
    for pid, birth in known.items():
        if born(pid) == birth:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def born(pid: int) -> str:
    """When a process began, in ticks since boot; "" if there is none, or no /proc."""
    fields = _stat(pid)
    return fields[BIRTH] if fields else ""


def lives(pid: int, birth: str) -> bool:
    """Whether it is still that process, and has not ended: a parent may be slow to collect it."""
    if not PROC.is_dir():
        return True
    fields = _stat(pid)
    return bool(fields) and fields[BIRTH] == birth and fields[STATE] not in ENDED


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself hold blanks and brackets."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
