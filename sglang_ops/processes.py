"""Process trees, read from /proc. Where there is none (macOS) nothing is found, and nothing is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    found: list[int] = []
    for task in PROC.glob(f"{pid}/task/*/children"):
        with suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found


def tree(leaders: Iterable[int]) -> dict[int, str]:
    """The leaders and everything below them, each with its birth, so that a reused number is not taken for it."""
    found: dict[int, str] = {}
    queue = list(leaders)
    while queue:
        pid = queue.pop()
        birth = _birth(pid)
        if birth and pid not in found:
            found[pid] = birth
            queue += children(pid)
    return found


def kill(known: Mapping[int, str]) -> None:
    """Kill those that are still the processes they were."""
    for pid, birth in known.items():
        if _birth(pid) == birth:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _birth(pid: int) -> str:
    """Start time in clock ticks since boot, field 22 of stat; the name before it may hold blanks and brackets."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
