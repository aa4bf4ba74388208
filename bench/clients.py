"""Clients that ask a server all the time, streaming and not, and count what they lose."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

TIMEOUT = 120


@dataclass
class Counted:
    """Requests, and how the lost ones ended: no 2xx, no answer, or a stream without its last line."""

    requests: int = 0
    streams: int = 0
    lost: int = 0
    longest_seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def add(self, problem: str, seconds: float, *, stream: bool) -> None:
        self.requests += 1
        self.streams += stream
        self.longest_seconds = round(max(self.longest_seconds, seconds), 2)
        if problem:
            self.lost += 1
            self.examples = [*self.examples[:4], problem]


@contextmanager
def asking(target: tuple[str, int, str], clients: int, at_least: int) -> Iterator[Counted]:
    """`clients` threads ask `target` (address, port, model) for as long as the block lasts, and until `at_least`."""
    counted, lock, over = Counted(), threading.Lock(), threading.Event()

    def work(number: int) -> None:
        turn = number
        while not over.is_set() or counted.requests < at_least:
            stream, began = turn % 2 == 0, time.monotonic()
            problem = asked(target, stream=stream)
            with lock:
                counted.add(problem, time.monotonic() - began, stream=stream)
            turn += 1

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield counted
    finally:
        over.set()
        for thread in threads:
            thread.join()


def asked(target: tuple[str, int, str], *, stream: bool) -> str:
    """One request over a connection of its own; "" where it was answered whole, else what was lost."""
    address, port, model = target
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16, "stream": stream}
    connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    if not 200 <= response.status < 300:
        return f"HTTP {response.status}: {text[:120]}"
    return "a stream without [DONE]" if stream and "[DONE]" not in text else ""
