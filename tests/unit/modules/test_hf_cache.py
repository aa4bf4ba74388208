"""Which devices may become the cache, in every way that data can look, and what is done to those that may."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_cache as cache
from ansible.module_utils import sglang_host_disks as disks
from ansible.module_utils import sglang_host_storage as storage
from ansible.module_utils import sglang_host_verdicts as verdicts
from module_testing import load, run

module = load("hf_cache")
Device, Signature, Wanted, Found, Directory = (
    disks.Device, disks.Signature, verdicts.Wanted, cache.Found, cache.Directory)  # fmt: skip

PATH = "/data/hf"
UUID, ARRAY = "11111111-2222-3333-4444-555555555555", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
FIRST = Device("/dev/nvme0n1", 3840 * 10**9, "ACME 4000", "S1", nvme=True)
SECOND = Device("/dev/nvme1n1", 3840 * 10**9, "ACME 4000", "S2", nvme=True)
HDD = Device("/dev/sda", 10**12, "Spinner", "Z9", looked=False)
NVME = Wanted(PATH, "nvme")
ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}
OURS = Signature("ext4", UUID, cache.LABEL)
RECORD = {
    "state": "ready", "boot": "b1", "path": PATH, "filesystem": "ext4", "uuid": UUID, "array": "",
    "devices": [{"path": FIRST.path, "serial": "S1", "size": FIRST.size}],
}  # fmt: skip
BEGUN = dict(RECORD, state="making")
LINE = f"UUID={UUID} {PATH} ext4 noatime,nofail,x-systemd.device-timeout=30s,x-sglang-ops.cache 0 2\n"

# How data can look: what a device with it shows, and what the verdict must say.
DATA = {
    "gpt": ({"signatures": (Signature("gpt"), Signature("PMBR"))}, "holds gpt, PMBR"),
    "mbr": ({"signatures": (Signature("dos"),), "partitions": ("/dev/nvme0n1p1",)}, "holds dos with /dev/nvme0n1p1"),
    "table without a signature": ({"partitions": ("/dev/nvme0n1p1",)}, "holds a partition table with"),
    "lvm": ({"signatures": (Signature("LVM2_member", "u"),)}, "holds LVM2_member"),
    "mdraid": ({"signatures": (Signature("linux_raid_member", "u", "host:0"),)}, "holds linux_raid_member"),
    "zfs": ({"signatures": (Signature("zfs_member", "1", "tank"),)}, "holds zfs_member (label tank"),
    "luks": ({"signatures": (Signature("crypto_LUKS", "u"),)}, "holds crypto_LUKS"),
    "ext4": ({"signatures": (Signature("ext4", "u", "models"),)}, "holds ext4 (label models, UUID u)"),
    "xfs": ({"signatures": (Signature("xfs", "u"),)}, "holds xfs"),
    "btrfs": ({"signatures": (Signature("btrfs", "u"),)}, "holds btrfs"),
    "swap": ({"signatures": (Signature("swap", "u"),)}, "holds swap"),
    "no signature": ({"written_at": 512}, "holds data without a known signature at byte 512"),
    "another cache of ours": ({"signatures": (Signature("ext4", "u", cache.LABEL),)}, "holds ext4 (label sglang-cache"),
    "two signatures, one of them ours": ({"signatures": (OURS, Signature("gpt"))}, "holds ext4"),
}
# What no serial number opens.
IN_USE = {
    "mounted": ({"mounts": ("/data",)}, "is mounted at /data"),
    "in fstab": ({"fstab": ("/scratch",)}, "is in /etc/fstab for /scratch"),
    "held": ({"holders": ("/dev/dm-0",)}, "is part of /dev/dm-0"),
    "in an array": ({"holders": ("/dev/md0",)}, "is part of /dev/md0"),
    "the system's": ({"uses": ("is the system's disk (nvme0n1p1 is mounted at /)",)}, "is the system's disk"),
    "open": ({"uses": ("is in use by a program",)}, "is in use by a program"),
    "swapped to": ({"uses": ("is swap space in use",)}, "is swap space in use"),
    "read-only": ({"uses": ("is read-only",)}, "is read-only"),
    "unreadable": ({"unreadable": "Input/output error"}, "Input/output error"),
    "a partition mounted": ({"uses": ("its partition nvme0n1p1 is mounted at /data",)}, "its partition nvme0n1p1"),
}


def found(*devices: Any, **more: Any) -> Any:
    return Found(devices, boot="b1", **more)


def plan(state: Any, wanted: Any = NVME) -> Any:
    return cache.plan(state, wanted, UUID, ARRAY)


def named(*devices: Any, **more: Any) -> Any:
    return replace(NVME, devices=tuple(device.path for device in devices), **more)


class TestDataIsSafe:
    """No device with anything on it is ever in `members`."""

    @pytest.mark.parametrize("look", DATA | IN_USE)
    def test_found_by_itself_it_is_refused_and_the_empty_one_is_taken(self, look: str) -> None:
        shown, reason = (DATA | IN_USE)[look]
        needed = plan(found(replace(FIRST, **shown), SECOND))
        assert needed.members == (SECOND.path,)
        assert needed.verdicts[0].verdict == "refused"
        assert needed.verdicts[0].reason.startswith(reason)

    # bytes without a signature on a disk that was begun are what mkfs leaves when it is cut off: see TestInterrupted
    @pytest.mark.parametrize(("state", "look"), [
        (state, look) for state in ("blank", "ready", "begun") for look in DATA | IN_USE
        if (state, look) != ("begun", "no signature")
    ])  # fmt: skip
    def test_named_it_is_refused_and_nothing_is_done(self, state: str, look: str) -> None:
        record = {"blank": {}, "ready": RECORD, "begun": BEGUN}[state]
        shown, reason = (DATA | IN_USE)[look]
        needed = plan(found(replace(FIRST, **shown), record=record), named(FIRST))
        assert needed.refusal.startswith(f"{FIRST.path} {reason}")
        assert not needed.changed

    @pytest.mark.parametrize("look", IN_USE)
    def test_no_serial_number_opens_what_is_in_use(self, look: str) -> None:
        shown, reason = IN_USE[look]
        device = replace(FIRST, signatures=(Signature("ext4", "u"),), **shown)
        needed = plan(found(device), named(FIRST, erase={FIRST.path: "S1"}))
        assert needed.refusal.startswith(f"{FIRST.path} {reason}")

    @pytest.mark.parametrize("look", DATA)
    def test_the_right_serial_number_opens_what_nobody_uses(self, look: str) -> None:
        needed = plan(found(replace(FIRST, **DATA[look][0])), named(FIRST, erase={FIRST.path: "S1"}))
        assert needed.members == (FIRST.path,)
        assert needed.steps[0] == f"ERASE {FIRST.path}"

    @pytest.mark.parametrize(("serial", "given"), [("S1", "S2"), ("S1", ""), ("S1", "s1"), ("", ""), ("", "S1")])
    def test_any_other_serial_number_does_not(self, serial: str, given: str) -> None:
        device = replace(FIRST, serial=serial, signatures=(Signature("ext4", "u"),))
        needed = plan(found(device, SECOND), named(FIRST, erase={FIRST.path: given}))
        assert "its serial number is" in needed.refusal
        assert not plan(found(device, SECOND), replace(NVME, erase={FIRST.path: given})).changed

    def test_what_was_the_cache_and_is_something_else_now_needs_a_new_permission(self) -> None:
        device = replace(FIRST, signatures=(Signature("xfs", "u"),))
        needed = plan(found(device, record=RECORD), named(FIRST, erase={FIRST.path: "S1"}))
        assert "delete /var/lib/sglang-ops/cache.json to let it be erased again" in needed.refusal

    def test_a_device_to_be_erased_must_also_be_to_be_used(self) -> None:
        needed = plan(found(FIRST, SECOND), named(FIRST, erase={SECOND.path: "S2"}))
        assert needed.refusal.startswith(f"{SECOND.path} is to be erased, but not to be used.")

    def test_what_was_not_looked_at_is_not_empty(self) -> None:
        assert not replace(FIRST, looked=False).empty
        assert plan(found(HDD)).refusal.startswith("No empty NVMe disk was found.")

    def test_a_directory_with_files_is_not_hidden_by_a_mount(self) -> None:
        needed = plan(found(FIRST, directory=Directory(exists=True, entries=3)))
        assert needed.refusal.startswith(f"{PATH} holds 3 entries that a mount would hide.")

    @pytest.mark.parametrize("wanted", [NVME, Wanted(PATH, "nfs", nfs="nas:/hf")])
    def test_a_mount_of_others_is_left_alone(self, wanted: Any) -> None:
        mounted = Directory(exists=True, entries=3, mounted="/dev/sdb1")
        assert plan(found(FIRST, directory=mounted), wanted).refusal.startswith("/dev/sdb1 is mounted at")
        line = f"/dev/sdb1 {PATH} xfs defaults 0 0\n"
        assert plan(found(FIRST, fstab=line), wanted).refusal.startswith("/etc/fstab has /dev/sdb1 for")


class TestMaking:
    """plan() on a host without a cache."""

    def test_one_empty_disk(self) -> None:
        needed = plan(found(FIRST, HDD))
        assert needed.steps == (
            f"make ext4 on {FIRST.path}", "write /etc/fstab", f"mount {PATH}", f"set owner and mode of {PATH}",
        )  # fmt: skip
        assert needed.record == BEGUN
        assert needed.fstab == LINE
        assert [item.verdict for item in needed.verdicts] == ["empty", "ignored"]

    def test_of_several_the_largest_is_taken_and_the_others_are_named(self) -> None:
        needed = plan(found(FIRST, replace(SECOND, size=SECOND.size * 2)))
        assert needed.members == (SECOND.path,)
        assert needed.warnings[0].startswith(f"Left free: {FIRST.path}.")

    def test_several_become_one_only_on_request(self) -> None:
        assert plan(found(FIRST, SECOND), named(FIRST, SECOND)).refusal.startswith("hf_cache_devices names 2 devices.")
        needed = plan(found(FIRST, SECOND), replace(NVME, raid="0"))
        assert needed.members == (FIRST.path, SECOND.path)
        assert needed.steps[:2] == (f"create RAID 0 of {FIRST.path}, {SECOND.path}", "make ext4 on the array")
        assert needed.record["array"] == ARRAY

    def test_one_device_needs_no_array(self) -> None:
        needed = plan(found(FIRST), replace(NVME, raid="0"))
        assert (needed.raid, needed.target, needed.record["array"]) == ("", FIRST.path, "")

    def test_packages_that_are_missing(self) -> None:
        bare = found(FIRST, SECOND, programs=frozenset())
        wanted = replace(NVME, raid="0", filesystem="xfs")
        assert plan(bare, wanted).packages == ("xfsprogs", "mdadm")
        assert plan(replace(bare, has_apt=False), wanted).refusal.startswith("xfsprogs and mdadm is missing")

    def test_a_name_that_is_no_device(self) -> None:
        needed = plan(found(FIRST), replace(NVME, devices=("/dev/nvme7n1",)))
        assert needed.refusal.startswith("/dev/nvme7n1 is no block device of this host.")

    @pytest.mark.parametrize("path", ["hf", "/", "/data/my models", ""])
    def test_a_path_that_cannot_be_mounted(self, path: str) -> None:
        assert "is not an absolute path" in plan(found(FIRST), replace(NVME, path=path)).refusal


class TestInterrupted:
    """Whatever the moment, running again completes it and takes no other device."""

    def test_before_the_first_write(self) -> None:
        assert plan(found(FIRST, record=BEGUN)).record["uuid"] == UUID

    def test_in_the_middle_of_mkfs(self) -> None:
        needed = plan(found(replace(FIRST, written_at=1024), SECOND, record=BEGUN))
        assert (needed.members, needed.format) == ((FIRST.path,), True)

    def test_after_mkfs_wrote_its_superblock(self) -> None:
        needed = plan(found(replace(FIRST, signatures=(OURS,), written_at=1024), record=BEGUN))
        assert (needed.members, needed.format) == ((FIRST.path,), True)

    @pytest.mark.parametrize("change", [{"serial": "S7"}, {"size": 5}, {"signatures": (Signature("xfs"),)}])
    def test_half_made_is_recognised_by_serial_number_and_size_only(self, change: Any) -> None:
        other = replace(FIRST, written_at=1024, **change)
        assert plan(found(other, record=BEGUN), named(FIRST)).refusal

    def test_without_serial_numbers_names_count_within_one_boot(self) -> None:
        nameless = dict(BEGUN, devices=[dict(BEGUN["devices"][0], serial="")])
        device = replace(FIRST, serial="", written_at=1024)
        assert plan(found(device, record=nameless)).members == (FIRST.path,)
        assert plan(replace(found(device, record=nameless), boot="b2")).refusal

    def test_before_fstab_and_before_the_mount(self) -> None:
        made = replace(FIRST, signatures=(OURS,), written_at=1024)
        assert plan(found(made, record=RECORD)).steps[0] == "write /etc/fstab"
        needed = plan(found(replace(made, fstab=(PATH,)), record=RECORD, fstab=LINE))
        assert (needed.format, needed.fstab, needed.mount) == (False, None, True)

    def test_array_with_and_without_file_system(self) -> None:
        begun = dict(BEGUN, array=ARRAY, devices=[
            {"path": item.path, "serial": item.serial, "size": item.size} for item in (FIRST, SECOND)])  # fmt: skip
        member = (Signature("linux_raid_member", ARRAY, "any:sglang-cache"),)
        both = [replace(item, signatures=member, written_at=4096) for item in (FIRST, SECOND)]
        raid = replace(NVME, raid="0")
        half = plan(found(both[0], SECOND, record=begun), raid)
        assert (half.raid, half.members) == ("create", (FIRST.path, SECOND.path))
        held = [replace(item, holders=("/dev/md127",)) for item in both]
        array = Device("/dev/md127", 7680 * 10**9, members=(FIRST.path, SECOND.path))
        needed = plan(found(*held, array, record=begun), raid)
        assert (needed.raid, needed.target, needed.format) == ("", "/dev/md127", True)
        ready, full = dict(begun, state="ready"), replace(array, signatures=(OURS,))
        assert not plan(found(*held, full, record=ready), raid).format
        assert plan(found(*both, record=ready), raid).raid == "assemble"
        assert "0 of 2 can be used" not in plan(found(*held, full, record=ready), raid).refusal

    def test_an_array_of_others_that_holds_a_member_is_not_ours(self) -> None:
        ours = replace(FIRST, signatures=(Signature("linux_raid_member", ARRAY),), holders=("/dev/md5",))
        other = Device("/dev/md5", members=(FIRST.path, "/dev/sdq"))
        needed = plan(found(ours, other, record=dict(BEGUN, array=ARRAY)), replace(NVME, raid="0"))
        assert "is part of /dev/md5" in needed.refusal


class TestReady:
    """plan() on a host that has its cache."""

    STATE = Found(
        (replace(FIRST, signatures=(OURS,), written_at=1024, mounts=(PATH,), fstab=(PATH,)), SECOND),
        Directory(exists=True, entries=9, mounted=FIRST.path), RECORD, LINE, boot="b2",
    )  # fmt: skip

    def test_nothing_is_left_to_do(self) -> None:
        assert plan(self.STATE).steps == ()
        assert plan(self.STATE, named(FIRST, erase={FIRST.path: "S1"})).steps == ()

    def test_owner_and_options_can_change(self) -> None:
        assert plan(self.STATE, replace(NVME, mode=0o700)).steps == (f"set owner and mode of {PATH}",)
        assert plan(self.STATE, replace(NVME, options=("relatime",))).steps == ("write /etc/fstab",)

    @pytest.mark.parametrize(
        ("wanted", "words"),
        [
            (replace(NVME, filesystem="xfs"), "hf_cache_filesystem: xfs would destroy it"),
            (named(SECOND), "The cache is on /dev/nvme0n1"),
            (replace(NVME, path="/elsewhere"), "0 of 1 can be used"),
            (Wanted(PATH), "is mounted at /data/hf by an earlier run"),
        ],
    )
    def test_it_is_never_made_anew(self, wanted: Any, words: str) -> None:
        needed = plan(self.STATE, wanted)
        assert words in needed.refusal
        assert not needed.changed

    def test_a_lost_device_is_not_replaced_by_an_empty_one(self) -> None:
        needed = plan(replace(self.STATE, devices=(SECOND,), directory=Directory()))
        assert "serial number 'S1'" in needed.refusal
        assert not needed.members


class TestNfs:
    """plan() for NFS."""

    WANTED = Wanted(PATH, "nfs", nfs="nas:/hf")

    def test_mounted_with_a_warning_about_locks(self) -> None:
        needed = plan(found(programs=frozenset()), self.WANTED)
        assert needed.packages == ("nfs-common",)
        assert needed.fstab == f"nas:/hf {PATH} nfs noatime,nofail,_netdev,x-sglang-ops.cache 0 0\n"
        assert "Download on one host at a time" in needed.warnings[0]
        mounted = Found(directory=Directory(exists=True, entries=2, mounted="nas:/hf"), fstab=needed.fstab)
        assert not plan(mounted, self.WANTED).changed

    def test_locks_switched_off_are_warned_of(self) -> None:
        assert len(plan(found(), replace(self.WANTED, options=("nolock",))).warnings) == 2

    @pytest.mark.parametrize("export", ["", "nas", ":/hf", "nas:hf", "nas:/my hf"])
    def test_what_is_no_export(self, export: str) -> None:
        assert "is not of the form server:/path" in plan(found(), replace(self.WANTED, nfs=export)).refusal

    def test_the_second_host_is_told_of_the_first(self, tmp_path: Path) -> None:
        assert storage._share(str(tmp_path)) == []
        (tmp_path / storage.HOSTS / "gpu-7").write_text("")
        assert "is shared with gpu-7" in storage._share(str(tmp_path))[0]


def test_fstab_of_others_stays_as_it_is() -> None:
    mine = "# hosts\nUUID=x / ext4 defaults 0 1\n\n/dev/sdb /b\\040c xfs ro"
    assert cache.edited(mine, "OURS / / x-sglang-ops.cache") == mine + "\nOURS / / x-sglang-ops.cache\n"
    text = "A / ext4 defaults 0 1\n" + LINE + "B /b xfs ro 0 0\n"
    assert cache.edited(text, "NEW") == "A / ext4 defaults 0 1\nNEW\nB /b xfs ro 0 0\n"


def test_what_wipefs_prints() -> None:
    text = "# offset,uuid,label,type\n0x438,u-1,my\\x2ccache,ext4\n0x200,,,gpt\n0x3fffe00,,,gpt\n0x1fe,,,PMBR\n"
    assert disks.signatures(text) == (Signature("ext4", "u-1", "my\\x2ccache"), Signature("gpt"), Signature("PMBR"))
    assert disks.signatures("") == ()


@pytest.mark.parametrize("size", [512, 1 << 20, 9 << 20, 3840 * 10**9])
def test_what_is_read_of_a_device(size: int) -> None:
    spots = disks.spots(size)
    assert spots[0][0] == 0
    assert sum(spots[-1]) == size
    assert all(offset >= 0 and offset + length <= size for offset, length in spots)
    assert len(spots) <= disks.SAMPLES + 2


@pytest.mark.parametrize("at", [0, 511, (4 << 20) + 7, 128 << 20, (256 << 20) - 1])
def test_one_byte_that_is_not_zero_is_found_at_the_edges_and_in_samples(tmp_path: Path, at: int) -> None:
    image = tmp_path / "disk"
    with image.open("wb") as stream:
        stream.truncate(256 << 20)
        assert disks._look(str(image), 256 << 20) == (None, 0)
        stream.seek(at)
        stream.write(b"x")
    assert disks._look(str(image), 256 << 20) == (at, 0)


def test_mounts_swap_and_tables_as_the_kernel_and_people_write_them() -> None:
    line = r"29 1 259:2 / /data\040one rw,noatime shared:1 - ext4 /dev/nvme0n1p2 rw"
    assert disks.mount_fields(line) == ("259:2", "/data one", "/dev/nvme0n1p2")
    assert disks.rows("# x\n\nUUID=1 /a\\040b ext4\nshort\n", 3) == [["UUID=1", "/a b", "ext4"]]


@pytest.mark.parametrize("spec", ["/dev/sdx", "UUID=u-1", 'LABEL="models"'])
def test_a_device_is_found_in_fstab_by_any_of_its_names(spec: str) -> None:
    users = disks.Users(tabs=((spec, "", "/scratch"),))
    assert disks._tabs("/dev/sdx", (Signature("ext4", "u-1", "models"),), users) == (("/scratch",), ())
    assert disks._tabs("/dev/sdy", (), users) == ((), ())


def test_crypttab_and_swap_in_fstab_count_as_use() -> None:
    users = disks.Users(tabs=(("/dev/sdx", "swap", "none"), ("/dev/sdx", "is named in /etc/crypttab (c)", "")))
    assert disks._tabs("/dev/sdx", (), users)[1] == ("is swap space in /etc/fstab", "is named in /etc/crypttab (c)")


def test_no_tool_is_told_to_use_force() -> None:
    needed = plan(found(FIRST, SECOND), replace(NVME, raid="0"))
    commands = [storage.mkfs("ext4", UUID, "/dev/x"), storage.mkfs("xfs", UUID, "/dev/x"), storage.mdadm(needed)]
    assert not {"-f", "-F", "--force", "--run", "-R"} & {word for command in commands for word in command}
    assert storage.mdadm(needed)[-3:] == ("--raid-devices=2", FIRST.path, SECOND.path)
    assert "--uuid=aaaaaaaa:bbbbcccc:ddddeeee:eeeeeeee" in storage.mdadm(needed)


class TestModule:
    """The module itself, on a directory."""

    @pytest.fixture(autouse=True)
    def _lock(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage, "LOCK", str(tmp_path / "lock"))

    def test_a_directory_is_made_once(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "hf"
        checked = run(module, check=True, path=str(path), **ME)
        assert checked.result["changed"]
        assert not path.exists()
        assert run(module, path=str(path), mode="0750", **ME).result["changed"]
        assert path.stat().st_mode & 0o7777 == 0o750
        assert not run(module, path=str(path), mode="0750", **ME).result["changed"]

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            ({"mode": "rwx"}, "hf_cache_mode 'rwx' is not octal"),
            ({"mode": 0o770}, "hf_cache_mode '504' is not octal"),
            ({"mount_options": ["ro\nUUID=x"]}, "has an option that is empty or has a space"),
            ({"owner": "nobody-here"}, "hf_cache_owner or hf_cache_group is unknown"),
            ({"source": "nfs", "nfs": "x"}, "is not of the form server:/path"),
        ],
    )
    def test_refused_with_one_sentence(self, tmp_path: Path, asked: Any, words: str) -> None:
        left = run(module, path=str(tmp_path / "hf"), **asked)
        assert left.failed
        assert left.result["exit_hint"] == 7
        assert words in left.result["msg"]
        assert not (tmp_path / "hf").exists()

    def test_a_mount_point_behind_a_symbolic_link_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path)
        left = run(module, path=str(tmp_path / "link" / "hf"), source="nvme")
        assert f"Set hf_cache_path: {tmp_path}/hf" in left.result["msg"]

    def test_two_runs_at_once(self, tmp_path: Path) -> None:
        with storage.alone():
            left = run(module, path=str(tmp_path / "hf"), **ME)
        assert "another run is at work on it" in left.result["msg"]
        assert not (tmp_path / "hf").exists()
        assert run(module, path=str(tmp_path / "hf"), **ME).result["changed"]

    def test_devices_that_change_after_the_plan_are_not_written_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        planned = plan(found(FIRST))
        later = found(replace(FIRST, mounts=("/mnt",)))
        monkeypatch.setattr(module, "observe", lambda wanted: later)
        monkeypatch.setattr(storage, "build", lambda *_: pytest.fail("it was written to"))
        with pytest.raises(storage.Failure, match="No empty NVMe disk was found"):
            module.apply(planned, NVME, (UUID, ARRAY), None)
