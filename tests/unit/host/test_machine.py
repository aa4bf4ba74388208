"""What `doctor` reads on a host: from files and outputs as real ones are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible.module_utils import sglang_host_machine as machine
from ansible.module_utils import sglang_host_nvidia as nvidia
from ansible.module_utils.sglang_host_command import Output

UFW = """Status: active
Logging: on (low)
Default: deny (incoming), allow (outgoing), disabled (routed)

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW IN    Anywhere
8000:8010/tcp              ALLOW IN    198.51.100.0/24
53/udp                     ALLOW IN    Anywhere
443                        LIMIT IN    Anywhere
9000/tcp                   DENY IN     Anywhere
22/tcp (v6)                ALLOW IN    Anywhere (v6)
"""


def link(root: Path, name: str, target: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(target)


@pytest.mark.parametrize(("value", "on"), [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\0", False)])
def test_secure_boot_is_the_byte_behind_the_attributes(tmp_path: Path, value: bytes, on: bool) -> None:
    (tmp_path / "SecureBoot").write_bytes(value)
    assert machine.secure_boot(str(tmp_path / "SecureBoot")) is on
    assert machine.secure_boot(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("disk", "said", "known"),
    [("sda", "1", True), ("nvme0n1", "0", False), ("vda", "1", None), ("md0", "0", False), ("loop0", "1", None)],
)
def test_a_partition_rotates_as_its_disk_does(tmp_path: Path, disk: str, said: str, known: bool | None) -> None:
    (tmp_path / disk / "queue").mkdir(parents=True)
    (tmp_path / disk / "queue" / "rotational").write_text(said + "\n")
    (tmp_path / disk / "part1").mkdir()
    link(tmp_path / "block", "8:0", tmp_path / disk)
    link(tmp_path / "block", "8:1", tmp_path / disk / "part1")
    assert machine.rotational("8:0", str(tmp_path / "block")) is known
    assert machine.rotational("8:1", str(tmp_path / "block")) is known
    assert machine.rotational("0:40", str(tmp_path / "block")) is None


def test_storage_names_the_file_system_even_before_the_directory_is_made(tmp_path: Path) -> None:
    found = machine.storage(str(tmp_path / "not" / "yet"))
    assert found["path"] == str(tmp_path / "not" / "yet")
    assert found["type"] == machine.storage(str(tmp_path))["type"] != ""


@pytest.mark.parametrize(
    ("port", "allowed"), [(22, True), (8005, True), (53, False), (443, True), (9000, False), (7000, False)]
)
def test_ufw(port: int, allowed: bool) -> None:
    assert machine.ufw_allows(UFW, port) is allowed
    assert machine.ufw_allows(UFW.replace("deny (incoming)", "allow (incoming)"), port)
    assert machine.ufw_allows(UFW + "Anywhere                   ALLOW IN    198.51.100.7\n", port)


def chain(policy: str = "drop", hook: str = "input") -> dict[str, object]:
    return {"chain": {"family": "inet", "table": "filter", "name": "in", "hook": hook, "policy": policy}}


def rule(*parts: object, table: str = "filter") -> dict[str, object]:
    return {"rule": {"family": "inet", "table": table, "chain": "in", "expr": list(parts)}}


def match(left: object, right: object) -> dict[str, object]:
    return {"match": {"op": "==", "left": left, "right": right}}


ACCEPT = {"accept": None}
DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
USUAL = [
    rule(match({"ct": {"key": "state"}}, ["established", "related"]), ACCEPT),
    rule(match({"meta": {"key": "iifname"}}, "lo"), ACCEPT),
    rule(match({"meta": {"key": "l4proto"}}, "icmp"), ACCEPT),
    rule(match({"payload": {"protocol": "udp", "field": "dport"}}, 8000), ACCEPT),
    rule(match(DPORT, 8000), {"drop": None}),
]


@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        ([], []),
        ([rule(match(DPORT, 8000), ACCEPT)], [8000]),
        ([rule(match(DPORT, {"set": [22, {"range": [8000, 8010]}]}), ACCEPT)], [8000]),
        ([rule(match(DPORT, {"set": [22, 80]}), ACCEPT)], []),
        ([rule(match(DPORT, "@served"), ACCEPT)], [8000, 9000]),
        ([rule(match({"payload": {"protocol": "ip", "field": "saddr"}}, "198.51.100.7"), ACCEPT)], [8000, 9000]),
        ([rule(match(DPORT, 8000), ACCEPT, table="other")], []),
    ],
)
def test_nftables(more: list[dict[str, object]], allowed: list[int]) -> None:
    assert machine.nft_open([chain(), *USUAL, *more], [8000, 9000]) == allowed
    assert machine.nft_closed([chain(), *USUAL]) == [("inet", "filter", "in")]
    assert machine.nft_closed([chain(policy="accept"), chain(hook="forward")]) == []


def test_iptables() -> None:
    rules = """-P INPUT DROP
