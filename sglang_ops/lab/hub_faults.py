"""How the lab's model source misbehaves when a test tells it to, and what it has sent.

`PUT /-/faults/OWNER/NAME` with a JSON list of faults replaces those of a model, `DELETE` takes them away, and
`GET /-/traffic` tells for each model how many files were asked for and how many bytes of them were sent.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

TRAFFIC = "/-/traffic"
_FAULTS = re.compile(r"/-/faults/([^/]+/[^/]+)")
_SENT_AT_ONCE = 1024 * 1024
_SLICE_SECONDS = 0.1  # how often a slow answer sends something


@dataclass(frozen=True)
class Fault:
    """What happens to the requests for one model that match, instead of a good answer.

    `on` is what is asked for: the model's description or one of its files, with a name that `path` matches. `times`
    is how many requests it happens to, 0 for all of them. `status` answers with an error, and with `retry_after`
    seconds where set. The others change a file's bytes: `corrupt` those at its end, `cut_at` closes the connection
    and `hang_at` falls silent once that share of the file is sent, `bytes_per_second` sends slowly.
    """

    on: Literal["api", "file"] = "file"
    path: str = "*"
    times: int = 0
    status: int = 0
    code: str = ""
    retry_after: int = 0
    corrupt: bool = False
    cut_at: float = 1.0
    hang_at: float = 1.0
    bytes_per_second: int = 0

    def matches(self, on: str, path: str) -> bool:
        return self.on == on and fnmatch.fnmatch(path, self.path)

    def bytes_of(self, part: bytes, start: int, size: int) -> bytes:
        """`part` of a file of `size` bytes, which begins at `start`, as it is sent: never longer or shorter."""
        if self.corrupt and start + len(part) == size:
            return part[:-1] + bytes([part[-1] ^ 0xFF])
        return part


def send(connection: socket.socket, file: BinaryIO, span: tuple[int, int, int], fault: Fault) -> int:
    """Send a file's bytes `span[0]` up to `span[1]` of `span[2]`, as far and as fast as `fault` lets them; returns how
    many were sent. Fewer than promised: the connection must be closed."""
    start, end, size = span
    stop = max(start, min(end, int(size * min(fault.cut_at, fault.hang_at))))
    most = int(fault.bytes_per_second * _SLICE_SECONDS) or _SENT_AT_ONCE
    file.seek(start)
    at = start
    with contextlib.suppress(OSError):  # the client gave up
        while at < stop and (part := file.read(min(most, stop - at))):
            connection.sendall(fault.bytes_of(part, at, size))
            at += len(part)
            if fault.bytes_per_second:
                time.sleep(len(part) / fault.bytes_per_second)
        if at < end and fault.hang_at < fault.cut_at:
            connection.settimeout(None)
            connection.recv(1)  # until the client gives up
    return at - start


@dataclass
class Board:
    """The faults that are switched on, and what was sent; shared by the threads of a server."""

    _faults: dict[str, tuple[Fault, ...]] = field(default_factory=dict)
    _used: Counter[tuple[str, Fault]] = field(default_factory=Counter)
    _files: Counter[str] = field(default_factory=Counter)
    _bytes: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def told(self, path: str, body: bytes) -> tuple[int, Mapping[str, str]]:
        """Status and answer for a request that changes faults; without a body it takes them away."""
        matched = _FAULTS.fullmatch(path)
        if not matched:
            return 404, {"error": f"Not found: {path}"}
        try:
            faults = tuple(Fault(**item) for item in json.loads(body or b"[]"))
        except (TypeError, ValueError) as error:
            return 400, {"error": str(error)}
        with self._lock:
            self._faults[matched[1]] = faults
            self._used = Counter({key: count for key, count in self._used.items() if key[0] != matched[1]})
        return 200, {}

    def take(self, repo: str, on: str, path: str, *, refusals_only: bool) -> Fault:
        """The fault of this request, which counts; the good answer is a fault that does nothing."""
        with self._lock:
            for fault in self._faults.get(repo, ()):
                spent = fault.times and self._used[repo, fault] >= fault.times
                if fault.matches(on, path) and not spent and (fault.status or not refusals_only):
                    self._used[repo, fault] += 1
                    return fault
        return Fault()

    def count(self, repo: str, sent: int) -> None:
        with self._lock:
            self._files[repo] += 1
            self._bytes[repo] += sent

    def traffic(self) -> Mapping[str, Any]:
        with self._lock:
            return {repo: {"files": count, "bytes": self._bytes[repo]} for repo, count in self._files.items()}
