"""What is on the block devices of a host, and who uses them. Reads only. Python 3.8, standard library.

A device counts as empty only if nobody uses it, libblkid finds no signature on it, and everything that is read of
it is zero: its first and last megabytes and samples between them. A signature alone would not do: a disk that is
encrypted without a header, a database's raw device and a virtual machine's disk whose first sectors were lost have
none, and all of them are data.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field

from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_state import read_text

SYS = "/sys/class/block"
FSTAB = "/etc/fstab"
CRYPTTAB = "/etc/crypttab"
SYSTEM_MOUNTS = ("/", "/usr", "/boot", "/boot/efi", "/var")
EDGE = 4 << 20  # bytes read at either end: partition tables, superblocks and their copies all lie there
SAMPLE = 16 << 10
SAMPLES = 1024  # a tenth of a second on NVMe
_NO_DISK = re.compile(r"(ram|zram|sr|fd|nbd)\d+$")


@dataclass(frozen=True)
class Signature:
    kind: str  # as libblkid calls it: ext4, gpt, LVM2_member, zfs_member, crypto_LUKS, ...
    uuid: str = ""
    label: str = ""

    def __str__(self) -> str:
        named = ["%s %s" % pair for pair in (("label", self.label), ("UUID", self.uuid)) if pair[1]]
        return self.kind + (" (%s)" % ", ".join(named) if named else "")


@dataclass(frozen=True)
class Device:
    """A block device. What nobody asks about is not looked at: `looked` is False, and the rest means nothing."""

    path: str
    size: int = 0  # bytes
    model: str = ""
    serial: str = ""
    nvme: bool = False
    partition: bool = False
    partitions: tuple = ()
    looked: bool = True
    uses: tuple = ()  # why it is not to be touched whatever it holds, each a few words
    mounts: tuple = ()  # where it is mounted itself
    fstab: tuple = ()  # where the host's fstab would mount it
    holders: tuple = ()  # devices made of it: /dev/md0, /dev/dm-3
    members: tuple = ()  # of an mdraid array: the devices it is made of
    signatures: tuple = ()
    written_at: int | None = None  # offset of the first byte found that is not zero
    unreadable: str = ""

    @property
    def empty(self) -> bool:
        used = self.uses or self.mounts or self.fstab or self.holders or self.unreadable
        return self.looked and not (used or self.signatures or self.partitions) and self.written_at is None


@dataclass(frozen=True)
class Users:
    """Who uses devices, by the name under /sys/class/block."""

    mounts: dict = field(default_factory=dict)  # name -> mount points
    swaps: frozenset = frozenset()
    tabs: tuple = ()  # (field that names a device, what uses it, mount point or "")


def observe(named=(), serials=()) -> tuple:
    """All disks of the host, and the partitions in `named`. NVMe disks, what is named (paths, links to them too) or
    has one of `serials`, and arrays are looked at closely; the others are only listed.
    """
    users = _users()
    wanted = {os.path.basename(os.path.realpath(path)) for path in named}
    found = []
    for name in sorted(os.listdir(SYS), key=_natural):
        plain = not (_NO_DISK.match(name) or _attribute(name, "partition") or _attribute(name, "hidden") == "1")
        if (name in wanted or plain) and _attribute(name, "size") not in ("", "0"):
            close = name in wanted or name.startswith(("nvme", "md")) or serial(name) in serials
            found.append(_device(name, users, close))
    return tuple(found)


def _device(name: str, users: Users, close: bool) -> Device:
    path = _node(name)
    known = {
        "path": path, "size": int(_attribute(name, "size")) * 512, "model": _attribute(name, "device/model"),
        "serial": serial(name), "nvme": name.startswith("nvme"), "partition": bool(_attribute(name, "partition")),
    }
    if not close:
        return Device(looked=False, **known)
    system = _system_mount(name, users)
    if system:  # and nothing more needs to be known
        return Device(uses=("is the system's disk (%s is mounted at %s)" % system,), **known)
    mounts, uses = tuple(users.mounts.get(name, ())), list(_uses(name, users))
    holders = tuple(_node(holder) for holder in _listing(name, "holders"))
    members = tuple(_node(member) for member in _listing(name, "slaves")) if name.startswith("md") else ()
    partitions = tuple(_node(other) for other in _partitions(name))
    unreadable, found, written_at = _mistaken(name, path), (), None
    if not unreadable:
        found, unreadable = signatures_of(path)
        written_at, trouble = _look(path, 0 if found else known["size"])
        if trouble == errno.EBUSY and not (uses or mounts or holders):
            uses.append("is in use by a program")
        elif trouble and trouble != errno.EBUSY:
            unreadable = unreadable or os.strerror(trouble)
    fstab, others = _tabs(path, found, users)
    return Device(uses=tuple(uses) + others, mounts=mounts, fstab=fstab, holders=holders, members=members,
                  partitions=partitions, signatures=found, written_at=written_at, unreadable=unreadable, **known)


def _uses(name: str, users: Users):
    """What speaks against touching a device besides what it holds and where it is mounted itself."""
    for other in _partitions(name):
        child = _device(other, users, close=True)
        yield from ("its partition %s %s" % (other, use) for use in _all_uses(child))
    for holder in _listing(name, "holders"):
        for where in users.mounts.get(holder, ()):
            if not holder.startswith("md"):  # whether that array is the cache is for the plan to say
                yield "%s on it is mounted at %s" % (holder, where)
    if name in users.swaps:
        yield "is swap space in use"
    if _attribute(name, "ro") == "1":
        yield "is read-only"


def _all_uses(device: Device) -> list:
    said = ["is mounted at " + where for where in device.mounts]
    said += ["is in %s for %s" % (FSTAB, where) for where in device.fstab if where not in device.mounts]
    return said + ["is part of " + holder for holder in device.holders] + list(device.uses)


def _system_mount(name: str, users: Users):
    """(device, mount point) of the running system that lies on this device, or None."""
    for other in (name, *_descendants(name)):
        for where in users.mounts.get(other, ()):
            if where in SYSTEM_MOUNTS:
                return other, where
    return None


def _descendants(name: str):
    """Partitions of a device and what is made of it and of them: LVM, dm-crypt, mdraid."""
    for child in _partitions(name) + _listing(name, "holders"):
        yield child
        yield from _descendants(child)


def _mistaken(name: str, path: str) -> str:
    """Why the node in /dev cannot be trusted to be the device, "" if it can."""
    try:
        number = os.stat(path).st_rdev
    except OSError:
        return "has no node in /dev"
    if "%d:%d" % (os.major(number), os.minor(number)) != _attribute(name, "dev"):
        return "has a node in /dev that is another device"
    return ""


def signatures_of(path: str) -> tuple:
    """(signatures, ""), or ((), why they cannot be read)."""
    done = run("wipefs", "--no-act", "--parsable", path)
    return (signatures(done.stdout), "") if done.ok else ((), done.error)


def signatures(listing: str) -> tuple:
    """What `wipefs --parsable` prints, offset,uuid,label,kind per line, each signature once. Pure."""
    rows = [line.split(",") for line in listing.splitlines() if line.startswith("0x")]
    return tuple(dict.fromkeys(Signature(row[3], row[1], row[2]) for row in rows))


def spots(size: int) -> list:
    """(offset, length) of what is read of a device to see whether it is empty. Pure."""
    edge = min(EDGE, size)
    stride = max(size // SAMPLES, SAMPLE)
    between = [(offset, SAMPLE) for offset in range(edge, max(size - edge, 0), stride)]
    return [(0, edge), *between, (max(size - edge, 0), edge)]


def _look(path: str, size: int) -> tuple:
    """(offset of the first byte that is not zero or None, errno of what went wrong or 0). With size 0 nothing is read.

    Opened for reading only, and exclusively: that fails with EBUSY while a mount anywhere (other containers
    included), swap, LVM, mdraid, or a program that asked for it has the device.
    """
    trouble = 0
    try:
        handle = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EBUSY:
            return None, error.errno
        trouble = errno.EBUSY
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead between samples
        for offset, length in spots(size):
            data = os.pread(handle, length, offset)
            if data.strip(b"\0"):
                return offset + len(data) - len(data.lstrip(b"\0")), trouble
    except OSError as error:
        return None, error.errno
    finally:
        os.close(handle)
    return None, trouble


def serial(name: str) -> str:
    """The serial number of a disk as its maker gave it, of a partition that of its disk.

    A loop device has none: the name of the file behind it stands for it.
    """
    if _attribute(name, "partition"):
        return serial(os.path.basename(os.path.dirname(os.path.realpath(os.path.join(SYS, name)))))
    if name.startswith("loop"):
        return os.path.basename(_attribute(name, "loop/backing_file"))
    told = _attribute(name, "device/serial") or _attribute(name, "serial")
    udev = read_text("/run/udev/data/b" + _attribute(name, "dev")) or ""
    short = re.search(r"^E:ID_SERIAL_SHORT=(.+)$", udev, re.MULTILINE)
    return told or (short.group(1).strip() if short else "")


def _users() -> Users:
    mounts = {}  # type: dict[str, list]
    for line in (read_text("/proc/self/mountinfo") or "").splitlines():
        number, where, source = mount_fields(line)
        link = "/sys/dev/block/" + number
        # btrfs shows a number of its own; there the source tells
        name = os.path.basename(os.path.realpath(link if os.path.exists(link) else source))
        mounts.setdefault(name, []).append(where)
    swaps = [line.split()[0] for line in (read_text("/proc/swaps") or "").splitlines()[1:]]
    tabs = [(words[0], "swap" if words[2] == "swap" else "", words[1]) for words in rows(read_text(FSTAB), 3)]
    tabs += [(words[1], "is named in %s (%s)" % (CRYPTTAB, words[0]), "") for words in rows(read_text(CRYPTTAB), 2)]
    return Users(mounts, frozenset(os.path.basename(os.path.realpath(path)) for path in swaps), tuple(tabs))


def mount_fields(line: str) -> tuple:
    """(major:minor, mount point, source) of a line of mountinfo. Pure."""
    before, _, after = line.partition(" - ")
    return before.split()[2], unescape(before.split()[4]), unescape(after.split()[1])


def rows(text, least: int) -> list:
    """Lines of a table such as fstab as lists of at least so many words, without comments. Pure."""
    lines = [line.split() for line in (text or "").splitlines() if not line.lstrip().startswith("#")]
    return [[unescape(word) for word in words] for words in lines if len(words) >= least]


def unescape(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), word)


def _tabs(path: str, found: tuple, users: Users) -> tuple:
    """(mount points in fstab, other uses) that name the device by its path, UUID or label."""
    tags = {"%s=%s" % (key, value) for item in found for key, value in (("UUID", item.uuid), ("LABEL", item.label))
            if value}
    fstab, others = [], []
    for spec, use, where in users.tabs:
        plain = spec.replace('"', "")
        key, tagged, value = plain.partition("=")
        node = "/dev/disk/by-%s/%s" % (key.lower(), value) if tagged else plain
        if plain in tags or (node.startswith("/dev/") and os.path.realpath(node) == path):
            if where and use != "swap":
                fstab.append(where)
            else:
                others.append("is swap space in %s" % FSTAB if use == "swap" else use)
    return tuple(fstab), tuple(others)


def _attribute(name: str, attribute: str) -> str:
    try:
        return (read_text(os.path.join(SYS, name, attribute)) or "").strip()
    except (OSError, ValueError):
        return ""


def _partitions(name: str) -> list:
    return [entry for entry in _listing(name, "") if entry.startswith(name) and _attribute(entry, "partition")]


def _listing(name: str, directory: str) -> list:
    try:
        return sorted(os.listdir(os.path.join(SYS, name, directory)), key=_natural)
    except OSError:
        return []


def _node(name: str) -> str:
    return "/dev/" + name.replace("!", "/")


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
