"""One operation at a time on a host: the lock, who holds it, and work that outlives its run.

    /run/sglang-ops/lock    locked (flock) by the holder, a process that lives as long as the operator's run; says who
    /run/sglang-ops/work    locked, shared, by every module that changes the host, for as long as it works

The kernel frees a lock with the process that has it, and both files go with a reboot: there is never one to break.
This file is also the holder: the controller sends it over SSH to ``python3``, followed by one line of JSON that says
who asks, and after that a line every few seconds for as long as the run lasts. Python 3.8, standard library alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time

# Who is not root can change, and lock, only what is theirs.
DIRECTORY = "/run/sglang-ops" if os.geteuid() == 0 else "/tmp/sglang-ops-%d" % os.geteuid()  # noqa: S108
# Longer than ssh takes to notice a dead link (ansible.cfg: 4 times 15 s): when the holder gives up, so has the run.
LINK_SECONDS = 75
_LOOK_SECONDS = 0.3
_BEGIN_SECONDS = 2  # in which a new holder has written who it is


def path(name):
    return os.path.join(DIRECTORY, name)


def _open(name):
    os.makedirs(DIRECTORY, mode=0o755, exist_ok=True)
    return os.open(path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _try(handle, mode):
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _written():
    """What the last holder wrote, {} if there was none since the host started."""
    try:
        with open(path("lock"), encoding="utf-8") as stream:
            return json.loads(stream.read() or "{}")
    except (OSError, ValueError):
        return {}


def locked_by(name, table="/proc/locks"):
    """Numbers of the processes that have a lock on the file, as the kernel knows them."""
    try:
        state = os.stat(path(name))
        with open(table, encoding="ascii") as stream:
            rows = [line.split() for line in stream]
    except OSError:
        return []
    place = "%02x:%02x:%d" % (os.major(state.st_dev), os.minor(state.st_dev), state.st_ino)
    # "1: FLOCK  ADVISORY  WRITE 4711 00:19:1234 0 EOF"; a row with "->" is of somebody who waits.
    return [int(row[4]) for row in rows if len(row) > 5 and row[1] == "FLOCK" and row[5] == place]


def current():
    """Who holds the lock: {"who", "controller", "pid", "verb", "run", "since", "holder", …}, {} if nobody."""
    deadline = time.monotonic() + _BEGIN_SECONDS
    while True:
        holders = locked_by("lock")
        if not holders:
            return {}
        found = _written()
        if found.get("holder") in holders:
            return found
        if time.monotonic() > deadline:
            return {"who": "a process of this host", "holder": holders[0]}
        time.sleep(0.02)


def counted():
    """How often the lock has been taken, and since which start of the host."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        boot = stream.read().strip()
    return "%s:%d" % (boot, _written().get("count", 0))


def generation():
    """Equal to `counted` when the lock is had: no other operator has changed what was seen.

    What is seen while somebody is at work may be otherwise a moment later, so it has one that is equal to none.
    """
    return counted() + ("+" if locked_by("lock") or locked_by("work") else "")


@contextlib.contextmanager
def working(unless=False):
    """For modules that change a host: the next operator waits for their end, whatever became of their own."""
    handle = None
    with contextlib.suppress(OSError):
        if not unless:
            handle = _open("work")
            fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def release(seconds=5.0):
    """End the process that has the lock, if there is one. Raises OSError if it does not go."""
    found = current()
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + seconds
        while found and found["holder"] in locked_by("lock"):
            os.kill(found["holder"], number)
            time.sleep(0.05)
            if time.monotonic() > deadline:
                break
        else:
            return
    raise OSError("process %d does not end" % found["holder"])


class Holder:
    """The process that has the lock. It tells what happens, in lines of JSON, to the run that it lives with."""

    def __init__(self, asked, source, target):
        self.asked = asked
        self.source, self.target = source, target
        self.heard = time.monotonic()

    def tell(self, **line):
        self.target.write(json.dumps(line) + "\n")
        self.target.flush()

    def alone(self, seconds):
        """Wait so long; True as soon as the run has ended, or has not been heard of for too long."""
        if select.select([self.source], [], [], seconds)[0]:
            if not os.read(self.source, 4096):
                return True
            self.heard = time.monotonic()
        return time.monotonic() - self.heard > LINK_SECONDS

    def hold(self):
        if self.asked.get("turn") and not self._turn():
            return
        handle = _open("lock")
        if not self._take(handle):
            return
        before, count = counted(), _written().get("count", 0)
        identity = dict(self.asked["identity"], holder=os.getpid(), since=time.time(), count=count + 1)
        os.ftruncate(handle, os.pwrite(handle, json.dumps(identity).encode(), 0))
        if not self._settle():
            return
        self.tell(held=identity, before=before)
        while not self.alone(LINK_SECONDS / 5):
            pass

    def _turn(self):
        """Wait for the run to say that it has all hosts before this one, and how long it would wait here."""
        self.tell(ready=True)
        said = b""
        while not said.endswith(b"!"):
            if not select.select([self.source], [], [], LINK_SECONDS)[0]:
                return False
            piece = os.read(self.source, 4096)
            if not piece:
                return False
            said = (said + piece).lstrip()
        self.asked["wait"] = float(said[:-1])
        self.heard = time.monotonic()
        return True

    def _take(self, handle):
        """Have the lock within the time that the operator would wait, or say who has it."""
        deadline = time.monotonic() + self.asked.get("wait", 0)
        told = None
        while not _try(handle, fcntl.LOCK_EX):
            other = current()
            if other and time.monotonic() >= deadline:
                self.tell(busy=other)
                return False
            if other and other != told:
                self.tell(waiting=other)
                told = other
            if self.alone(_LOOK_SECONDS if other else 0.01):
                return False
        return True

    def _settle(self):
        """Wait for modules of a run that has ended without them."""
        handle = _open("work")
        deadline = time.monotonic() + self.asked.get("settle", 0)
        told = False
        while not _try(handle, fcntl.LOCK_EX):
            workers = locked_by("work")
            if time.monotonic() >= deadline:
                self.tell(unfinished=workers)
                return False
            if not told:
                self.tell(settling=workers)
                told = True
            if self.alone(_LOOK_SECONDS):
                return False
        os.close(handle)
        return True


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("released"))
    asked = json.loads(sys.stdin.buffer.readline())
    Holder(asked, sys.stdin.fileno(), sys.stdout).hold()
