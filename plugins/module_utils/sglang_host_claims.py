"""One writer for each model of a cache, also where hosts share it. Python 3.8, standard library.

Locks of the file system (flock, as huggingface_hub takes them) do nothing on some network mounts. What every file
system does is to rename in one step, so a claim is a directory that holds one file, named after its owner:

    HUB/.locks/.sglang-ops/models--ORG--NAME/1f0c2b9a77d1e4c3

It comes into being by a rename onto nothing or onto an empty directory, which fails while there is a file in it; it
changes hands by renaming the file that was seen, which fails if the owner let go or was followed by another. The owner
writes a higher number into it every few seconds. Whoever waits watches that number, by a clock of its own, because the
clocks of two hosts differ: one that stands still for STALE_SECONDS is of a host that is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time

from ansible.module_utils.sglang_host_state import read_text

BEAT_SECONDS = 5
STALE_SECONDS = 60
_FORGOTTEN_SECONDS = 1800  # by the time of the file, so much that no difference of clocks matters
_LOOK_SECONDS = 1
_NETWORK = re.compile(r"nfs\d?|cifs|smb\d?|lustre|ceph|glusterfs|gpfs|beegfs|9p|virtiofs|afs|ocfs2|gfs2|fuse\..+")
HOSTS = ".sglang-ops-hosts"  # marks that the role hf_cache leaves of every host that mounts a shared cache


class Lost(Exception):
    """Another took the claim over, because this host stood still for too long."""


class Busy(Exception):
    """Another owner is at work. `host` is its name."""

    def __init__(self, host: str) -> None:
        super().__init__("%s is at work on it" % host)
        self.host = host


def _directory(hub: str, name: str) -> str:
    return os.path.join(hub, ".locks", ".sglang-ops", name)


def _self() -> dict:
    """Who this process is; the start time tells it from a later one with its number."""
    boot = (read_text("/proc/sys/kernel/random/boot_id") or "").strip()
    return {"host": socket.gethostname(), "boot": boot, "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> str:
    """Field 22 of /proc/PID/stat (proc(5)), "" where there is no such process."""
    return ((read_text("/proc/%d/stat" % pid) or "").rpartition(")")[2].split() + [""] * 20)[19]


def switched_on() -> float:
    """When this host's first process began, by its clock; of a container that of its own init. 0 where unknown."""
    booted = re.search(r"^btime (\d+)$", read_text("/proc/stat") or "", re.MULTILINE)
    ticks = _started(1)
    return int(booted.group(1)) + int(ticks) / os.sysconf("SC_CLK_TCK") if booted and ticks else 0.0


def gone(owner: dict, me: dict, age: float = 0) -> bool:
    """Whether the owner can be known to be gone: it last wrote half an hour ago (`age` in seconds), or it was of this
    host, and its process or its boot is over."""
    if age > _FORGOTTEN_SECONDS:
        return True
    if owner.get("host") != me["host"]:
        return False
    return owner.get("boot") != me["boot"] or _started(int(owner.get("pid") or 0)) != owner.get("started")


def owner(hub: str, name: str):
    """(file name, what is in it, seconds since it was written) of the claim on a model, None where there is none."""
    directory = _directory(hub, name)
    try:
        (mark,) = (entry for entry in os.listdir(directory) if not entry.startswith("."))  # .nfs…: deleted, still open
        text = read_text(os.path.join(directory, mark)) or ""
        age = time.time() - os.stat(os.path.join(directory, mark)).st_mtime
    except (OSError, ValueError):  # it comes or goes just now
        return None
    try:
        return mark, json.loads(text), age
    except ValueError:  # its owner writes just now
        return mark, {}, age


