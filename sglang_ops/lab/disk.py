"""The disk of a lab: one sparse file with a file system in it, for all that hosts and registry write.

A used lab has some hundred thousand files, and to delete them takes a minute on a busy machine; to delete one
file takes no time. The file system is mounted in the lab's mount namespace alone and goes with it. It has no
journal and never waits for the platter: a lab that the machine lost is made anew, not repaired.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

from sglang_ops.errors import OpsError

# EXT4_IOC_SHUTDOWN and EXT4_GOING_FLAGS_NOLOGFLUSH of the kernel's fs/ext4/ext4.h
_SHUTDOWN = 0x8004587D
_WITHOUT_WRITING_BACK = struct.pack("I", 2)

_PATIENCE = 60.0  # seconds for the kernel to write back and let go of a disk that nobody uses any more


def make(image: Path) -> None:
    """Make the disk, as large as the machine's disk has room, and empty: it takes up what is written to it."""
    image.touch(mode=0o600)
    os.truncate(image, shutil.disk_usage(image).free)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", str(image))


def mount(image: Path, target: Path) -> None:
    """Mount the disk; the loop device is released together with the mount."""
    _unmark()
    _run("mount", "-t", "ext4", "-o", "loop,noatime,nobarrier,noinit_itable", str(image), str(target))


def _unmark() -> None:
    """Make free loop devices writable: they keep the mark of being read-only from whoever had them last."""
    for block in Path("/sys/block").glob("loop*"):
        if (block / "ro").read_text().strip() == "1" and not (block / "loop/backing_file").exists():
            _run("blockdev", "--setrw", f"/dev/{block.name}")


def abandon(image: Path, mounted: Path) -> None:
    """Tell the file system not to write back any more: gigabytes, perhaps, for a file that is about to go.

    Whatever uses it gets errors from now on. Nothing happens where `mounted` shows anything but this disk.
    """
    try:
        directory = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # the lab has ended already
        return
    try:
        device = os.fstat(directory).st_dev
        backing = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop/backing_file")
        if backing.exists() and Path(backing.read_text().strip()) == image:
            fcntl.ioctl(directory, _SHUTDOWN, _WITHOUT_WRITING_BACK)
    finally:
        os.close(directory)


def wait_until_free(image: Path) -> None:
    """Wait until no loop device holds the image, which the kernel lets go a moment after the lab's last process."""
    deadline = time.monotonic() + _PATIENCE
    while image in attached():
        if time.monotonic() > deadline:
            raise OpsError(f"A loop device still holds {image}.", fix="See who has mounted it: losetup --list")
        time.sleep(0.02)


def attached() -> set[Path]:
    """The files behind the machine's loop devices."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return {Path(file.read_text().strip()) for file in files}


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OpsError(f"'{' '.join(command)}' failed: {done.stderr.strip()}")
