"""Locks on directories: nothing to create, nothing to leave behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold an exclusive lock on an existing directory; waits for whoever holds it."""
    while True:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_still(directory, descriptor):
            break
        os.close(descriptor)  # it was removed and made anew while we waited
    try:
        yield
    finally:
        os.close(descriptor)


def _is_still(directory: Path, descriptor: int) -> bool:
    ours = os.fstat(descriptor)
    try:
        there = directory.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