def holders(hub: str) -> dict:
    """{model's directory: host} of claims whose owners may live."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(os.path.dirname(_directory(hub, ""))):
            seen = owner(hub, name)
            if seen and not name.startswith(".") and not gone(seen[1], _self(), seen[2]):
                found[name] = seen[1].get("host") or "another host"
    return found


class Claim:
    """The right to write one model of a cache. `check` raises Lost once it is another's."""

    def __init__(self, hub: str, name: str) -> None:
        self._directory, self._hub, self._name = _directory(hub, name), hub, name
        self._mark = secrets.token_hex(8)
        self._path = os.path.join(self._directory, self._mark)
        self._beats = 0
        self._lost = False
        self._over = threading.Event()

    def check(self) -> None:
        if self._lost:
            raise Lost

    def take(self) -> bool:
        """Take what nobody has."""
        fresh = os.path.join(os.path.dirname(self._directory), ".%s" % self._mark)
        os.makedirs(fresh, mode=0o755)
        try:
            self._write(os.path.join(fresh, self._mark), "x")
            with contextlib.suppress(OSError):
                os.rename(fresh, self._directory)
            return os.path.exists(self._path)  # an answer lost on the way makes a rename fail that was done
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def take_over(self, mark: str) -> bool:
        """Take what the owner `mark` has, if that is the owner still."""
        with contextlib.suppress(OSError):
            os.rename(os.path.join(self._directory, mark), self._path)
        if not os.path.exists(self._path):
            return False
        self._write(self._path)
        return True

    def acquire(self, waiting=None) -> None:
        """Take it as soon as it is free; `waiting(host)` is called while it is not. Without it raises Busy.

        Raises OSError where the file system lets nobody take it.
        """
        seen, since = None, time.monotonic()
        while not self.take():
            now = owner(self._hub, self._name)
            if (now and now[:2]) != seen:
                seen, since = now and now[:2], time.monotonic()
            if now is None:
                if time.monotonic() - since > STALE_SECONDS:
                    raise OSError("%s cannot be made on this file system" % self._directory)
                time.sleep(_LOOK_SECONDS / 10)
                continue
            if (gone(now[1], _self(), now[2]) or time.monotonic() - since > STALE_SECONDS) and self.take_over(now[0]):
                break
            host = now[1].get("host") or "another host"
            if waiting is None:
                raise Busy(host)
            waiting(host)
            time.sleep(_LOOK_SECONDS)

    def keep(self) -> None:
        """Show every few seconds that the owner lives. A thread of its own: the work may block for long."""
        while not self._over.wait(BEAT_SECONDS):
            try:
                self._write(self._path, "r+")
            except FileNotFoundError:
                self._lost = True
                return
            except OSError:
                continue  # a full disk or a server away: the next beat may do

    def release(self) -> None:
        self._over.set()
        for remove, path in ((os.unlink, self._path), (os.rmdir, self._directory)):
            with contextlib.suppress(OSError):
                remove(path)

    def _write(self, path: str, mode: str = "r+") -> None:
        self._beats += 1
        with open(path, mode, encoding="utf-8") as stream:  # closing is what makes it visible on other hosts
            stream.write(json.dumps(dict(_self(), beats=self._beats)))
            stream.truncate()


_OWN = {}  # type: dict[tuple[str, str], Claim]


@contextlib.contextmanager
def holding(hub: str, name: str, waiting=None):
    """A Claim on the model's directory `name` in `hub` for the time of the block. Raises Busy without `waiting`.

    Within a block of its own the process has it already.
    """
    key = (os.path.realpath(hub), name)
    if key in _OWN:
        yield _OWN[key]
        return
    claim = Claim(hub, name)
    claim.acquire(waiting)
    _OWN[key] = claim
    threading.Thread(target=claim.keep, daemon=True).start()
    try:
        yield claim
    finally:
        del _OWN[key]
        claim.release()


def sharing(hub: str, mounts: str | None = None, own: str | None = None) -> list:
    """Hosts that use this cache too, as far as is known: names, or ["other hosts"] for a network file system.

    Pure but for the marks in the cache where `mounts` (/proc/self/mountinfo) and `own` (this host's name) are given.
    """
    hub, marks = os.path.realpath(hub), set()
    for directory in (hub, os.path.dirname(hub)):
        with contextlib.suppress(OSError):
            marks |= set(os.listdir(os.path.join(directory, HOSTS)))
    others = sorted(marks - {own or socket.gethostname()})
    if others:
        return others
    best, kind = "", ""
    for line in (read_text("/proc/self/mountinfo") or "" if mounts is None else mounts).splitlines():
        where, told = line.split()[4].replace("\\040", " "), line.partition(" - ")[2].split()
        if told and len(where) >= len(best) and (hub + "/").startswith(where.rstrip("/") + "/"):
            best, kind = where, told[0]
    return ["other hosts"] if _NETWORK.fullmatch(kind) else []
