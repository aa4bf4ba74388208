"""Whether files are what their hashes say, several read at a time. Python 3.8, standard library.

The hub names the content of a large file by its SHA-256 (64 hex digits) and that of any other as git does: SHA-1 (40)
over `blob SIZE`, a zero byte and the content. huggingface_hub calls the files in `blobs/` by these names.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import threading
import time

from ansible.module_utils.sglang_host_command import share

_PART_BYTES = 1 << 20
_LOOK_SECONDS = 0.5
_AT_A_TIME = 8  # what keeps NVMe devices busy; hashing itself takes a core for each
_KINDS = {40: "git", 64: "sha256"}


def kind(name: str) -> str:
    """By which hash content is named: "sha256", "git", or "" for a name that is none (a mirror's own ETag). Pure."""
    return _KINDS.get(len(name), "") if re.fullmatch("[0-9a-f]+", name) else ""


class _Reader:
    """Hashes files in threads, which end soon after `stop` is set."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.read = 0
        self._lock = threading.Lock()

    def digest(self, path: str, how: str) -> str:
        with open(path, "rb", buffering=0) as stream:
            if how == "sha256":
                state = hashlib.sha256()
            else:
                state = hashlib.sha1(b"blob %d\0" % os.fstat(stream.fileno()).st_size)  # noqa: S324 - git's choice
            buffer = memoryview(bytearray(_PART_BYTES))
            while not self.stop.is_set():
                count = stream.readinto(buffer)
                if not count:
                    break
                state.update(buffer[:count])
                with self._lock:
                    self.read += count
        return state.hexdigest()

    def fault(self, path: str, name: str) -> str:
        try:
            found = self.digest(path, kind(name))
        except OSError as error:
            return "cannot be read: %s" % error.strerror
        return "" if found == name else "its %s is %s" % ("SHA-256" if kind(name) == "sha256" else "git SHA-1", found)


def wrong(named, report) -> dict:
    """{path: why} of the files that are not what they should be. `named` is {path: hash}; names that are no hash of a
    known kind are left out. Progress in bytes goes to `report`.
    """
    known = {path: name for path, name in named.items() if kind(name)}
    total = sum(os.path.getsize(path) for path in known if os.path.exists(path))
    reader = _Reader()
    with concurrent.futures.ThreadPoolExecutor(min(_AT_A_TIME, os.cpu_count() or 1)) as pool:
        try:
            largest_first = sorted(known, key=lambda path: -os.path.getsize(path) if os.path.exists(path) else 0)
            asked = {path: pool.submit(reader.fault, path, known[path]) for path in largest_first}
            while not all(future.done() for future in asked.values()):
                report("checking %s" % share(reader.read, total))
                time.sleep(min(_LOOK_SECONDS, 0.01 + total / 1e10))
        finally:
            reader.stop.set()  # what has not begun ends at once
    faults = {path: future.result() for path, future in asked.items()}
    return {path: why for path, why in faults.items() if why}
