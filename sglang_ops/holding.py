"""The locks of a run, seen from its action plugins: how the run's life is told, and how a worker gets a lock.

`Life` must be made in ansible-playbook itself, before it forks the worker that asks: the module of an action plugin
is, when Ansible loads it.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sglang_ops import content
from sglang_ops import identity as operator
from sglang_ops.ansible_action import PROGRESS_VARIABLE

FREED_SECONDS = 6.0
_HOLDER = "import sys; g = {}; exec(sys.stdin.buffer.read(%d), g); g['main']()"


class Life:
    """Two pipes: one closes when ansible-playbook ends, the other when all its locks are free."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.ended, self._alive = os.pipe()
        self._freed, self.kept = os.pipe()
        os.register_at_fork(after_in_child=self._forked)
        atexit.register(self._end)

    def _forked(self) -> None:
        """Workers may outlive a killed run, and must not look like it."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def _end(self) -> None:
        """Wait for the hosts to be free, so that the next command finds them so."""
        if os.getpid() == self.owner:
            os.write(self._alive, b".")  # an end without a word is that of a killed run
            os.close(self._alive)
            os.close(self.kept)
            select.select([self._freed], [], [], FREED_SECONDS)

    def keeper(self, run_directory: Path) -> socket.socket:
        """A connection to the process that keeps this run's locks; the first worker that asks starts it.

        `run_directory` is Ansible's own temporary directory, private to the run and shared by its workers.
        """
        address = run_directory / "sglang-ops-lock"
        with (run_directory / "sglang-ops-lock.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not address.exists():
                address.write_text(self._start())
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address.read_text())
        return connection

    def _start(self) -> str:
        directory = tempfile.mkdtemp(prefix="sglang-ops-lock-")  # a short path: a socket's may have 104 bytes
        address = f"{directory}/socket"
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(address)
                listener.listen(128)
                command = [sys.executable, "-m", "sglang_ops.keeper", str(self.owner), str(self.ended)]
                places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
                subprocess.Popen(
                    [*command, str(listener.fileno()), directory],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(self.ended, self.kept, listener.fileno()),
                    start_new_session=True,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
                )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return address


def ask(connection: socket.socket, request: Mapping[str, Any], heard: Callable[[dict[str, Any]], None]) -> Any:
    """Have the keeper lock a host. `heard` gets what it waits for; returns the last line: held, busy and so on."""
    with connection, connection.makefile("rw", encoding="utf-8") as stream:
        stream.write(json.dumps(request) + "\n")
        stream.flush()
        answer: dict[str, Any] = {}
        for line in stream:
            answer = json.loads(line)
            if not answer.keys() & {"waiting", "settling"}:
                return answer
            heard(answer)
    return {"ended": None, "said": "The process that keeps the locks of this run has ended."}


def holder(interpreter: str, asked: Mapping[str, Any]) -> tuple[str, str]:
    """(command for the host, its input): the process that locks it. `sglang_host_lock.Holder` reads `asked`."""
    source = (content.root() / "plugins" / "module_utils" / "sglang_host_lock.py").read_text("utf-8")
    script = _HOLDER % len(source.encode())
    return shlex.join([interpreter, "-c", script, "sglang-ops-lock"]), f"{source}{json.dumps(asked)}\n"


def identity(playbook: str) -> dict[str, Any]:
    """Who is at work, as it is shown to others. `playbook` is what is played."""
    run = Path(os.environ.get(PROGRESS_VARIABLE, "")).parent.name
    return {
        "who": operator.who(),
        "controller": socket.gethostname(),
        "pid": os.getppid(),
        "verb": Path(playbook).stem.replace("_", " "),
        "run": run,
    }


def described(held: Mapping[str, Any], now: float | None = None) -> str:
    """`ana@laptop since 12:01:33 (2 min), deploy, run 20261123-…`: who holds a lock, in one clause."""
    text = str(held.get("who") or "somebody")
    if held.get("since"):
        since = float(held["since"])
        text += f" since {datetime.fromtimestamp(since).astimezone():%H:%M:%S} ({age(since, now)})"
    return ", ".join([text, *(str(held[key]) for key in ("verb", "run") if held.get(key))])


def age(since: float, now: float | None = None) -> str:
    """How long ago, roughly."""
    seconds = max(0, int((time.time() if now is None else now) - since))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"


def tell(host: str, detail: str) -> bool:
    """Say what a host waits for where somebody looks; False where only Ansible's own output is left."""
    file = os.environ.get(PROGRESS_VARIABLE)
    if file:
        with suppress(OSError), Path(file).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"host": host, "step": "waiting", "detail": detail}) + "\n")
    return bool(file)
