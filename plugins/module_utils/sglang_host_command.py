"""Running programs on a host, and numbers as people read them. Python 3.8, standard library."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

NOT_FOUND = 127
TIMED_OUT = 124


@dataclass(frozen=True)
class Output:
    """How a program ended. `stdout` holds both streams where they were read together."""

    rc: int
    stdout: str = ""
    stderr: str = ""

    @property
    def ok(self) -> bool:
        return self.rc == 0

    @property
    def error(self) -> str:
        """The last line that says something, for a one-sentence message."""
        lines = [line.strip() for line in (self.stdout + "\n" + self.stderr).splitlines() if line.strip()]
        return lines[-1] if lines else "exit code %d" % self.rc


def environment(**extra: str) -> dict[str, str]:
    """The module's own environment with messages in English, so that they can be told apart."""
    return dict(os.environ, LC_ALL="C.UTF-8", LANGUAGE="C", **extra)


def run(*argv: str, timeout: float = 60) -> Output:
    """Run a program to its end. A program that is missing or too slow is an ordinary outcome (127, 124)."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
            encoding="utf-8", errors="replace", timeout=timeout, env=environment(),
        )
    except FileNotFoundError:
        return Output(NOT_FOUND, stderr="%s is not installed" % argv[0])
    except subprocess.TimeoutExpired:
        return Output(TIMED_OUT, stderr="%s did not answer within %g s" % (argv[0], timeout))
    return Output(done.returncode, done.stdout, done.stderr)


def free_bytes(path: str) -> int:
    """Free bytes for root below `path`, or below its nearest ancestor that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    usage = os.statvfs(path)
    return usage.f_bavail * usage.f_frsize


def size(count: float) -> str:
    """A number of bytes in decimal units: 412 MB, 14.9 GB. Below a megabyte: 4 kB, 300 bytes."""
    if count >= 1e9:
        return "%.1f GB" % (count / 1e9)
    if count >= 1e6:
        return "%d MB" % (count / 1e6)
    return "%d kB" % (count / 1e3) if count >= 1e3 else "%d bytes" % count


def share(done: float, total: float) -> str:
    """Progress in bytes, both numbers in the unit of the total: 3.1 / 14.9 GB. Without a total: 3.1 GB."""
    if total <= 0:
        return size(done)
    number, unit = size(total).split(" ")
    scale = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "bytes": 1}[unit]
    shown = "%.1f" % (done / scale) if unit == "GB" else "%d" % (done / scale)
    return "%s / %s %s" % (shown, number, unit)
