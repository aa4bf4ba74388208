"""Files to be carried to where there is no network: a directory, or the same as one tar.

Nothing here knows what is in them: `bundle_images` (an OCI image layout) and `bundle_models` (a Hugging Face cache)
do. A bundle is made in a directory; what lists its content is written last, so an unfinished one says that it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sglang_ops.errors import OpsError, UsageError

_AT_ONCE = 4 * 1024 * 1024


class BundleError(UsageError):
    """The bundle is not one, is not finished, or does not hold what is asked for. Nothing was touched."""


class DamagedError(OpsError):
    """Bytes are not what they should be."""


@dataclass(frozen=True)
class Piece:
    """A file of the bundle: `size` bytes of `path` from `start` on."""

    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        with self.open() as stream:
            return stream.read(self.size)

    def pieces(self, offset: int = 0) -> Iterator[bytes]:
        """The bytes from `offset` on."""
        with self.open(offset) as stream:
            left = self.size - offset
            while left > 0 and (part := stream.read(min(left, _AT_ONCE))):
                left -= len(part)
                yield part

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[BinaryIO]:
        """The file below, at `offset` of this piece. It may go on after the piece's end."""
        with self.path.open("rb") as stream:
            stream.seek(self.start + offset)
            yield stream


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where each of its files lies, by its name relative to the bundle."""

    path: Path
    pieces: Mapping[str, Piece]

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Look what is in it. Raises BundleError."""
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.is_file())
            return cls(path, {file.relative_to(path).as_posix(): Piece(file, 0, file.stat().st_size) for file in files})
        if not path.is_file():
            raise BundleError(f"{path} does not exist.")
        try:
            with tarfile.open(path, "r:") as archive:
                members = {_name(item): Piece(path, item.offset_data, item.size) for item in archive if item.isreg()}
        except (tarfile.TarError, OSError) as error:
            fix = "Give an uncompressed tar, as `images save --to FILE.tar` makes it, or a directory."
            raise BundleError(f"{path} is no tar archive, or only a part of one: {error}.", fix=fix) from error
        return cls(path, members)

    def read(self, name: str) -> bytes:
        return self.pieces[name].read()

    def size(self, name: str) -> int:
        """Bytes of a file, -1 where there is none."""
        return self.pieces[name].size if name in self.pieces else -1


def _name(item: tarfile.TarInfo) -> str:
    return item.name.removeprefix("./")


def staging(target: Path) -> Path:
    """The directory to fill: `target` itself, or one beside it that becomes a tar, kept where it is interrupted."""
    directory = target.with_name(f"{target.name}.partial") if target.suffix == ".tar" else target
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{directory} cannot be made: {error.strerror}.", fix="Name another place with --to."
        ) from error
    return directory


def finish(target: Path, directory: Path, report: Callable[[str], None]) -> None:
    """Make the tar, if one was asked for. Raises UsageError where it does not fit beside its directory."""
    if target != directory:
        _check_space(target.parent, tree_bytes(directory), f"The archive {target}")
        report(f"writing {target.name}")
        _pack(directory, target)
        shutil.rmtree(directory)


def check_space(directory: Path, needed: int) -> None:
    """Raises UsageError where `needed` more bytes do not fit."""
    _check_space(directory, needed, f"The bundle {directory}")


def _check_space(place: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UsageError(
            f"{what} needs {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free there.",
            fix="Free space, or name another place with --to. A directory needs half of what a .tar needs.",
        )


def tree_bytes(directory: Path) -> int:
    """Bytes of all files below `directory`."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file() and not file.is_symlink())


def _pack(directory: Path, target: Path) -> None:
    growing = target.with_name(f"{target.name}.new")
    try:
        with tarfile.open(growing, "w", format=tarfile.PAX_FORMAT) as archive:
            for entry in sorted(directory.iterdir()):
                archive.add(entry, entry.name, filter=_plain)
        with growing.open("rb") as written:
            os.fsync(written.fileno())
        growing.replace(target)
    finally:
        growing.unlink(missing_ok=True)


def _plain(item: tarfile.TarInfo) -> tarfile.TarInfo:
    """Who made the bundle is nobody's business; the same content is the same archive."""
    item.uid = item.gid = item.mtime = 0
    item.uname = item.gname = ""
    return item


def write(path: Path, content: bytes) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = path.with_name(f".{path.name}.new")
    growing.write_bytes(content)
    growing.replace(path)


def receive(
    path: Path, size: int, sha256: str, pieces: Callable[[int], Iterator[bytes]], on_bytes: Callable[[int], None]
) -> bool:
    """Fill a file, going on where an earlier attempt ended; it gets its name once its SHA-256 is right.

    `pieces` gives the bytes from an offset on. False where the file was whole already. Raises DamagedError, and what
    `pieces` raises; what has come stays for the next attempt.
    """
    if path.exists() and path.stat().st_size == size:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    digest, held = hashlib.sha256(), 0
    with part.open("a+b") as out:
        out.seek(0)
        while known := out.read(_AT_ONCE):
            digest.update(known)
            held += len(known)
        if held > size:
            out.truncate(0)
            digest, held = hashlib.sha256(), 0
        if held < size:
            for piece in pieces(held):
                out.write(piece)
                digest.update(piece)
                held += len(piece)
                on_bytes(held)
    if held < size:
        raise Short(path.name, held, size)
    if held > size or digest.hexdigest() != sha256:
        part.unlink()
        raise DamagedError(f"{path.name[:12]} came with other content than its checksum says. Run it again.")
    part.replace(path)
    return True


class Short(DamagedError):
    """The source ended before all was there; another attempt goes on from here."""

    def __init__(self, name: str, held: int, size: int) -> None:
        super().__init__(f"{name[:12]} broke off after {held} of {size} bytes. Run it again: it goes on from there.")
