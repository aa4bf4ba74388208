"""Every check of `doctor`: what it finds, and what it must not find."""

from __future__ import annotations

from typing import Any

import pytest
from examinations import (
    BARE,
    DRIVER,
    GPUS,
    HEALTH,
    NO_DRIVER,
    NOUVEAU,
    NVIDIA,
    PCI,
    SMI,
    SWITCHES,
    XID,
    health,
    made_for,
    seen,
)
from situations import HUB, IMAGE, cdi, deployment

from sglang_ops.planning import Settings, Wanted
from sglang_ops.planning.doctor import Diagnosis, diagnose
from sglang_ops.planning.doctor_facts import Finding


def test_a_fit_host_is_left_alone() -> None:
    assert diagnose(seen()) == Diagnosis((), ())
    wanted = deployment()
    examined = seen(deployments=(wanted,), facts={"gpus": GPUS})
    assert diagnose(examined, [Wanted(wanted, IMAGE)]) == Diagnosis((), ())


@pytest.mark.parametrize(
    ("parts", "check", "says", "fix"),
    [
        ({"system": {"distribution": "arch", "name": "Arch Linux"}}, "os", "Arch Linux is not supported", "Install"),
        ({"system": {"distribution": "ubuntu", "version": "20.04"}}, "os", "not supported", "22.04"),
        ({"system": {"distribution": "rhel", "version": "7.9"}}, "os", "not supported", "RHEL"),
        ({"system": {**BARE, "headers": False}}, "kernel-headers", "6.8.0-1", "apt-get install linux-headers-6.8.0-1"),
        (
            {"system": {**BARE, "headers": False, "distribution": "rocky", "version": "9.4"}},
            "kernel-headers", "6.8.0-1", "dnf install kernel-devel-6.8.0-1",
        ),
        ({"system": {"modules": []}}, "secure-boot", "not loaded", "mokutil --import"),
        ({"system": {"modules": ["nouveau"], "secure_boot": False}, "nvidia": {"pci": NOUVEAU}}, "nouveau",
         "is loaded", "update-initramfs -u"),
        ({"clock": {"seconds": 2000}}, "clock", "998 s ahead of", "set-ntp true"),
        ({"clock": {"seconds": 1000 - 3 * 86400}}, "clock", "3 days behind", "set-ntp true"),
        ({"facts": {"gpus": [], "gpu_error": "nvidia-smi is not installed"}}, "driver", "4 NVIDIA GPUs are", "580"),
        (
            {"facts": {"gpus": [], "gpu_error": "nvidia-smi is not installed"}, "nvidia": {"pci": []}},
            "gpus", "no NVIDIA GPU is on the PCI bus", "lspci",
        ),
        ({"facts": NO_DRIVER}, "driver", "couldn't communicate", "modprobe nvidia"),
        ({"facts": {"gpus": [], "gpu_error": SMI + "No devices were found"}}, "gpus", "No devices", "flavour"),
        ({"facts": {"gpus": [], "gpu_error": SMI + "GPU1: GPU is lost."}}, "gpu-lost", "GPU1", "sudo reboot"),
        ({"facts": {"gpus": [], "gpu_error": SMI + "something new"}}, "driver", "something new", "NVRM"),
        (
            {"facts": {"gpus": [], "gpu_error": SMI + "Failed to initialize NVML: Driver/library version mismatch"},
             "nvidia": {"driver": {"module": "580.65.06", "library": DRIVER}}},
            "driver-mismatch", "kernel module 580.65.06, library 580.95.05", "reboot",
        ),
        (
            {"facts": {"gpus": GPUS[:3], "cdi": cdi(3)}, "nvidia": {"health": {i: HEALTH[i] for i in range(3)}}},
            "gpu-lost", "not 0000:03:00.0", "reboot",
        ),
        ({"nvidia": {"switches": SWITCHES}}, "fabric-manager", "4 NVSwitches", f"nvidia-fabricmanager {DRIVER}"),
        (
            {"nvidia": {"switches": SWITCHES, "fabric_manager": {"version": "580.65.06", "state": "active"}}},
            "fabric-manager", "580.65.06", "very version",
        ),
        (
            {"nvidia": {"switches": SWITCHES, "fabric_manager": {"version": DRIVER, "state": "failed"}}},
            "fabric-manager", "is failed", "systemctl enable --now nvidia-fabricmanager",
        ),
        (health(fabric="In Progress"), "fabric-manager", "fabric of GPU 2", "Install"),
        (health(ecc_uncorrected="3"), "ecc", "GPU 2 had uncorrectable", "--gpu-reset -i 2"),
        (health(remap_pending="Yes"), "ecc", "GPU 2 waits for a reset", "--gpu-reset -i 2"),
        (health(remap_failed="Yes"), "ecc", "GPU 2 has a defect", "replaced"),
        ({"nvidia": {"log": [XID.format(79)]}}, "xid", "Xid 79 (PCI:0000:1b:00)", "reboot"),
        ({"nvidia": {"log": ["NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus."]}}, "xid", "1b:00.0", "reboot"),
        ({"facts": {"engine": {"refusal": "docker is missing. Install docker, then deploy again."}}}, "engine",
         "docker is missing", "Install docker"),
        ({"facts": {"cdi": []}}, "cdi", "nvidia.com/gpu=0, 1, 2, 3", "Run `nvidia-ctk cdi generate"),
        ({"facts": {"cdi": []}, "nvidia": {"toolkit": ""}}, "cdi", "no CDI", "Install nvidia-container-toolkit-base"),
        ({"facts": {"cdi": cdi(3)}}, "cdi", "no CDI device nvidia.com/gpu=3", "nvidia-ctk cdi generate"),
        (
            {"facts": {"cdi": cdi(4, hooks=True), "engine": {"name": "docker", "version": "20.10.24"}}},
            "cdi", "20.10.24", "Docker 25",
        ),
        (
            {"facts": {"cdi": [made_for("570.1.2", "/etc/cdi/nvidia.yaml")]}},
            "cdi", "made for driver 570.1.2, and 580.95.05 runs", "--output=/etc/cdi/nvidia.yaml",
        ),
        ({"nvidia": {"hooks_missing": ["/usr/bin/nvidia-cdi-hook"]}}, "toolkit", "nvidia-cdi-hook", "Install"),
    ],
)  # fmt: skip
def test_each_fault_is_found_alone_and_with_its_remedy(parts: dict[str, Any], check: str, says: str, fix: str) -> None:
    parts = {name: {**NVIDIA, **change} if name == "nvidia" else change for name, change in parts.items()}
    found = diagnose(seen(**parts))
    assert [item.check for item in found.problems] == [check], found
    assert says in found.problems[0].detail
    assert fix in found.problems[0].remedy
    assert not found.warnings


