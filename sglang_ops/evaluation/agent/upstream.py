"""The server under evaluation: asked with its key, as often and for as long as makes sense, and no more at once."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .store import Answer

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
CONNECT_SECONDS = 10.0  # a server that is there takes a connection at once, however slow its answers are
_SHORTEST, _LONGEST = 0.5, 30.0  # seconds between two attempts
_MEASURED = 8  # tokens from which on an answer tells how fast the server is
_MARGIN = 4.0  # an answer may take that many times as long as the slowest one lately did per token
_UNMEASURED_MARGIN = 10.0  # the same while only one quiet answer has been seen


class Stalled(Exception):
    """No server has answered for longer than the run is patient; what is missing can be asked later."""


class Unreached(Exception):
    """There was no connection to a server, so the request has not been made."""


@dataclass
class Server:
    """One replica, the host it is on where that is not this one, and how many requests it has of ours."""

    address: str
    port: int
    host: str = ""
    busy: int = 0
    down_since: float | None = None


@dataclass
class Speed:
    """Tokens per second that one request got lately."""

    quiet: float | None = None
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def note(self, tokens: int, seconds: float) -> None:
        if tokens >= _MEASURED and seconds > 0:
            self._recent.append(tokens / seconds)

    def seconds(self, tokens: int) -> float | None:
        """How long an answer of so many tokens may take; None where nothing was measured."""
        if self._recent:
            return _MARGIN * tokens / min(self._recent)
        return _UNMEASURED_MARGIN * tokens / self.quiet if self.quiet else None


class Upstream:
    """Asks the servers. `capacity` requests are under way at most; `patience` in seconds is for servers that are gone.

    `ended` is looked at while waiting: a run that is stopped does not wait for its server. `check` gets the server,
    a way to GET of it and whether it was away, before an answer counts; it raises Stalled where none may.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        capacity: int,
        patience: float,
        api_key: str | None = None,
        ended: Callable[[float], bool] | None = None,
        check: Callable[[str, Callable[[str], tuple[int, str]], bool], None] | None = None,
    ) -> None:
        self.servers = list(servers)
        self.speed = Speed()
        self.requests = 0
        self._slots = threading.BoundedSemaphore(max(1, capacity))
        self._patience = patience
        self._api_key = api_key
        self._ended = ended or threading.Event().wait
        self._check = check
        self._lock = threading.Lock()

    def ask(self, path: str, body: Mapping[str, Any], *, timeout: float, max_retries: int) -> Answer:
        """The answer, or a failed one once `max_retries` further attempts did not help. Raises Stalled.

        `timeout` in seconds is the least that an answer gets; one that takes long at this server's speed gets more.
        """
        attempts = 0
        data = json.dumps(body).encode()
        wanted = int(body.get("max_tokens") or body.get("max_completion_tokens") or 0)
        while True:
            reached, answer, why = self._attempt(path, data, max(timeout, self.speed.seconds(wanted) or 0.0))
            attempts += reached
            if answer is not None:
                return replace(answer, attempts=attempts)
            if why.startswith("!") or attempts > max_retries:
                for server in self.servers:
                    self._checked(server, was_away=False)
                return Answer(failed=why.lstrip("!"), attempts=attempts)
            pause = min(_LONGEST, _SHORTEST * 2 ** min(attempts, 10)) if reached else 1.0
            if self._ended(pause * random.uniform(0.75, 1.25)):  # noqa: S311 - only spreads the attempts
                raise Stalled("the run was stopped")

    def _attempt(self, path: str, data: bytes, timeout: float) -> tuple[bool, Answer | None, str]:
        """(whether a server took the request, the answer or None, why not; "!" where trying again is no use)."""
        with self._slots:
            server = self._choose()
            started = time.monotonic()
            try:
                status, text = self._post(server, path, data, timeout)
            except Unreached as error:
                self._missed(server, error)
                return False, None, str(error)
            except TimeoutError:
                return True, None, f"no answer within {timeout:.0f} s"
            except (OSError, http.client.HTTPException) as error:
                self._missed(server, error)
                return True, None, f"the connection broke: {error or type(error).__name__}"
            finally:
                with self._lock:
                    server.busy -= 1
        was_away, server.down_since = server.down_since is not None, None
        self._checked(server, was_away=was_away)
        answer, why = self._judged(status, text, time.monotonic() - started)
        return True, replace(answer, host=server.host) if answer else None, why

    def _judged(self, status: int, text: str, seconds: float) -> tuple[Answer | None, str]:
        if status != 200:
            final = "" if status in RETRIED else "!"
            return None, f"{final}status {status}: {' '.join(text.split())[:300]}"
        try:
            answer = json.loads(text)
            choices = answer["choices"][0]
        except (ValueError, KeyError, IndexError, TypeError):
            choices = None
        if not isinstance(choices, dict):
            return None, f"status 200 with something that is no completion: {text[:120]!r}"
        tokens = (answer.get("usage") or {}).get("completion_tokens")
        self.speed.note(tokens if isinstance(tokens, int) else 0, seconds)
        return Answer(response=answer, latency=round(seconds, 4)), ""

    def _post(self, server: Server, path: str, data: bytes, timeout: float) -> tuple[int, str]:
        connection = http.client.HTTPConnection(server.address, server.port, timeout=CONNECT_SECONDS)
        headers = self._authorized({"Content-Type": "application/json"})
        with contextlib.closing(connection):
            try:
                connection.connect()
            except TimeoutError:
                raise Unreached(f"no connection within {CONNECT_SECONDS:.0f} s") from None
            except OSError as error:  # refused, no route, no such name
                raise Unreached(str(error)) from error
            connection.sock.settimeout(timeout)
            with self._lock:
                self.requests += 1
            connection.request("POST", path, body=data, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")

    def _checked(self, server: Server, *, was_away: bool) -> None:
        if self._check:
            self._check(f"{server.address}:{server.port}", lambda path: self._get(server, path), was_away)

    def _get(self, server: Server, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(server.address, server.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=self._authorized({}))
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")

    def _authorized(self, headers: dict[str, str]) -> dict[str, str]:
        return headers | ({"Authorization": f"Bearer {self._api_key}"} if self._api_key else {})

    def _choose(self) -> Server:
        """The replica with the fewest of our requests; one that is gone only where all are."""
        with self._lock:
            server = min(self.servers, key=lambda one: (one.down_since is not None, one.busy))
            server.busy += 1
            return server

    def _missed(self, server: Server, error: Exception) -> None:
        with self._lock:
            now = time.monotonic()
            server.down_since = server.down_since or now
            gone = min((one.down_since or now) for one in self.servers)
            all_gone = all(one.down_since for one in self.servers)
        if all_gone and now - gone > self._patience:
            raise Stalled(f"the server has not answered for {now - gone:.0f} s: {error}")


def measure(upstream: Upstream, path: str, model: str, prompt: Mapping[str, Any]) -> Answer:
    """One short question while nobody else asks: that the server answers, and how fast it is."""
    answer = upstream.ask(
        path, {"model": model, "max_tokens": 16, "temperature": 0, **prompt}, timeout=300, max_retries=2
    )
    tokens = answer.usage.get("completion_tokens")
    if answer.latency and isinstance(tokens, int) and tokens:
        upstream.speed.quiet = tokens / answer.latency
    return answer
