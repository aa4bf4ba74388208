"""The process beside a run that keeps its locks: it lives exactly as long as ansible-playbook does.

Ansible's workers end with their task, so none of them can hold anything. The first one that needs a lock starts this
process; all hand it the command that reaches their host, and it answers with what the holder there says. From then
on it lets every holder know, every few seconds, that the run still lives. When the run ends, however it ends, a
pipe closes that only ansible-playbook itself held open; then the connections are closed and the kernel of each host
frees the lock. Workers that a killed ansible-playbook has left behind are ended first: what they do on hosts would
otherwise go on beside the next operator's run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_ops import processes
from sglang_ops.grip import LINE_BYTES, Answer, Grip, undisturbed
from sglang_ops.lock_turns import Turns

BEAT_SECONDS = 5
REGAIN_SECONDS = 3  # between two attempts to lock again a host that was rebooted or cut off


class Keeper:
    """Serves the workers of one run until `owner`, its ansible-playbook, closes the pipe `life`."""

    def __init__(self, owner: int, life: int) -> None:
        self._owner, self._life = owner, life
        self._birth = processes.born(owner)
        # Of plain Ansible, which a shell may well have started and left, nothing is known.
        self._command = processes.parent(owner) if os.environ.get("SGLANG_OPS_PROGRESS") else 0
        self._grips: dict[str, Grip] = {}
        self._one: dict[str, asyncio.Lock] = {}
        self._turns = Turns()
        self._watches: set[asyncio.Task[None]] = set()

    async def run(self, listener: socket.socket) -> None:
        over, last_word = asyncio.Event(), b""

        def ended() -> None:
            nonlocal last_word
            last_word = os.read(self._life, 1)
            over.set()
            asyncio.get_running_loop().remove_reader(self._life)

        asyncio.get_running_loop().add_reader(self._life, ended)
        server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LINE_BYTES)
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), BEAT_SECONDS)
            if self.orphaned():
                processes.kill({self._owner: self._birth})
            for grip in self._grips.values():
                grip.beat()
        for watch in self._watches:
            watch.cancel()
        if not last_word:  # killed; whether the process is gone yet would be a race
            processes.kill(_left_behind(self._life))
        await asyncio.gather(*(grip.end() for grip in self._grips.values()))
        server.close()

    def orphaned(self) -> bool:
        """Whether the command that started ansible-playbook was killed, and it alone.

        Ansible then waits for good for a worker that could not write to the terminal that went away.
        """
        return bool(self._command) and processes.parent(self._owner) not in (self._command, 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readline())

        def tell(line: Answer) -> None:
            writer.write(json.dumps(line).encode() + b"\n")

        if "hosts" in request:
            self._turns.plan(request["hosts"])
        host = str(request["host"])
        self._turns.ask(host)
        async with self._one.setdefault(host, asyncio.Lock()):
            known = self._grips.get(host)
            if known and known.held:
                answer = {**known.held, "already": True}
            else:
                grip = self._grips[host] = Grip(request)
                answer = await grip.take(tell, lambda: self._turns.mine(host))
                if grip.held:
                    self._watch(grip)
                else:
                    await grip.end()
                if same_run(answer.get("busy") or {}, request.get("identity") or {}):  # one machine with two names
                    answer = {"held": answer["busy"], "before": "", "already": True}
            await self._turns.had(host, answer)
            tell(answer)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    def _watch(self, grip: Grip) -> None:
        task = asyncio.create_task(self._keep(grip))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _keep(self, grip: Grip) -> None:
        """Lock a host again that was rebooted or cut off; end the run where somebody else has it now."""
        while True:
            if await grip.lost():
                return self._stop(grip.host, "it was released by hand")
            first, answer = grip.held or {}, {}
            while "held" not in answer:
                await asyncio.sleep(REGAIN_SECONDS)
                answer = await grip.take(lambda _: None)
                if "busy" in answer:
                    return self._stop(grip.host, f"{answer['busy'].get('who')} has it now")
            if not undisturbed(first, answer):
                return self._stop(grip.host, "somebody else has had it meanwhile")

    def _stop(self, host: str, why: str) -> None:
        progress = os.environ.get("SGLANG_OPS_PROGRESS")
        if progress:
            with Path(progress).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"host": host, "step": "lock", "lost": why}) + "\n")
        if processes.lives(self._owner, self._birth):
            os.kill(self._owner, signal.SIGINT)


def same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both are of one ansible-playbook."""
    return bool(one) and all(one.get(key) == other.get(key) for key in ("controller", "pid", "run"))


def _left_behind(pipe: int) -> dict[int, str]:
    """Workers of a run that was killed, and what they have started: they alone have the run's pipe open."""
    if not processes.PROC.is_dir():
        return {}
    name = Path(f"/proc/self/fd/{pipe}").readlink()
    workers = {pid for pid in os.listdir(processes.PROC) if pid.isdecimal() and name in _open_files(pid)}  # noqa: PTH208
    own = processes.tree([os.getpid()])
    return {pid: birth for pid, birth in processes.tree(set(map(int, workers)) - set(own)).items() if pid not in own}


def _open_files(pid: str) -> set[Path]:
    """What a process has open; nothing for one that has just gone, or is somebody else's."""
    found = set()
    with contextlib.suppress(OSError):
        for file in (processes.PROC / pid / "fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(file.readlink())
    return found


def main() -> None:
    """Arguments: the numbers of ansible-playbook, of the pipe and of the socket, and the socket's directory."""
    owner, life, listening = map(int, sys.argv[1:4])
    for number in (signal.SIGINT, signal.SIGHUP):  # the terminal means ansible-playbook
        signal.signal(number, signal.SIG_IGN)
    try:
        asyncio.run(Keeper(owner, life).run(socket.socket(fileno=listening)))
    finally:
        shutil.rmtree(sys.argv[4], ignore_errors=True)


if __name__ == "__main__":
    main()
