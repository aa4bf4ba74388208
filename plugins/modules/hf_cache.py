#!/usr/bin/python
"""Put the Hugging Face cache on fast storage, and never destroy what is on it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hf_cache
short_description: Put the Hugging Face cache on fast storage
description:
  - Makes a directory, or a file system on block devices that hold nothing, or a mount of NFS, where the cache lies.
  - A device is written to only if nobody uses it, it has no signature and reads as zeros; or if it is the cache that
    an earlier run made or began; or if its serial number is given in O(erase) and nobody uses it.
options:
  path:
    description: Where the cache is to be.
    type: path
    required: true
  source:
    description: What it lies on.
    type: str
    choices: [directory, nvme, nfs]
    default: directory
  devices:
    description: Block devices for the file system; without any, NVMe disks that hold nothing are found.
    type: list
    elements: path
    default: []
  raid:
    description: Whether several devices become one, RAID 0, with mdadm.
    type: str
    choices: [none, "0"]
    default: none
  filesystem:
    description: The file system to make.
    type: str
    choices: [ext4, xfs]
    default: ext4
  mount_options:
    description: Options for the mount, besides those that let a host boot without its cache.
    type: list
    elements: str
    default: [noatime]
  erase:
    description: Devices that may be erased although they hold data, each with its serial number.
    type: dict
    default: {}
  nfs:
    description: The export, server:/path.
    type: str
    default: ""
  owner:
    description: User that owns the directory.
    type: str
    default: root
  group:
    description: Group that owns the directory.
    type: str
    default: root
  mode:
    description: Mode of the directory, octal.
    type: str
    default: "0755"
  progress_token:
    description: Name under which the module reports its progress on the host.
    type: str
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: One file system over all empty NVMe disks
  hf_cache:
    path: /var/lib/sglang-ops/huggingface
    source: nvme
    raid: "0"
"""

RETURN = r"""
sglang_ops:
  description: The cache, the table of devices with a verdict on each, and what was or would be done.
  returned: always
  type: dict
"""

import grp
import json
import os
import pwd
import shutil
import uuid

from ansible.module_utils import sglang_host_cache as cache
from ansible.module_utils import sglang_host_disks as disks
from ansible.module_utils import sglang_host_storage as storage
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_apt import Apt
from ansible.module_utils.sglang_host_command import free_bytes
from ansible.module_utils.sglang_host_package_manager import PackageError
from ansible.module_utils.sglang_host_progress import Progress
from ansible.module_utils.sglang_host_state import read_text
from ansible.module_utils.sglang_host_verdicts import RECORD, Wanted


def wish(asked):
    """The parameters as planning takes them. Raises ValueError with what is wrong and what to do."""
    try:
        owner, group = pwd.getpwnam(asked["owner"]).pw_uid, grp.getgrnam(asked["group"]).gr_gid
    except KeyError as error:
        raise ValueError("hf_cache_owner or hf_cache_group is unknown on this host: %s." % error.args[0]) from None
    try:
        mode = int(asked["mode"], 8)
    except ValueError:
        mode = -1
    if not (asked["mode"].startswith("0") and 0 <= mode <= 0o7777):  # YAML reads 0770 without quotes as 504
        raise ValueError("hf_cache_mode '%s' is not octal, such as \"0755\" in quotes." % asked["mode"])
    path = os.path.normpath(asked["path"])
    if asked["source"] != "directory" and os.path.realpath(path) != path:
        raise ValueError("%s is reached through a symbolic link. Set hf_cache_path: %s." % (
            path, os.path.realpath(path)))
    return Wanted(
        path, asked["source"], tuple(dict.fromkeys(os.path.realpath(device) for device in asked["devices"])),
        asked["raid"], asked["filesystem"], tuple(asked["mount_options"]),
        {os.path.realpath(device): str(serial) for device, serial in asked["erase"].items()}, asked["nfs"],
        owner, group, mode,
    )


def observe(wanted):
    """All that the plan rests on. Reads only."""
    record = json.loads(read_text(RECORD) or "{}")
    known = record.get("devices", [])
    devices = ()
    if wanted.source == "nvme":
        named = [*wanted.devices, *wanted.erase, *(item["path"] for item in known)]
        devices = disks.observe(named, {item["serial"] for item in known if item["serial"]})
    return cache.Found(
        devices, storage.directory(wanted.path), record, read_text(disks.FSTAB) or "",
        frozenset(key for key, program in cache.PROGRAMS.items() if shutil.which(program)),
        bool(shutil.which("apt-get")), (read_text("/proc/sys/kernel/random/boot_id") or "").strip(),
    )


def diff(found, planned):
    """What changes, in the form that `--diff` shows."""
    shown = []
    if planned.steps:
        shown.append({"before_header": "steps", "after_header": "steps", "before": "",
                      "after": "".join(step + "\n" for step in planned.steps)})
    if planned.fstab is not None:
        shown.append({"before_header": disks.FSTAB, "after_header": disks.FSTAB,
                      "before": found.fstab, "after": planned.fstab})
    return shown


def apply(planned, wanted, ids, progress):
    """Do what was planned; returns further warnings. Raises storage.Failure."""
    if planned.packages:
        Apt(progress).refresh()
        Apt(progress).install(planned.packages)
    if planned.format or planned.raid:
        again = cache.plan(observe(wanted), wanted, *ids)  # packages take minutes, and the world does not wait
        if again.refusal or (again.members, again.verdicts) != (planned.members, planned.verdicts):
            raise storage.Failure(again.refusal or "the devices have changed meanwhile, nothing was written to them.")
        storage.build(planned, progress)
    return storage.attach(planned, wanted)


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "source": {"type": "str", "choices": ["directory", "nvme", "nfs"], "default": "directory"},
            "devices": {"type": "list", "elements": "path", "default": []},
            "raid": {"type": "str", "choices": ["none", "0"], "default": "none"},
            "filesystem": {"type": "str", "choices": ["ext4", "xfs"], "default": "ext4"},
            "mount_options": {"type": "list", "elements": "str", "default": ["noatime"]},
            "erase": {"type": "dict", "default": {}},
            "nfs": {"type": "str", "default": ""},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0755"},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    ids = ("(new)", "(new)") if module.check_mode else (str(uuid.uuid4()), str(uuid.uuid4()))
    try:
        wanted = wish(module.params)
        found = observe(wanted)
    except ValueError as error:
        module.fail_json(msg=str(error), exit_hint=7, sglang_ops={"kind": "cache", "detail": "refused"})
    planned = cache.plan(found, wanted, *ids)

    def leave(detail, **result):
        end = module.fail_json if "msg" in result else module.exit_json
        end(sglang_ops={
            "kind": "cache", "path": wanted.path, "source": wanted.source, "detail": detail,
            "devices": [item.row() for item in planned.verdicts], "steps": list(planned.steps),
            "warnings": list(planned.warnings), "free_bytes": free_bytes(wanted.path),
        }, **result)

    for text in planned.warnings:
        module.warn(text)
    if planned.refusal:
        leave("refused", msg=planned.refusal, exit_hint=7)
    if module.check_mode and planned.changed:
        leave("would " + ", ".join(planned.steps), changed=True, diff=diff(found, planned))
    if planned.changed:
        try:
            with Progress(module.params["progress_token"], "cache") as progress, storage.alone():
                for text in apply(planned, wanted, ids, progress):
                    module.warn(text)
        except (PackageError, storage.Failure, OSError) as error:
            leave("failed", msg="The cache cannot be made at %s: %s" % (wanted.path, error))
    leave("ready", changed=planned.changed, diff=diff(found, planned))


if __name__ == "__main__":
    main()