@pytest.mark.parametrize(
    ("parts", "check", "says", "fix"),
    [
        ({"clock": {"synchronised": False}}, "clock", "no NTP", "set-ntp"),
        ({"facts": {"gpus": [*GPUS[:3], GPUS[3] | {"name": "A100", "memory_total_mib": 40960}]}}, "gpus",
         "1 × A100 (40 GiB)", "CUDA_VISIBLE_DEVICES"),
        ({"settings": Settings(ulimits=())}, "ulimits", "8 MiB", "memlock=-1"),
        ({"limits": {"shm": 64 * 2**20}}, "shm", "64 MiB", "remount"),
        ({"nvidia": {"health": {0: HEALTH[0] | {"persistence": "Disabled"}}}}, "persistence", "GPU 0", "persistenced"),
        ({"nvidia": {"log": [XID.format(119)]}}, "xid", "Xid 119", "dmesg"),
        ({"nvidia": {"toolkit": "1.17.8"}}, "toolkit", "1.17.8", "1.18"),
        ({"cgroups": {"default_runtime": "nvidia"}}, "cgroups", "default runtime", "cgroupfs"),
        ({"cgroups": {"version": 1}}, "cgroups", "version 1", "unified_cgroup_hierarchy"),
        ({"storage": [{"path": HUB, "type": "nfs4", "source": "nas:/x"}]}, "storage", "locks may not hold", "local"),
        ({"storage": [{"path": HUB, "type": "ext4", "source": "/dev/sda1", "rotational": True}]}, "storage",
         "rotating disk (/dev/sda1)", "NVMe"),
        ({"network": {"mtu": 9000, "bridges": {}}}, "mtu", "eth0 (1500)", "mtu 1500"),
        ({"network": {"mtu": 1460, "lower": {}}}, "mtu", "docker0 (1500)", '"mtu": 1460'),
        ({"facts": {"gpus": [gpu | {"driver": "570.86"} for gpu in GPUS]}}, "driver-version", "570.86", "-cu129"),
        ({"facts": {"disks": [{"path": "/var/lib/docker", "free_bytes": 10**10, "device": 1}]}}, "disk", "10.0 GB",
         "larger disk"),
        ({"facts": {"engine": {"version": "28.2", "pending": ["start docker"]}}}, "engine", "start docker", "deploy"),
        ({"facts": {"engine": {"version": "20.10.24"}}}, "engine", "knows no CDI", "Docker 25"),
    ],
)  # fmt: skip
def test_what_is_worth_knowing_leaves_the_host_fit(parts: dict[str, Any], check: str, says: str, fix: str) -> None:
    found = diagnose(seen(**parts))
    assert not found.problems
    assert [item.check for item in found.warnings] == [check], found
    assert says in found.warnings[0].detail
    assert fix in found.warnings[0].remedy