-P FORWARD ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m multiport --dports 22,8000:8010 -j ACCEPT
-A INPUT -p udp --dport 9000 -j ACCEPT
"""
    assert machine.iptables_open(rules, [8005, 9000]) == [8005]
    assert machine.iptables_open(rules + "-A INPUT -s 198.51.100.0/24 -j ACCEPT\n", [9000]) == [9000]
    assert machine.iptables_open(rules.replace("INPUT DROP", "INPUT ACCEPT"), [9000]) is None


def device(root: Path, address: str, kind: str, vendor: str = "0x10de", driver: str = "") -> None:
    (root / address).mkdir(parents=True)
    (root / address / "vendor").write_text(vendor + "\n")
    (root / address / "class").write_text(kind + "\n")
    if driver:
        (root / driver).mkdir(exist_ok=True)
        (root / address / "driver").symlink_to(root / driver)


def test_gpus_and_switches_on_the_bus(tmp_path: Path) -> None:
    device(tmp_path, "0000:1B:00.0", "0x030200", driver="nvidia")
    device(tmp_path, "0000:1b:00.1", "0x040300")  # the sound of a consumer GPU
    device(tmp_path, "0000:2b:00.0", "0x030000")
    device(tmp_path, "0000:05:00.0", "0x068000")
    device(tmp_path, "0000:00:02.0", "0x030000", vendor="0x8086")
    gpus, switches = nvidia.pci(str(tmp_path))
    assert gpus == [{"address": "0000:1b:00.0", "driver": "nvidia"}, {"address": "0000:2b:00.0", "driver": ""}]
    assert [switch["address"] for switch in switches] == ["0000:05:00.0"]


def test_fields_that_an_older_driver_does_not_know_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = ["remapped_rows.pending", "fabric.state"]

    def run(*argv: str, **_: object) -> Output:
        for field in unknown:
            if field in argv[1]:
                return Output(2, f'Field "{field}" is not a valid field to query.\n')
        fields = argv[1].partition("=")[2].split(",")
        return Output(0, ", ".join("0" if field == "index" else field for field in fields) + "\n")

    monkeypatch.setattr(nvidia, "run", run)
    found = nvidia.health()["0"]
    assert (found["persistence"], found["remap_failed"]) == ("persistence_mode", "remapped_rows.failure")
    assert set(nvidia._HEALTH) - set(found) == {"remap_pending", "fabric"}
    monkeypatch.setattr(nvidia, "run", lambda *_, **__: Output(9, "no driver"))
    assert nvidia.health() == {}


def test_the_kernel_log_is_reduced_to_faults_of_gpus() -> None:
    xid = "NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', GPU has fallen off the bus."
    text = f"[ 12.3] usb 1-1: new\n[   99.125] {xid}\n[  99.126] {xid}\n[1.0] NVRM: loading NVIDIA UNIX Open Module"
    assert nvidia.faults(text) == [xid]


@pytest.mark.parametrize(
    "text",
    [
        "containerEdits:\n  hooks:\n    - hookName: createContainer\n      path: /usr/bin/nvidia-cdi-hook\n",
        '{"containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook"}]}}',
    ],
)
def test_programs_of_hooks(text: str) -> None:
    assert nvidia.hooks(text) == ["/usr/bin/nvidia-cdi-hook"]
    assert nvidia.hooks("devices:\n  - deviceNodes:\n      - path: /dev/nvidia-hookless\n") == []
    assert nvidia.programs(["/usr/bin/nvidia-cdi-hook-that-nobody-has", "/bin/sh"]) == [
        "/usr/bin/nvidia-cdi-hook-that-nobody-has"]


def test_looking_at_this_machine_raises_nothing_and_says_what_it_is() -> None:
    assert machine.system()["kernel"] == os.uname().release
    assert machine.clock()["seconds"] > 0
    assert machine.limits()["shm"] >= 0
    assert machine.cgroups("podman")["version"] in (1, 2)
    assert machine.firewall([8000]) is None or machine.firewall([8000])["program"]
    assert set(nvidia.gather([])) == {
        "pci", "switches", "health", "driver", "fabric_manager", "toolkit", "hooks", "hooks_missing", "log"}
