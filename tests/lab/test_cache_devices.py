"""The cache on block devices: loop devices stand in for NVMe disks, and what is on them is made by the real tools.

RAID 0 needs a kernel that has md, and is skipped where it has none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Lab

pytestmark = pytest.mark.lab

HF_HOME = "/var/lib/sglang-ops/huggingface"
PACKAGES = "fdisk lvm2 cryptsetup-bin btrfs-progs xfsprogs e2fsprogs"
SIZE, XFS_SIZE = 160 << 20, 320 << 20  # bytes; mkfs.xfs wants 300 MB

# mdraid's superblock (metadata 1.2), and a ZFS label (name and GUID of the pool, uberblocks) as they lie on disk: no
# tool makes them without its kernel.
MDRAID = """
import struct
head = struct.pack('<IIII16s32s', 0xa92b4efc, 1, 0, 0, b'u' * 16, b'h:0').ljust(144, b'\\0')
with open('D', 'r+b', 0) as disk:
    disk.seek(4096)
    disk.write(head + struct.pack('<Q', 8).ljust(112, b'\\0'))
"""
ZFS = """
import struct
def pair(name, value):
    padded = name + bytes(-len(name) % 4)
    return struct.pack('>III', 12 + len(padded) + len(value), 12 + len(padded) + len(value), len(name)) + padded + value
pairs = pair(b'name', struct.pack('>III4s', 9, 1, 4, b'tank'))
pairs += pair(b'pool_guid', struct.pack('>IIQ', 8, 1, 77)) + pair(b'guid', struct.pack('>IIQ', 8, 1, 78))
with open('D', 'r+b', 0) as disk:
    for label in (0, 256 << 10):
        disk.seek(label + (16 << 10))
        disk.write(struct.pack('>III', 0x01010000, 0, 1) + pairs + bytes(12))
        for number in range(128):
            disk.seek(label + (128 + number) * 1024)
            disk.write(struct.pack('<QQQ', 0xbab10c, 5000, number + 1).ljust(1024, b'\\0'))
