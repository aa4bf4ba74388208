"""Compiled kernels on their way from one host to another: a directory of many small files as one stream of bytes.

    {"files": N, "bytes": N}                                as the directory is at the beginning
    {"name": …, "size": …, "mode": …, "time": …}            for each file, then its bytes and their SHA-256 in hex
    {"end": N}                                              how many files there were: without it, it was cut off

Python 3.8, standard library, and nothing beside it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat

_AT_ONCE = 1 << 20
_LONGEST_LINE = 1 << 16
_LOCKS = re.compile(r"(.*\.)?lock")  # some compilers wait for ever for one that is merely there


class Wrong(Exception):
    """What came is not what was announced, and why."""


class Tree:
    """A directory that containers write to. Its regular files below `parts` are read, no link is ever followed."""

    def __init__(self, path, parts) -> None:
        self._path, self._parts = path, parts

    def _look(self):
        """(name of a file, its directory's descriptor, its own name there, its size)."""
        for part in self._parts:
            with contextlib.suppress(FileNotFoundError):
                for parent, _, names, directory in os.fwalk(os.path.join(self._path, part)):
                    for name in sorted(names):
                        with contextlib.suppress(FileNotFoundError):
                            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                            if stat.S_ISREG(found.st_mode) and not _LOCKS.fullmatch(name):
                                path = os.path.relpath(os.path.join(parent, name), self._path)
                                yield path, directory, name, found.st_size

    def send(self, write) -> None:
        """Hand the stream to `write`. Raises OSError where a file changes meanwhile."""
        sizes = [size for _, _, _, size in self._look()]
        write(_line(files=len(sizes), bytes=sum(sizes)))
        sent = 0
        for path, directory, name, _ in self._look():
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory), "rb") as stream:
                found = os.fstat(stream.fileno())
                told = {"name": path, "size": found.st_size, "mode": found.st_mode & 0o777, "time": found.st_mtime_ns}
                write(_line(**told))
                digest = hashlib.sha256()
                for part in _parts(stream, found.st_size):
                    digest.update(part)
                    write(part)
                write(digest.hexdigest().encode())
            sent += 1
        write(_line(end=sent))


def _line(**told) -> bytes:
    return json.dumps(told).encode() + b"\n"


def _parts(stream, size):
    """Exactly `size` bytes of a stream. Raises OSError where it has fewer."""
    while size:
        part = stream.read(min(_AT_ONCE, size))
        if not part:
            raise OSError(errno.EIO, "it ended in the middle of a file")
        size -= len(part)
        yield part


class Arriving:
    """A stream that is written below `directory`, which must be new and nobody else's. Raises Wrong, OSError.

    `report` is told the bytes that there are of how many, and may raise to end it.
    """

    def __init__(self, stream, directory, parts, report) -> None:
        self._stream, self._directory, self._parts, self._report = stream, directory, parts, report
        told = self._told("files", "bytes")
        self.files, self.bytes = 0, 0
        self.announced = told["bytes"]

    def write(self) -> None:
        while True:
            told = self._told()
            if "end" in told:
                if told["end"] != self.files:
                    raise Wrong("it sent %d files of %r" % (self.files, told["end"]))
                return
            self._file(told)

    def _told(self, *needed):
        line = self._stream.readline(_LONGEST_LINE)
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not line.endswith(b"\n") or not isinstance(told, dict) or not set(needed) <= set(told):
            raise Wrong("it was cut off" if not line.endswith(b"\n") else "it does not answer properly")
        return told

    def _file(self, told) -> None:
        name, size = told.get("name"), told.get("size")
        if not is_inside(name, self._parts) or not isinstance(size, int) or self.bytes + size > 2 * self.announced:
            raise Wrong("it sent %r of %r bytes" % (name, size))
        path, digest = os.path.join(self._directory, name), hashlib.sha256()
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            for part in _parts(self._stream, size):
                out.write(part)
                digest.update(part)
                self.bytes += len(part)
                self._report(self.bytes, self.announced)
            os.fchmod(out.fileno(), int(told["mode"]) & 0o777)
        os.utime(path, ns=(int(told["time"]), int(told["time"])))  # by which build tools know what is older
        if b"".join(_parts(self._stream, 64)) != digest.hexdigest().encode():
            raise Wrong("%s came with the wrong checksum" % name)
        self.files += 1


def is_inside(name, parts=None) -> bool:
    """Whether it is the name of a file below a directory (below one of its `parts`), and of nothing else. Pure."""
    words = name.split("/") if isinstance(name, str) else [""]
    inside = not {"", ".", ".."} & set(words) and "\0" not in name
    return inside and (parts is None or (len(words) > 1 and words[0] in parts))
