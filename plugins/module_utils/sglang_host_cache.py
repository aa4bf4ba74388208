"""What is to be done so that the Hugging Face cache lies where it should. Pure. Python 3.8, standard library.

`plan` decides, the module `hf_cache` looks and does. A device is written to only if it is empty, if it is known by
the record of this host to be the cache, or if the user gave its serial number and nobody uses it.

The record, /var/lib/sglang-ops/cache.json, is written before the first byte goes to a device: it has the UUIDs that
file system and array will get, and serial number and size of each device. `state` is "making" until mkfs is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ansible.module_utils.sglang_host_disks import rows
from ansible.module_utils.sglang_host_verdicts import RECORD, Wanted, is_ours, judge

LABEL = "sglang-cache"  # 12 characters, the most that XFS takes
MARK = "x-sglang-ops.cache"  # our line in fstab; mount and kernel take options that begin with x- for comments
PROGRAMS = {"ext4": "mkfs.ext4", "xfs": "mkfs.xfs", "raid": "mdadm", "nfs": "mount.nfs"}
PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "raid": "mdadm", "nfs": "nfs-common"}
ALWAYS = ("nofail", "x-systemd.device-timeout=30s")  # a host without its cache still boots, and is still reached
NFS_ALWAYS = ("nofail", "_netdev")


@dataclass(frozen=True)
class Directory:
    """What is at the path of the cache."""

    exists: bool = False
    is_directory: bool = True
    entries: int = 0
    mounted: str = ""  # what is mounted there: a device or server:/path
    owner: int = 0
    group: int = 0
    mode: int = 0o755


@dataclass(frozen=True)
class Found:
    devices: tuple = ()
    directory: Directory = Directory()
    record: dict = field(default_factory=dict)
    fstab: str = ""
    programs: frozenset = frozenset(PROGRAMS)  # keys of PROGRAMS that are installed
    has_apt: bool = True
    boot: str = ""  # changes with every boot


@dataclass(frozen=True)
class Plan:
    """What to do, in this order: packages, record, array, file system, fstab, mount, directory."""

    verdicts: tuple = ()
    packages: tuple = ()
    record: dict | None = None
    members: tuple = ()  # devices to be written to (or, of an array, to be assembled)
    raid: str = ""  # create or assemble
    target: str = ""  # the device of the file system; "" for an array that is not there yet
    format: bool = False
    fstab: str | None = None
    mount: bool = False
    directory: bool = False
    warnings: tuple = ()
    refusal: str = ""
    path: str = ""
    kind: str = ""

    @property
    def steps(self) -> tuple:
        """What would be done, for people."""
        devices = ", ".join(self.members)
        erased = [item.device.path for item in self.verdicts if item.verdict == "erase"]
        steps = ["install " + ", ".join(self.packages)] if self.packages else []
        steps += ["ERASE " + ", ".join(erased)] if erased and self.format else []
        steps += ["%s RAID 0 of %s" % (self.raid, devices)] if self.raid else []
        steps += ["make %s on %s" % (self.kind, self.target or "the array")] if self.format else []
        steps += ["write /etc/fstab"] if self.fstab is not None else []
        steps += ["mount " + self.path] if self.mount else []
        return tuple(steps + (["set owner and mode of " + self.path] if self.directory else []))

    @property
    def changed(self) -> bool:
        return bool(self.steps)


def plan(found: Found, wanted: Wanted, identity: str = "", array: str = "") -> Plan:
    """What `found` lacks. Pure. `identity` and `array` are the UUIDs that a new file system and array get.

    A refusal is one sentence with the value and what to do; then nothing is to be touched.
    """
    if not wanted.path.startswith("/") or set(wanted.path) & set(" \t\n#\\") or wanted.path.rstrip("/") == "":
        return Plan(refusal="hf_cache_path '%s' is not an absolute path without spaces." % wanted.path)
    if any(not option or set(option) & set(" \t\n#\\") for option in wanted.options):
        return Plan(refusal="hf_cache_mount_options has an option that is empty or has a space or '#' in it: %s." % (
            ", ".join(wanted.options)))
    if found.directory.exists and not found.directory.is_directory:
        return Plan(refusal="%s is not a directory. Move it away, or set another hf_cache_path." % wanted.path)
    if wanted.source != "directory":
        made = _on_nfs(found, wanted) if wanted.source == "nfs" else _on_devices(found, wanted, identity, array)
        if made.packages and not found.has_apt:
            return replace(made, refusal="%s is missing and this system has no apt. Install it, then try again." % (
                " and ".join(made.packages)))
        return made
    ours = [words for words in rows(found.fstab, 4) if MARK in words[3].split(",")]
    if ours:
        return Plan(refusal="%s is mounted at %s by an earlier run. Keep hf_cache_source at what it was, or take the "
                            "line with %s out of /etc/fstab." % (ours[0][0], ours[0][1], MARK))
    return Plan(directory=_attributes_differ(found, wanted), path=wanted.path)


def _on_devices(found: Found, wanted: Wanted, identity: str, array: str) -> Plan:
    record = found.record
    ours = {device.path for device in found.devices if is_ours(device, record)}
    arrays = {device.path: device for device in found.devices if device.members and set(device.members) <= ours}
    verdicts = tuple(judge(device, wanted, record, found.boot, frozenset(arrays)) for device in found.devices
                     if device.path not in arrays)
    by = {kind: [item.device for item in verdicts if item.verdict == kind]
          for kind in ("cache", "empty", "erase")}
    refusal = _refusal(found, wanted, verdicts)
    ready = record.get("state") == "ready"
    if ready:
        chosen = by["cache"]
        refusal = refusal or _disagreement(found, wanted, chosen)
    elif wanted.raid == "0":
        chosen = by["cache"] + by["empty"] + by["erase"]
    else:
        chosen = (by["cache"] or by["erase"] or sorted(by["empty"], key=lambda device: -device.size))[:1]
    if not refusal and not chosen:
        seen = "; ".join("%s %s" % (item.device.path, item.reason) for item in verdicts if item.verdict == "refused")
        refusal = "No empty NVMe disk was found%s. Name a device in hf_cache_devices, or set %s." % (
            " (%s)" % seen if seen else "", "hf_cache_source: directory")
    if refusal:
        return Plan(verdicts, refusal=refusal)
    return _make(found, wanted, verdicts, chosen, arrays, identity, array)


def _make(found: Found, wanted: Wanted, verdicts: tuple, chosen: list, arrays: dict, identity: str, array: str) -> Plan:
    """What is left to do on devices that may be written to."""
    old, ready = found.record, found.record.get("state") == "ready"
    several = len(chosen) > 1 or (ready and bool(old.get("array")))
    paths = tuple(device.path for device in chosen)
    target = paths[0] if not several else next(
        (path for path, device in arrays.items() if set(device.members) == set(paths)), "")
    if arrays and (not several or not target):
        return Plan(verdicts, refusal="%s is a part of the cache that was begun. Stop it with `mdadm --stop %s`, then "
                                      "run this again." % (next(iter(arrays)), next(iter(arrays))))
    fresh = {
        "state": "making", "boot": found.boot, "path": wanted.path, "filesystem": wanted.filesystem,
        "uuid": old.get("uuid") or identity, "array": (old.get("array") or array) if several else "",
        "devices": [{"path": item.path, "serial": item.serial, "size": item.size} for item in chosen],
    }
    record = old if ready else fresh
    options = (*wanted.options, *ALWAYS, MARK)
    line = "UUID=%s %s %s %s 0 %d" % (record["uuid"], wanted.path, record["filesystem"], ",".join(options),
                                     2 if record["filesystem"] == "ext4" else 0)
    fstab = edited(found.fstab, line)
    raid = "" if not several or target else "assemble" if ready else "create"
    needed = ([] if ready else [wanted.filesystem]) + (["raid"] if raid else [])
    mounted = found.directory.mounted != "" and found.directory.mounted == target
    spare = [item.device.path for item in verdicts if item.verdict == "empty" and item.device.path not in paths]
    warnings = ("Left free: %s. hf_cache_raid: 0 would have joined them, before the cache was made." % ", ".join(spare),
                ) if spare and not ready else ()
    return Plan(verdicts, packages=tuple(PACKAGES[key] for key in needed if key not in found.programs),
                record=None if ready else fresh, members=paths, raid=raid, target=target, format=not ready,
                fstab=fstab if fstab != found.fstab else None, mount=not mounted, path=wanted.path,
                directory=not mounted or _attributes_differ(found, wanted), warnings=warnings,
                kind=record["filesystem"])


def _refusal(found: Found, wanted: Wanted, verdicts: tuple) -> str:
    """Why nothing may be touched, "" if nothing speaks against it."""
    judged = {item.device.path: item for item in verdicts}
    if len(set(wanted.devices)) > 1 and wanted.raid == "none":
        return "hf_cache_devices names %d devices. Set hf_cache_raid: 0 to make one of them, or name one." % len(
            set(wanted.devices))
    for path in (*wanted.devices, *wanted.erase):
        if path not in judged or judged[path].verdict == "ignored":
            return "%s is %s. Correct hf_cache_devices and hf_cache_erase." % (
                path, "to be erased, but not to be used" if path in judged else "no block device of this host")
    for path in (*wanted.devices, *wanted.erase):
        item = judged[path]
        if item.verdict == "refused":
            return "%s %s. %s" % (path, item.reason, _remedy(item.device, wanted))
    return _occupied(found, wanted, {device.path for device in found.devices if is_ours(device, found.record)})


def _remedy(device, wanted: Wanted) -> str:
    if device.uses or device.mounts or device.fstab or device.holders or device.unreadable:
        return "Name another device in hf_cache_devices."
    if device.path not in wanted.erase:
        return "Name another device, or erase this one for good with hf_cache_erase: {%s: its serial number}." % (
            device.path)
    return "Nothing was erased; correct hf_cache_erase."


def _occupied(found: Found, wanted: Wanted, ours: set) -> str:
    """Why nothing can be mounted at the path."""
    at = found.directory
    others = [words[0] for words in rows(found.fstab, 4) if words[1] == wanted.path and MARK not in words[3].split(",")]
    if others:
        return "/etc/fstab has %s for %s already. Take the line out, or set hf_cache_source: directory." % (
            others[0], wanted.path)
    if at.mounted and at.mounted not in ours:
        return "%s is mounted at %s already. Unmount it, or set hf_cache_source: directory." % (at.mounted, wanted.path)
    if at.entries and not at.mounted:
        return "%s holds %d entries that a mount would hide. Move them away, or set another hf_cache_path." % (
            wanted.path, at.entries)
    return ""


def _disagreement(found: Found, wanted: Wanted, chosen: list) -> str:
    """Why a cache that exists is not the wanted one: it is never made anew, that would destroy it."""
    record = found.record
    if len(chosen) != len(record["devices"]):
        names = ", ".join("%s (serial number '%s')" % (item["path"], item["serial"]) for item in record["devices"])
        return "The cache was made on %s, and %d of %d can be used. Bring them back, or delete %s to begin anew." % (
            names, len(chosen), len(record["devices"]), RECORD)
    if record["filesystem"] != wanted.filesystem:
        return "The cache is %s, and hf_cache_filesystem: %s would destroy it. Set hf_cache_filesystem: %s." % (
            record["filesystem"], wanted.filesystem, record["filesystem"])
    paths = {device.path for device in chosen}
    if wanted.devices and set(wanted.devices) != paths:
        return "The cache is on %s; other devices would have to begin anew. Set hf_cache_devices to these." % (
            ", ".join(sorted(paths)))
    return ""


def _on_nfs(found: Found, wanted: Wanted) -> Plan:
    if wanted.nfs.find(":/") < 1 or set(wanted.nfs) & set(" \t\n#"):
        return Plan(refusal="hf_cache_nfs '%s' is not of the form server:/path." % wanted.nfs)
    refusal = _occupied(found, wanted, {wanted.nfs})
    if refusal:
        return Plan(refusal=refusal)
    options = [*wanted.options, *NFS_ALWAYS, MARK]
    fstab = edited(found.fstab, "%s %s nfs %s 0 0" % (wanted.nfs, wanted.path, ",".join(options)))
    warnings = ["%s may be shared: the hub's file locks do not hold on every NFS server, and SGLang's never reach "
                "another host. Download on one host at a time, and start the servers afterwards." % wanted.nfs]
    if {"nolock", "local_lock=all", "local_lock=flock"} & set(wanted.options):
        warnings.append("hf_cache_mount_options switch locks between hosts off.")
    mounted = found.directory.mounted == wanted.nfs
    return Plan(packages=() if "nfs" in found.programs or mounted else (PACKAGES["nfs"],), path=wanted.path, kind="nfs",
                fstab=fstab if fstab != found.fstab else None, mount=not mounted, warnings=tuple(warnings))


def edited(fstab: str, line: str) -> str:
    """fstab with our line, which replaces the one that was there; everything else as it was. Pure."""
    kept = [text for text in fstab.splitlines() if not _is_marked(text)]
    at = next((number for number, text in enumerate(fstab.splitlines()) if _is_marked(text)), len(kept))
    return "\n".join([*kept[:at], line, *kept[at:]]) + "\n"


def _is_marked(text: str) -> bool:
    words = rows(text, 4)
    return bool(words) and MARK in words[0][3].split(",")


def _attributes_differ(found: Found, wanted: Wanted) -> bool:
    at = found.directory
    return not at.exists or (at.owner, at.group, at.mode) != (wanted.owner, wanted.group, wanted.mode)
