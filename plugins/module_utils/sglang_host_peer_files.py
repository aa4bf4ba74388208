"""Files of a model on their way from another host. Python 3.8, standard library.

Bytes are written to `BLOB.peer.incomplete` in the order in which they stand in the file, hashed on the way, and become
BLOB when the hash is right: blobs are named by their SHA-256, or as git does by SHA-1 where they are small. So it does
not matter who sent which byte, and whoever is interrupted goes on from the byte that it has.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os

READ_AT_ONCE = 1 << 20
PARTIAL = ".peer.incomplete"


class Busy(Exception):
    """Another process of this host is getting the same file."""


class Part:
    """One file of the model, as far as it has come. `only_whole` after it once came wrong from a growing file."""

    def __init__(self, directory, blob, size) -> None:
        self.blob, self.size = blob, size
        self.path = os.path.join(directory, blob)
        self.partial = self.path + PARTIAL
        self.whole = _size(self.path) == size
        if _size(self.partial) > size:
            os.unlink(self.partial)
        self.have = size if self.whole else max(0, _size(self.partial))
        self.givers = set()  # type: set[str]
        self.only_whole = False
        self.taken = False
        self._stream = None
        self._digest = None

    def open(self, stopped=lambda: False) -> None:
        """Make ready to go on; what an interrupted run left counts. Raises Busy, OSError."""
        if self._stream is not None:
            return
        with contextlib.ExitStack() as unless_ready:
            stream = open(self.partial, "ab", 0)  # noqa: SIM115 (kept until `close`); others read it as it grows
            unless_ready.callback(stream.close)
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(self.partial) from error
            self._digest, self.have = self._again(stopped)
            unless_ready.pop_all()
            self._stream = stream

    def _again(self, stopped):
        """(hash, count) of the bytes that are there already."""
        digest, count = _digest(self.blob, self.size), 0
        with open(self.partial, "rb") as written:
            for data in iter(lambda: written.read(READ_AT_ONCE), b""):
                digest.update(data)
                count += len(data)
                if stopped():
                    raise InterruptedError
        return digest, count

    def write(self, data) -> None:
        self._digest.update(data)
        rest = memoryview(data)
        while rest:
            count = self._stream.write(rest)
            self.have += count
            rest = rest[count:]

    def finish(self) -> bool:
        """Whether all of it is there and right; a wrong one is emptied, to be begun anew."""
        if self.have == self.size and self._digest.hexdigest() == self.blob:
            os.chmod(self.partial, 0o644)
            os.replace(self.partial, self.path)
            self.whole = True
            self.close()
            return True
        os.truncate(self.partial, 0)
        self.close()
        self.have, self.only_whole = 0, True
        return False

    def close(self) -> None:
        if self._stream:
            self._stream.close()
            self._stream = None


def _digest(blob, size):
    """The hash that a blob is named by."""
    if len(blob) == 64:
        return hashlib.sha256()
    made = hashlib.sha1()  # noqa: S324 (git's choice)
    made.update(b"blob %d\0" % size)
    return made


def _size(path) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return -1
