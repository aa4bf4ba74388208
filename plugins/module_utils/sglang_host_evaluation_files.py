"""An evaluation's directory on a host as a whole: how it comes to be, how it is packed. Python 3.8, standard library.

<root>/.<run>.<token>/            a run that is being written; it gets its name once it is whole
<root>/<run>/results.<id>.tar.gz  what it has brought, packed; other content has another name
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import time

FETCHED = ("job.json", "checked.json", "status.json", "results")
_PACKED = "results."  # how the names of packed results begin
_KEPT = 3  # of them, for those who are fetching one
_ABANDONED = 3600  # seconds after which a run without its name is of a start that was interrupted


def put(target, write):
    """Make the directory `target` of what `write(path)` puts there: whole or not at all.

    Raises FileExistsError where there is a run of that name, even one that began meanwhile.
    """
    root, run = os.path.split(target)
    os.makedirs(root, mode=0o755, exist_ok=True)
    _sweep(root)
    made = tempfile.mkdtemp(dir=root, prefix=".%s." % run)
    try:
        write(made)
        if os.path.isdir(target) and not os.path.exists(os.path.join(target, "job.json")):
            shutil.rmtree(target, ignore_errors=True)  # what is left of one that was removed
        try:
            os.rename(made, target)
        except OSError:
            if os.path.exists(target):
                raise FileExistsError(target) from None
            raise
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _sweep(root):
    for name in os.listdir(root):
        path = os.path.join(root, name)
        with contextlib.suppress(FileNotFoundError):  # somebody else sweeps
            if name.startswith(".") and time.time() - os.path.getmtime(path) > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def pack(base):
    """Put what a run has brought so far into one file; {"path", "size", "sha256"}.

    Several may ask at once: a file that is there is never written again, so that nobody's transfer is of two files.
    """
    sources = _sources(base)
    path = os.path.join(base, "%s%s.tar.gz" % (_PACKED, hashlib.sha256(repr(sources).encode()).hexdigest()[:16]))
    if not os.path.exists(path):
        handle, partial = tempfile.mkstemp(dir=base, prefix=".packing-")
        try:
            with os.fdopen(handle, "wb") as stream:
                _write(stream, base, [name for name, _, _ in sources])
            with contextlib.suppress(FileExistsError):  # somebody else was quicker
                os.link(partial, path)
        finally:
            os.unlink(partial)
    _drop(base, path)
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for piece in iter(lambda: stream.read(1024 * 1024), b""):
            digest.update(piece)
    return {"path": path, "size": os.path.getsize(path), "sha256": digest.hexdigest()}


def _sources(base):
    """(name, size, time) of the files to be fetched, without those that are being written."""
    found = []
    for name in FETCHED:
        top = os.path.join(base, name)
        below = [os.path.join(at, one) for at, _, ones in os.walk(top) for one in ones]
        for path in [top] if os.path.isfile(top) else below:
            with contextlib.suppress(FileNotFoundError):  # the run is scored anew
                seen = os.stat(path)
                if not os.path.basename(path).startswith("."):
                    found.append((os.path.relpath(path, base), seen.st_size, seen.st_mtime_ns))
    return sorted(found)


def _write(stream, base, names):
    packed = gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0)
    with packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                archive.add(os.path.join(base, name), arcname=name)


def _drop(base, current):
    """Keep only the newest packed results, and the `current` ones."""
    found = []
    for name in os.listdir(base):
        path = os.path.join(base, name)
        if name.startswith(_PACKED) and name.endswith(".tar.gz") and path != current:
            with contextlib.suppress(FileNotFoundError):
                found.append((os.path.getmtime(path), path))
    for _, path in sorted(found, reverse=True)[_KEPT:]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
