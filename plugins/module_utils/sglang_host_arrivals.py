"""Files on their way to a host: each grows beside its place, and takes it only once its checksum is right.

What has arrived of an interrupted transfer stays, and the next one goes on from there. Python 3.8, standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import asdict, dataclass

from ansible.module_utils.sglang_host_command import share

_READ_AT_ONCE = 4 * 1024 * 1024


class ArrivalError(Exception):
    """A file did not arrive as it was sent."""


@dataclass(frozen=True)
class Arrival:
    """One file to come. `size` in bytes, `sha256` in hex; it grows at `part` and ends at `path`."""

    name: str
    path: str
    part: str
    size: int
    sha256: str

    @property
    def offset(self) -> int:
        """Where sending goes on: the bytes that are there. More than there should be are begun anew."""
        for path in (self.path, self.part):
            with contextlib.suppress(OSError):
                held = os.stat(path).st_size
                if held == self.size or (path == self.part and held < self.size):
                    return held
        return 0

    def accept(self, on_bytes=None) -> None:
        """Check the file and put it in its place. Raises ArrivalError, and then a wrong file is gone.

        `on_bytes` is called with the bytes checked so far.
        """
        held = self.path if os.path.exists(self.path) else self.part
        if not os.path.exists(held):
            raise ArrivalError("%s has not arrived. Run it again." % self.name)
        found = checksum(held, on_bytes)
        if found != self.sha256:
            os.unlink(held)
            message = ("%s has checksum %s instead of %s and was removed. Run it again; if that does not help, the "
                       "bundle is damaged: make it anew.")
            raise ArrivalError(message % (self.name, found[:12], self.sha256[:12]))
        os.replace(held, self.path)


def wanted(arrivals) -> list:
    """The files that are not wholly there, as the action plugin sends them. Looks, changes nothing."""
    items = ((arrival, arrival.offset) for arrival in arrivals)
    return [dict(asdict(arrival), offset=offset) for arrival, offset in items if offset < arrival.size]


def remaining(arrivals) -> int:
    """Bytes still to come."""
    return sum(arrival.size - arrival.offset for arrival in arrivals)


def accept_all(arrivals, report) -> None:
    """Check every file and put it in its place. Raises ArrivalError."""
    total, before = sum(arrival.size for arrival in arrivals), 0
    for arrival in arrivals:
        arrival.accept(lambda count, before=before: report("checking " + share(before + count, total)))
        before += arrival.size


def checksum(path: str, on_bytes=None) -> str:
    """SHA-256 of a file, in hex."""
    digest, count = hashlib.sha256(), 0
    with open(path, "rb") as stream:
        for part in iter(lambda: stream.read(_READ_AT_ONCE), b""):
            digest.update(part)
            count += len(part)
            if on_bytes:
                on_bytes(count)
    return digest.hexdigest()
