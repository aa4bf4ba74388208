"""May this device become the cache? Pure. Python 3.8, standard library.

Yes if it is empty, if the record of this host knows it to be the cache (by UUID, or, while the cache is being made,
by serial number and size), or if the user gave its serial number and nobody uses it. In every other case, no.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible.module_utils.sglang_host_command import size as shown_size

RECORD = "/var/lib/sglang-ops/cache.json"
RAID_MEMBER = "linux_raid_member"


@dataclass(frozen=True)
class Wanted:
    path: str
    source: str = "directory"  # directory, nvme or nfs
    devices: tuple = ()  # paths as the kernel names them
    raid: str = "none"
    filesystem: str = "ext4"
    options: tuple = ("noatime",)
    erase: dict = field(default_factory=dict)  # device -> serial number
    nfs: str = ""
    owner: int = 0
    group: int = 0
    mode: int = 0o755


@dataclass(frozen=True)
class Verdict:
    device: object
    verdict: str  # cache, empty, erase, refused or ignored
    reason: str

    def row(self) -> dict:
        device = self.device
        return {"path": device.path, "size": shown_size(device.size), "model": device.model, "serial": device.serial,
                "verdict": self.verdict, "reason": self.reason}


def judge(device, wanted: Wanted, record: dict, boot: str, arrays: frozenset = frozenset()) -> Verdict:
    """What may be done with a device, and why. `arrays` are the paths of arrays that are the cache. Pure."""
    def is_(verdict: str, reason: str) -> Verdict:
        return Verdict(device, verdict, reason)

    named = device.path in wanted.devices
    ours = is_ours(device, record)
    if not (named or ours or (not wanted.devices and device.nvme and not device.partition)):
        return is_("ignored", "not named in hf_cache_devices" if wanted.devices else "no NVMe disk")
    uses = _uses(device, wanted.path if ours else "", arrays if ours else frozenset())
    if uses:
        return is_("refused", "; ".join(uses + ["holds " + str(item) for item in device.signatures[:1]]))
    begun = record.get("state") == "making" and _listed(device, record, boot)
    if ours or (begun and not (device.signatures or device.partitions)):
        return is_("cache", "is the cache" if record.get("state") == "ready" else "was begun and is to be completed")
    if device.empty:
        return is_("empty", "holds nothing")
    objection = _objection(device, wanted.erase.get(device.path), record, boot)
    holds = "holds " + _content(device)
    return is_("refused", holds + objection) if objection is not None else is_("erase", holds + ", to be erased")


def _uses(device, path: str, arrays: frozenset) -> list:
    """Who uses the device, besides the cache itself: its mount at `path`, and its `arrays`."""
    if device.unreadable:
        return [device.unreadable]
    said = list(device.uses)
    said += ["is mounted at " + where for where in device.mounts if where != path]
    said += ["is in /etc/fstab for " + where for where in device.fstab if where not in (path, *device.mounts)]
    held = [holder for holder in device.holders if holder not in arrays]
    return said + (["is part of " + ", ".join(held)] if held else [])


def _content(device) -> str:
    holds = ", ".join(map(str, device.signatures))
    if device.partitions:
        return "%s with %s" % (holds or "a partition table", ", ".join(device.partitions))
    return holds or "data without a known signature at byte %d" % device.written_at


def _objection(device, serial, record: dict, boot: str):
    """Why a device with data is not to be erased, as the end of a sentence; None if it may be."""
    if serial is None:
        return ""
    if not device.serial or serial != device.serial:
        known = "'%s'" % device.serial if device.serial else "unknown"
        return ", and its serial number is %s, not '%s'" % (known, serial)
    if record.get("state") == "ready" and _listed(device, record, boot):
        return ", and was the cache once: delete %s to let it be erased again" % RECORD
    return None


def is_ours(device, record: dict) -> bool:
    """Whether the device has the file system, or is a member of the array, that the record tells of. Pure."""
    uuids = {item.uuid.replace("-", "") for item in device.signatures}
    known = record.get("array") if any(item.kind == RAID_MEMBER for item in device.signatures) else record.get("uuid")
    return len(device.signatures) == 1 and bool(known) and uuids == {str(known).replace("-", "")}


def _listed(device, record: dict, boot: str) -> bool:
    """Whether the record lists this very device: by serial number and size, or, where it shows none, by name within
    the same boot."""
    for item in record.get("devices", ()):
        same = item["serial"] == device.serial and item["size"] == device.size
        if same and (device.serial or (item["path"] == device.path and record.get("boot") == boot)):
            return True
    return False
