"""Running a command and saying what it cost on this machine.

CPU seconds are those of the command and of every descendant that was waited for (``wait4``), plus what its
background SSH connections used meanwhile: ssh's ControlPersist masters leave the process tree, so they are found
by an environment variable that they inherit. Whatever runs on hosts is in neither.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

MARK = "SGLANG_OPS_BENCH"
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The measurement cannot go on."""


@dataclass(frozen=True)
class Run:
    """What a command cost, in seconds, and what it wrote."""

    wall: float
    cpu: float
    stdout: str = ""
    stderr: str = ""


def call(*argv: str) -> str:
    """What a command that is not measured wrote to stdout. Raises BenchError if it fails."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.strip() or done.stdout.strip()
        raise BenchError(f"{' '.join(argv)} ended with {done.returncode}:\n{told}")
    return done.stdout


def measure(
    argv: Sequence[str], *, mark: str = "", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Run:
    """Run a command to its end. Raises BenchError, with the end of its output, if it fails."""
    environment = {**os.environ, **(env or {}), MARK: mark}
    connections = background(mark) if mark else {}
    with TemporaryFile() as out, TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        stdout, stderr = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    if process.returncode:
        tail = "\n".join((stdout + stderr).splitlines()[-30:])
        raise BenchError(f"{' '.join(argv)} ended with {process.returncode}:\n{tail}")
    cpu = usage.ru_utime + usage.ru_stime
    if mark:
        cpu += sum(used - connections.get(pid, 0.0) for pid, used in background(mark).items())
    return Run(wall, cpu, stdout, stderr)


def measure_together(commands: Sequence[Sequence[str]]) -> Run:
    """Run commands at the same time; the wall time is that of the last. Raises BenchError if one fails."""
    started = time.perf_counter()
    processes = [
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for argv in commands
    ]
    cpu = 0.0
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu += usage.ru_utime + usage.ru_stime
    wall = time.perf_counter() - started
    failed = [argv for argv, process in zip(commands, processes, strict=True) if process.returncode]
    if failed:
        raise BenchError(f"{' '.join(failed[0])} failed")
    return Run(wall, cpu)


def background(mark: str) -> dict[int, float]:
    """CPU seconds so far, by pid, of the processes that commands with this mark have left running."""
    wanted = f"{MARK}={mark}".encode()
    found: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended, or is someone else's
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    found[int(entry.name)] = (int(fields[11]) + int(fields[12])) / _TICKS  # utime, stime: proc(5)
    return found


def end_background(mark: str) -> None:
    """Close the connections that commands with this mark have left open, and wait until they are gone."""
    for pid in background(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while background(mark):
        if time.monotonic() > deadline:
            raise BenchError(f"background processes of {mark} do not end: {sorted(background(mark))}")
        time.sleep(0.05)
