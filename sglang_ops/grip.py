"""The lock of one host, held from here: a connection to the process there that has it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

BEGIN_SECONDS = 60  # in which a connection must bring the holder to speak
END_SECONDS = 5
UNREACHED = 255  # ssh's own exit code
TOLD_BYTES = 4000
LINE_BYTES = 1 << 20
SKIPPED = {"skipped": True}
Answer = dict[str, Any]
Tell = Callable[[Answer], None]


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


def undisturbed(first: Answer, again: Answer) -> bool:
    """Whether nobody has had a lock between two grips of one run; both say `before`, BOOT:COUNT as they found it.

    The count of a host begins anew when it boots.
    """
    (boot, _, _), (now, _, count) = (str(answer.get("before")).rpartition(":") for answer in (first, again))
    return count == (str((first.get("held") or {}).get("count")) if now == boot else "0")
