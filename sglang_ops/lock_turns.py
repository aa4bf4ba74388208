"""Whose turn it is among the hosts that one run locks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from sglang_ops import lock_order
from sglang_ops.grip import Answer

STUCK_SECONDS = 2  # without a worker for the host that is next: Ansible has none left for it, or it needs no lock


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
