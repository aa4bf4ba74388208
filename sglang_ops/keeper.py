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
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang_ops import lock_order, processes

BEAT_SECONDS = 5
BEGIN_SECONDS = 60  # in which a connection must bring the holder to speak
REGAIN_SECONDS = 3  # between two attempts to lock again a host that was rebooted or cut off
END_SECONDS = 5
UNREACHED = 255  # ssh's own exit code
TOLD_BYTES = 4000
LINE_BYTES = 1 << 20
STUCK_SECONDS = 2  # without a worker for the host that is next: Ansible has none left for it, or it needs no lock
SKIPPED = {"skipped": True}
Answer = dict[str, Any]
Tell = Callable[[Answer], None]


class Turns:
    """Hosts are connected all at once, and locked one after the other, in an order that is everyone's.

    So of two operators whose hosts overlap exactly one gets all of its own: who meets the other on a host has all of
    its hosts before that one, and the other can only be stopped on one after it. After the first host that somebody
    else has, none is locked any more. It also keeps operators who wait from waiting for each other.
    """

    def __init__(self) -> None:
        self._left: list[str] = []
        self._asked: set[str] = set()
        self._planned = False
        self._moved = 0.0
        self._change = asyncio.Condition()
        self.refused = False

    def plan(self, hosts: Sequence[str]) -> None:
        """`hosts` in their order: those of which each is expected to ask."""
        self._left = [host for host in hosts if host not in self._asked]
        self._planned = True

    def ask(self, host: str) -> None:
        if self._planned and host not in self._asked | {*self._left}:  # one that changes because of its group
            self._left = lock_order.ordered([*self._left, host])
        self._asked.add(host)
        self._moved = asyncio.get_running_loop().time()

    async def mine(self, host: str) -> bool:
        """Wait until it is the turn of `host`; False where somebody else has one of the hosts before it."""
        async with self._change:
            while not self.refused and host in self._left and self._left[0] != host:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._change.wait(), STUCK_SECONDS / 2)
                self._pass_over()
        return not self.refused

    def _pass_over(self) -> None:
        """Do not wait for hosts that will not ask."""
        if asyncio.get_running_loop().time() - self._moved > STUCK_SECONDS:
            while self._left and self._left[0] not in self._asked:
                del self._left[0]

    async def had(self, host: str, answer: Answer) -> None:
        async with self._change:
            self.refused = self.refused or bool(answer.keys() & {"busy", "unfinished"})
            self._left = [other for other in self._left if other != host]
            self._moved = asyncio.get_running_loop().time()
            self._change.notify_all()


class Grip:
    """The lock of one host: the connection to the process there that holds it."""

    def __init__(self, request: Answer) -> None:
        self.host = str(request["host"])
        self._request = request
        self._until = time.monotonic() + float(request.get("wait") or 0)
        self._ready = False
        self._process: asyncio.subprocess.Process | None = None
        self._told = b""
        self.held: Answer | None = None

    async def take(self, tell: Tell, turn: Callable[[], Awaitable[bool]] | None = None) -> Answer:
        """Lock the host when `turn` says so, passing on what is waited for.

        Returns the last line: held, busy, unfinished or ended; skipped where `turn` says no.
        """
        for attempt in (1, 2):
            answer = await self._attempt(tell, turn)
            if answer.get("ended") != UNREACHED or attempt == 2:  # like ansible.cfg: one more try
                break
        self.held = answer if "held" in answer else None
        return answer

    async def _attempt(self, tell: Tell, turn: Callable[[], Awaitable[bool]] | None) -> Answer:
        self._told, self._ready = b"", False
        self._process = process = await asyncio.create_subprocess_exec(
            *self._request["argv"],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )
        asking = asyncio.create_task(self._listen())
        if not self._request.get("password"):
            self._send(str(self._request["input"]).encode())
        patience: float | None = BEGIN_SECONDS
        assert process.stdout  # noqa: S101 - a pipe
        while True:
            try:
                line = await asyncio.wait_for(process.stdout.readline(), patience)
            except TimeoutError:
                self._told += b"\nThe host did not answer in time."
                process.kill()
                line = b""
            if not line:
                break
            if line.startswith(b"BECOME-SUCCESS-") and self._request.get("password"):
                self._send(str(self._request["input"]).encode())
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if "ready" in said:
                    self._ready = True
                    if turn and not await turn():
                        return SKIPPED
                    self._send(b"%.3f!" % max(0.0, self._until - time.monotonic()))
                    continue
                if not said.keys() & {"waiting", "settling"}:
                    return dict(said)
                patience = None
                tell(said)
        code = await process.wait()
        await asyncio.wait([asking], timeout=0.2)  # a master connection that ssh left behind may keep it open
        return {"ended": code, "said": self._told.decode(errors="replace").strip()}

    async def _listen(self) -> None:
        """Keep the end of what ssh and sudo say, and give sudo its password once."""
        assert self._process  # noqa: S101 - started just before
        assert self._process.stderr  # noqa: S101
        password, prompt = self._request.get("password"), str(self._request.get("prompt") or "").encode()
        while piece := await self._process.stderr.read(TOLD_BYTES):
            self._told = (self._told + piece)[-TOLD_BYTES:]
            if password and prompt and prompt in self._told:
                self._told = self._told.replace(prompt, b"")
                self._send(f"{password}\n".encode())
                password = None

    def _send(self, data: bytes) -> None:
        if self._process and self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.write(data)

    def beat(self) -> None:
        """Say that the run lives; not before the holder can hear it, for sudo may be asking for its password."""
        if self._ready:
            self._send(b"\n")

    async def lost(self) -> bool:
        """Wait until the holder is gone; True if somebody has released it by force."""
        assert self._process  # noqa: S101 - it was held
        await self._process.wait()
        await asyncio.sleep(0)
        return "released" in self._told.decode(errors="replace").splitlines()

    async def end(self) -> None:
        """Let go: the holder ends when its input does."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(OSError):
            assert process.stdin  # noqa: S101 - a pipe
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:  # the link is cut; the holder will notice by itself
            process.kill()
            await process.wait()


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


def undisturbed(first: Answer, again: Answer) -> bool:
    """Whether nobody has had a lock between two grips of one run; both say `before`, BOOT:COUNT as they found it.

    The count of a host begins anew when it boots.
    """
    (boot, _, _), (now, _, count) = (str(answer.get("before")).rpartition(":") for answer in (first, again))
    return count == (str((first.get("held") or {}).get("count")) if now == boot else "0")


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