@pytest.mark.parametrize(
    "parts",
    [
        {"system": {"distribution": "rhel", "version": "9.4"}},
        {"system": {"headers": False}},  # the module is loaded: nothing needs to be built
        {"system": {**BARE, "headers": False, "dkms": False}},
        {"system": {"secure_boot": None, "modules": []}},
        {"system": {"modules": ["nouveau", "nvidia"]}},  # every GPU has NVIDIA's driver
        {"clock": {"seconds": 1060}},
        {"clock": {"synchronised": None}},
        {"system": {"container": True}, "clock": {"synchronised": False}},
        {"limits": {"memlock": None}, "settings": Settings(ulimits=())},
        {"nvidia": {**NVIDIA, "pci": [*PCI, {"address": "0000:09:00.0", "driver": "vfio-pci"}]}},
        {"nvidia": {**NVIDIA, "pci": PCI[:2]}},  # a container may see less of the bus than of the GPUs
        {"nvidia": {**NVIDIA, "switches": SWITCHES, "fabric_manager": {"version": DRIVER, "state": "active"}}},
        health(fabric="Completed"),
        health(ecc_uncorrected="[N/A]", remap_pending="[N/A]", remap_failed="", persistence="[N/A]"),
        {"nvidia": {**NVIDIA, "log": [XID.format(31), XID.format(13), XID.format(43)]}},  # mistakes of programs
        {"nvidia": {**NVIDIA, "toolkit": ""}},
        {"cgroups": {"default_runtime": "nvidia", "driver": "cgroupfs"}},
        {"storage": [{"path": HUB, "type": "xfs", "source": "/dev/vda1", "rotational": None}]},
        {"network": None},
        {"network": {"mtu": 9000, "lower": {"eth0": 9000}}},
        {"firewall": {"program": "ufw"}},  # no deployment, so no port
        {"facts": {"cdi": [made_for("570.1.2", "/etc/cdi/a.yaml"), made_for(DRIVER, "/var/run/cdi/b.yaml")]}},
    ],
)  # fmt: skip
def test_nothing_is_invented(parts: dict[str, Any]) -> None:
    assert diagnose(seen(**parts)) == Diagnosis((), ())


def test_many_faults_are_told_at_once() -> None:
    found = diagnose(seen(
        system={"distribution": "arch", "modules": ["nouveau"], "secure_boot": False}, clock={"seconds": 5000},
        facts=NO_DRIVER, nvidia={"pci": NOUVEAU},
    ))  # fmt: skip
    assert [item.check for item in found.problems] == ["os", "nouveau", "clock", "driver"]


def test_the_controller_s_findings_are_told_with_the_rest() -> None:
    told = [Finding("image", "no such tag", "Correct it."), Finding("image", "away", "Wait.", warning=True)]
    found = diagnose(seen(clock={"seconds": 5000}), told=told)
    assert [item.check for item in found.problems] == ["clock", "image"]
    assert [item.detail for item in found.warnings] == ["away"]
