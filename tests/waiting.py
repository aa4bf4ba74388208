"""Waiting in tests: for what can be seen, however long a busy machine takes, and never for a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Seen = TypeVar("Seen")


def wait_until(condition: Callable[[], Seen], seconds: float = 120, *, what: str = "it", every: float = 0.1) -> Seen:
    """Ask again and again until the answer is true, and return it; fails with the last answer after `seconds`.

    The time limit is for a machine that does several other things: what must be quick is measured, not waited for.
    """
    deadline = time.monotonic() + seconds
    while not (seen := condition()):
        assert time.monotonic() < deadline, f"{what} never came to be in {seconds:.0f} s; last seen: {seen!r}"
        time.sleep(every)
    return seen


def at_most(seconds: float) -> float:
    """Seconds that something quick may take here and now: more, where others keep the processors busy as well."""
    return seconds * max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))
