"""Who is at work on a run of this machine: a lock in its directory, with the program's process id.

The program inherits the lock from the command that begins it, and has it as long as it lives, whatever becomes of the
command.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from sglang_ops.errors import UsageError

FILE = "lock"
_TRIES, _PAUSE_SECONDS = 10, 0.1  # somebody who only looks has the lock for a moment


def holder(directory: Path) -> int | None:
    """The process at work, 0 where it is about to begin, None where there is none."""
    try:
        with (directory / FILE).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0)
    except FileNotFoundError:
        pass
    return None


@contextlib.contextmanager
def held(directory: Path) -> Iterator[int]:
    """The lock's descriptor, for the program to inherit. Raises UsageError where somebody has it."""
    handle = os.open(directory / FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take(handle, directory.name)
        yield handle
    finally:
        os.close(handle)


def _take(handle: int, run: str) -> None:
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_PAUSE_SECONDS)
    process = os.pread(handle, 20, 0).decode().strip() or "about to begin"
    raise UsageError(
        f"The run {run} is at work on this machine (process {process}).",
        fix="`sglang-ops evaluate wait` watches it, `sglang-ops evaluate cancel` ends it.",
    )