"""

# Mounted where the host itself does not see it: in another mount namespace, as containers are. Read-only, as otherwise
# ext4 would go on initialising it.
HIDDEN = ("mkfs.ext4 -q D && setsid unshare -m sh -c 'mount -r D /mnt && echo $$ >/run/hidden && exec sleep 600' "
          ">/dev/null 2>&1 & sleep 1")

# How data can look: the command that puts it on device D, and what the verdict must say.
DATA = {
    "gpt": ("echo ',,' | sfdisk -q --label gpt D", r"holds .*gpt"),
    "mbr": ("echo ',,' | sfdisk -q --label dos D", r"holds dos"),
    "lvm": ("pvcreate -qq -y D", r"holds LVM2_member"),
    "mdraid": (f"python3 -c {shlex.quote(MDRAID)}", r"holds linux_raid_member"),
    "zfs": (f"python3 -c {shlex.quote(ZFS)}", r"holds zfs_member"),
    "luks": ("echo key | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 D -",
             r"holds crypto_LUKS"),
    "ext4": ("mkfs.ext4 -q -L models D", r"holds ext4 \(label models, UUID"),
    "xfs": ("mkfs.xfs -q D", r"holds xfs"),
    "btrfs": ("mkfs.btrfs -q D", r"holds btrfs"),
    "swap": ("mkswap -q D", r"holds swap"),
    "dirty": ("echo data | dd of=D bs=512 seek=1 status=none", r"data without a known signature at byte 512"),
    "headless": ("shred -n 1 -s 128M D", r"data without a known signature at byte"),
    "last": ("echo data | dd of=D bs=512 seek=320000 status=none", r"data without a known signature at byte 163840000"),
    "ours": ("mkfs.ext4 -q -L sglang-cache D", r"holds ext4 \(label sglang-cache"),
}  # fmt: skip
IN_USE = {
    "mounted": ("mkfs.ext4 -q D && mkdir -p /mnt/it && mount -r D /mnt/it", r"is mounted at /mnt/it; holds ext4"),
    "hidden": (HIDDEN, r"is in use by a program; holds ext4"),
    "fstab": ("echo 'D /scratch xfs noauto 0 0' >>/etc/fstab", r"is in /etc/fstab for /scratch"),
    "label": ("mkfs.ext4 -q -L scratch D && echo 'LABEL=scratch /s2 ext4 noauto 0 0' >>/etc/fstab",
              r"is in /etc/fstab for /s2; holds ext4"),
    "crypttab": ("echo 'safe D /dev/urandom plain' >>/etc/crypttab", r"is named in /etc/crypttab \(safe\)"),
    "swapon": ("mkswap -q D && swapon D", r"is swap space in use"),
    "readonly": ("blockdev --setro D", r"is read-only"),
}  # fmt: skip


@dataclass
class Disks:
    """Loop devices of this machine, seen by one lab host."""

    lab: Lab
    folder: Path

    def __post_init__(self) -> None:
        self.paths: dict[str, str] = {}

    def add(self, name: str, size: int = SIZE) -> str:
        """A disk that reads as zeros; the name of the file behind it stands for its serial number."""
        image = self.folder / name
        with image.open("wb") as stream:
            stream.truncate(size)
        done = subprocess.run(
            ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=True)  # fmt: skip
        path = self.paths[name] = done.stdout.strip()
        subprocess.run(["blockdev", "--setrw", path], check=True)  # the flag outlives a test that was cut off
        self.lab.ssh(f"rm -f {path}; mknod {path} b 7 {path.removeprefix('/dev/loop')}")
        return path

    def hashes(self) -> dict[str, str]:
        """Every byte of every disk, as the devices give it."""
        return {name: hashlib.file_digest(Path(path).open("rb"), "sha256").hexdigest()
                for name, path in self.paths.items()}  # fmt: skip

    def detach(self) -> None:
        mounted = self.lab.ssh("grep ' /dev/loop' /proc/self/mountinfo")
        for name, path in self.paths.items():
            if f" {path} " in mounted:
                self.lab.ssh(f"umount {path}")
            subprocess.run(["swapoff", path], capture_output=True, check=False)
            subprocess.run(["losetup", "--detach", path], check=True)
            (self.folder / name).unlink()
        self.lab.ssh("rm -f /var/lib/sglang-ops/cache.json /etc/crypttab; sed -i '/^#/!d' /etc/fstab")
        self.paths.clear()


@dataclass
class Ran:
    """One run of playbooks/cache.yml."""

    result: dict[str, Any]
    text: str

    @property
    def verdicts(self) -> dict[str, tuple[str, str]]:
        rows = self.result["sglang_ops"]["devices"]
        return {row["path"]: (row["verdict"], row["reason"]) for row in rows}


def cache(lab: Lab, *arguments: str, **variables: Any) -> Ran:
    """Run the role as a user of plain Ansible does."""
    given = {f"hf_cache_{name}": value for name, value in ({"source": "nvme"} | variables).items()}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-v", "-i", str(lab.inventory),
         "playbooks/cache.yml", "-e", json.dumps(given), *arguments],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    told = re.findall(r"^(?:ok|changed|fatal): \[.*?\](?:: FAILED!)? => (\{.*\})$", done.stdout, re.MULTILINE)
    assert told, done.stdout + done.stderr
    return Ran(json.loads(told[-1]), done.stdout)


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("t-cache", hosts=1, gpus=0, engine="docker", os="debian12", server="simulator")


@pytest.fixture
def disks(lab: Lab, tmp_path: Path) -> Iterator[Disks]:
    made = Disks(lab, tmp_path)
    yield made
    lab.ssh("test -e /run/hidden && kill $(cat /run/hidden) && rm /run/hidden")
    made.detach()


@pytest.fixture
def tools(lab: Lab) -> None:
    lab.ssh("apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "
            + PACKAGES, timeout=300)  # fmt: skip
    assert "/sbin/cryptsetup" in lab.ssh("which sfdisk pvcreate cryptsetup mkfs.btrfs mkfs.xfs mkfs.ext4")


def test_an_empty_disk_becomes_the_cache_once(lab: Lab, disks: Disks) -> None:
    disk, other = disks.add("disk"), disks.add("other")
    before = disks.hashes()
    checked = cache(lab, "--check", "--diff", devices=[disk])
    assert checked.result["changed"]
    assert checked.verdicts[disk] == ("empty", "holds nothing")
    assert checked.verdicts[other][0] == "ignored"
    assert re.search(rf"{disk} +167 MB +disk +empty +holds nothing", checked.text)
    assert f"would make ext4 on {disk}" in checked.text
    assert disks.hashes() == before
    assert "huggingface" not in lab.ssh("cat /etc/fstab; ls /var/lib/sglang-ops")

    made = cache(lab, devices=[disk], mode="0750")
    assert made.result["changed"], made.text
    assert f"{disk} ext4" in lab.ssh(f"findmnt --noheadings --output SOURCE,FSTYPE {HF_HOME}")
    assert lab.ssh(f"stat --format %a {HF_HOME}").strip() == "750"
    uuid = lab.ssh(f"blkid -p -s UUID -o value {disk}").strip()
    assert f"UUID={uuid} {HF_HOME} ext4 noatime,nofail," in lab.ssh("cat /etc/fstab")
    assert "sglang-cache" in lab.ssh(f"blkid -p -s LABEL -o value {disk}")

    lab.ssh(f"echo weights > {HF_HOME}/model")
    again = cache(lab, devices=[disk], mode="0750")
    assert not again.result["changed"]
    assert again.verdicts[disk] == ("cache", "is the cache")
    refused = cache(lab, devices=[other], erase={other: "other"}, mode="0750")
    assert refused.result["exit_hint"] == 7
    assert lab.ssh(f"cat {HF_HOME}/model") == "weights\n"

    lab.ssh(f"umount {HF_HOME}; sed -i /x-sglang-ops/d /etc/fstab")  # as if cut off after mkfs
    completed = cache(lab, devices=[disk], mode="0750")
    assert completed.result["sglang_ops"]["steps"][0] == "write /etc/fstab"
    assert lab.ssh(f"cat {HF_HOME}/model") == "weights\n"


def test_xfs_and_the_package_that_makes_it(lab: Lab, disks: Disks) -> None:
    disk = disks.add("disk", XFS_SIZE)
    made = cache(lab, devices=[disk], filesystem="xfs")
    assert made.result["changed"], made.text
    assert f"{disk} xfs" in lab.ssh(f"findmnt --noheadings --output SOURCE,FSTYPE {HF_HOME}")
    assert not cache(lab, devices=[disk], filesystem="xfs").result["changed"]
    assert "would destroy it" in cache(lab, devices=[disk], filesystem="ext4").result["msg"]


@pytest.mark.usefixtures("tools")
def test_no_device_with_data_is_touched_however_the_data_looks(lab: Lab, disks: Disks) -> None:
    for name, (command, _) in (DATA | IN_USE).items():
        said = lab.ssh(re.sub(r"\bD\b", disks.add(name, XFS_SIZE if name == "xfs" else SIZE), command))
        assert "rror" not in said, f"{name}: {said}"
    lab.ssh("mkdir -p /mnt/it; sync")
    before = disks.hashes()
    paths = disks.paths
    wrong = {paths[name]: f"not {name}" for name in DATA}
    for variables in ({}, {"erase": wrong}, {"erase": {paths[name]: name for name in IN_USE}}):
        ran = cache(lab, devices=list(paths.values()), raid="0", **variables)
        assert ran.result["exit_hint"] == 7, ran.text
        for name, (_, reason) in (DATA | IN_USE).items():
            verdict, why = ran.verdicts[paths[name]]
            assert (verdict, bool(re.search(reason, why))) == ("refused", True), f"{name}: {verdict}, {why}"
            assert ("its serial number is" in why) == (name in DATA and variables.get("erase") == wrong)
    for name, arguments in {"gpt": (), "luks": ("--check",), "dirty": (), "hidden": (), "label": ("--check",)}.items():
        ran = cache(lab, *arguments, devices=[paths[name]])
        assert ran.result["msg"].startswith(f"{paths[name]} "), ran.text
    assert disks.hashes() == before


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    "look", ["gpt", "zfs", *(pytest.param(look, marks=pytest.mark.slow) for look in ("luks", "xfs", "headless"))]
)
def test_the_right_serial_number_erases(lab: Lab, disks: Disks, look: str) -> None:
    disk = disks.add(look, XFS_SIZE if look == "xfs" else SIZE)
    lab.ssh(re.sub(r"\bD\b", disk, DATA[look][0]))
    checked = cache(lab, "--check", devices=[disk], erase={disk: look})
    assert f"would ERASE {disk}" in checked.text
    made = cache(lab, devices=[disk], erase={disk: look})
    assert made.verdicts[disk][0] == "erase", made.text
    assert lab.ssh(f"wipefs --noheadings --output TYPE {disk}").split() == ["ext4"]
    assert not cache(lab, devices=[disk], erase={disk: look}).result["changed"]


def test_a_formatting_that_was_cut_off_is_completed(lab: Lab, disks: Disks) -> None:
    disk, other = disks.add("disk"), disks.add("other")
    lab.ssh("printf '#!/bin/sh\\nfor last; do :; done\\necho half | dd of=$last bs=4096 seek=9 status=none\\n"
            "kill -9 $$\\n' > /usr/local/sbin/mkfs.ext4; chmod +x /usr/local/sbin/mkfs.ext4")  # fmt: skip
    try:
        failed = cache(lab, devices=[disk])
    finally:
        lab.ssh("rm /usr/local/sbin/mkfs.ext4")
    assert "mkfs.ext4 says" in failed.result["msg"], failed.text
    assert "exit_hint" not in failed.result
    assert disks.hashes()["other"] == hashlib.sha256(bytes(SIZE)).hexdigest()
    made = cache(lab, devices=[disk])
    assert made.verdicts[disk] == ("cache", "was begun and is to be completed")
    assert f"{disk} ext4" in lab.ssh(f"findmnt --noheadings --output SOURCE,FSTYPE {HF_HOME}")
    assert other not in lab.ssh("cat /proc/self/mountinfo")


@pytest.mark.skipif(not Path("/proc/mdstat").exists(), reason="RAID 0 NOT RUN: this kernel has no md (/proc/mdstat)")
def test_two_disks_become_one(lab: Lab, disks: Disks) -> None:
    both = [disks.add("one"), disks.add("two")]
    assert "hf_cache_devices names 2 devices" in cache(lab, devices=both).result["msg"]
    try:
        made = cache(lab, devices=both, raid="0")
        assert made.result["changed"], made.text
        assert "/dev/md" in lab.ssh(f"findmnt --noheadings --output SOURCE {HF_HOME}")
        assert not cache(lab, devices=both, raid="0").result["changed"]
        lab.ssh(f"umount {HF_HOME}; mdadm --stop --scan")
        assert cache(lab, devices=both, raid="0").result["sglang_ops"]["steps"][0].startswith("assemble RAID 0")
    finally:
        lab.ssh(f"umount {HF_HOME}; mdadm --stop /dev/md/sglang-cache")


def test_a_directory_is_all_that_is_needed_by_default(lab: Lab) -> None:
    assert cache(lab, source="directory", owner="ops").result["changed"]
    assert lab.ssh(f"stat --format %U {HF_HOME}").strip() == "ops"
    assert not cache(lab, source="directory", owner="ops").result["changed"]
