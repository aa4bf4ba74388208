"""Making and mounting the file system of the cache, as it was planned. Python 3.8, standard library.

Each step can be cut off: `sglang_host_cache.plan` finds what is left to do. No tool is told to use force: those that
look for data themselves may still object.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat

from ansible.module_utils import sglang_host_disks as disks
from ansible.module_utils.sglang_host_cache import LABEL, Directory
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_state import read_text, write_atomic
from ansible.module_utils.sglang_host_verdicts import RECORD

ARRAY = "/dev/md/" + LABEL
LOCK = "/run/sglang-ops/cache.lock"
HOSTS = ".sglang-ops-hosts"  # in a shared cache: a file for every host that mounts it
_INODE_BYTES = 256 << 10  # ext4's own 16 KiB would give a sixtieth of the disk to inodes; models are few, large files


class Failure(Exception):
    """The cache could not be made; the message says why and what to do."""


@contextlib.contextmanager
def alone():
    """No other run of this module does anything on this host meanwhile. Raises Failure if one does."""
    os.makedirs(os.path.dirname(LOCK), mode=0o755, exist_ok=True)
    with open(LOCK, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Failure("another run is at work on it. Wait for its end, then run this again.") from None
        yield


def directory(path: str) -> Directory:
    """What is at `path`. Reads only."""
    try:
        status = os.stat(path)
    except OSError:
        return Directory(mounted=mounted_at(path))
    if not stat.S_ISDIR(status.st_mode):
        return Directory(exists=True, is_directory=False)
    return Directory(True, True, len(os.listdir(path)), mounted_at(path), status.st_uid, status.st_gid,
                     stat.S_IMODE(status.st_mode))


def mounted_at(path: str) -> str:
    """The device (as the kernel names it) or server:/path that is mounted at `path`, "" if nothing is."""
    found = ""
    for line in (read_text("/proc/self/mountinfo") or "").splitlines():
        number, where, source = disks.mount_fields(line)
        if where == path:  # the last one lies on top
            link = "/sys/dev/block/" + number
            found = "/dev/" + os.path.basename(os.path.realpath(link)) if os.path.exists(link) else source
    return found


def build(planned, progress) -> None:
    """Array and file system. Raises Failure."""
    if planned.record:
        write_atomic(RECORD, json.dumps(planned.record, sort_keys=True, indent=1) + "\n", mode=0o600)
    by_path = {item.device.path: item.device for item in planned.verdicts}
    target = planned.target
    if planned.format and (not target or target in planned.members):  # else the array stands already
        for path in planned.members:
            _wipe(by_path[path], progress)
    if planned.raid:
        target = _array(planned, progress)
    if planned.format:
        if target not in by_path:  # the array: what shines through from its members is no longer anybody's
            _do(progress, "making " + planned.kind, "wipefs", "--all", target)
        _do(progress, "making " + planned.kind, *mkfs(planned.kind, planned.record["uuid"], target))
        run("udevadm", "settle", "--timeout=10")
        write_atomic(RECORD, json.dumps(dict(planned.record, state="ready"), sort_keys=True, indent=1) + "\n", 0o600)


def _wipe(device, progress) -> None:
    if device.signatures or device.partitions:
        _do(progress, "erasing " + device.path, "wipefs", "--all", device.path)


def mkfs(kind: str, identity: str, target: str) -> tuple:
    """The command that makes the file system. Pure."""
    if kind == "xfs":
        return "mkfs.xfs", "-q", "-L", LABEL, "-m", "uuid=" + identity, target
    return "mkfs.ext4", "-q", "-m", "0", "-i", str(_INODE_BYTES), "-L", LABEL, "-U", identity, target


def mdadm(planned) -> tuple:
    """The command that makes or assembles the array. Pure."""
    record, members = planned.record, planned.members
    if planned.raid == "assemble":
        return ("mdadm", "--assemble", ARRAY, *members)
    octets = record["array"].replace("-", "")
    identity = ":".join(octets[at:at + 8] for at in range(0, 32, 8))
    return ("mdadm", "--create", ARRAY, "--level=0", "--metadata=1.2", "--homehost=any", "--name=" + LABEL,
            "--uuid=" + identity, "--raid-devices=%d" % len(members), *members)


def _array(planned, progress) -> str:
    _do(progress, "making RAID 0", *mdadm(planned))
    run("udevadm", "settle", "--timeout=10")
    wanted = {os.path.basename(path) for path in planned.members}
    for name in os.listdir(disks.SYS):
        if name.startswith("md") and set(os.listdir(os.path.join(disks.SYS, name, "slaves"))) == wanted:
            return "/dev/" + name
    raise Failure("mdadm says nothing, and there is no array of %s. See `cat /proc/mdstat` on the host." % (
        ", ".join(planned.members)))


def attach(planned, wanted) -> list:
    """fstab, mount, owner and mode; returns warnings. Raises Failure."""
    if planned.fstab is not None:
        # No daemon-reload: it would take the GPUs from containers that have them by docker's old hook. `mount` reads
        # fstab itself, and systemd does at the next boot.
        write_atomic(os.path.realpath(disks.FSTAB), planned.fstab)
    os.makedirs(wanted.path, mode=0o755, exist_ok=True)
    if planned.mount:
        done = run("mount", wanted.path, timeout=120)
        if not done.ok:
            raise Failure("mount says: %s" % done.error)
        if not mounted_at(wanted.path):
            raise Failure("mount says nothing, and nothing is mounted. See `dmesg` on the host.")
    if wanted.source == "nfs":
        return _share(wanted.path) if planned.mount else []
    os.chown(wanted.path, wanted.owner, wanted.group)
    os.chmod(wanted.path, wanted.mode)
    return []


def _share(path: str) -> list:
    """Leave this host's mark in a shared cache, under a lock; returns a warning if others have left theirs.

    Raises Failure where root cannot write (an export with root_squash) or files cannot be locked.
    """
    marks, own = os.path.join(path, HOSTS), socket.gethostname()
    try:
        os.makedirs(marks, exist_ok=True)
        with open(os.path.join(marks, own), "w", encoding="utf-8") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mark.write("mounts this cache\n")
    except OSError as error:
        raise Failure("root cannot write and lock files in it: %s. Export it with no_root_squash and NFS 4." % (
            error.strerror)) from error
    others = sorted(set(os.listdir(marks)) - {own})
    return ["%s is shared with %s: download on one of them at a time." % (path, ", ".join(others))] if others else []


def _do(progress, detail: str, *argv: str) -> None:
    progress.report(detail)
    done = progress.run_child(argv, gentle=True)
    if not done.ok:
        raise Failure("%s says: %s" % (argv[0], done.error))
