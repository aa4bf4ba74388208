"""Directories that one process has to itself, and that go with it, or, where it was killed, with a later one."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "sglang-ops-"
# What `kill -9` of a run leaves may be in use by what the run had started; a day later nothing of it lives.
ABANDONED_SECONDS = 86_400
_NAME = re.compile(PREFIX + r"[a-z0-9_]{8}")


@contextmanager
def directory() -> Iterator[Path]:
    """A new directory with mode 0700, removed at the end together with what killed processes have left."""
    sweep(Path(tempfile.gettempdir()))
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)  # not inherited: it says that we live
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep(place: Path, now: float | None = None) -> None:
    """Remove directories of ours, in `place`, whose process has been gone for a day."""
    long_ago = (now or time.time()) - ABANDONED_SECONDS
    for path in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            state = path.lstat()
            if _NAME.fullmatch(path.name) and state.st_uid == os.getuid() and state.st_mtime < long_ago:
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    """Remove a directory that nobody has locked. Raises OSError where somebody has."""
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
