"""NVIDIA's driver on hosts without a GPU: packages, repositories, locks, reboots are real; GPUs and kernel modules not.

NVIDIA's repository is stood in for by one of the test's own, really signed, with small packages of the same names. GPUs
are files where the kernel would show them. The distribution's driver is the real one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Lab
from vendor import Vendor
from waiting import wait_until

pytestmark = pytest.mark.lab

UNIT = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
# An H100 and an NVSwitch on the bus, and a kernel module that was loaded at boot in the version that is installed.
GPUS = """#!/bin/sh
for device in 0000:1b:00.0=0x030200=0x2330 0000:1c:00.0=0x068000=0x22a3; do
    place=/run/pci/${device%%=*}; rest=${device#*=}
    mkdir -p $place
    echo 0x10de >$place/vendor; echo ${rest%=*} >$place/class; echo ${rest#*=} >$place/device
done
mount --bind /run/pci /sys/bus/pci/devices
mount -t tmpfs tmpfs /proc/driver
mkdir /proc/driver/nvidia
version=$(dpkg-query -W -f '${Version}' nvidia-open 2>/dev/null | sed 's/-.*//')
echo "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  ${version:-570.86.15}  Release Build" \
    >/proc/driver/nvidia/version
"""
LOCK = "import fcntl,time; f=open('/var/lib/dpkg/lock-frontend','w'); fcntl.lockf(f,fcntl.LOCK_EX); time.sleep(120)"
GPUS_UNIT = ("[Unit]\nBefore=docker.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
             "ExecStart=/usr/local/sbin/gpus\n[Install]\nWantedBy=multi-user.target\n")  # fmt: skip


@dataclass
class Ran:
    """One run of playbooks/driver.yml."""

    results: list[dict[str, Any]]
    text: str
    progress: str

    @property
    def result(self) -> dict[str, Any]:
        return next(result for result in self.results if "sglang_ops" in result)

    @property
    def driver(self) -> dict[str, Any]:
        told: dict[str, Any] = self.result["sglang_ops"]
        return told


def command(lab: Lab, *arguments: str, **variables: Any) -> list[str]:
    given = {f"nvidia_driver_{name}": value for name, value in variables.items()}
    playbook = str(Path(sys.executable).parent / "ansible-playbook")
    return [playbook, "-v", "-i", str(lab.inventory), "playbooks/driver.yml", "-e", json.dumps(given), *arguments]


def driver(lab: Lab, *arguments: str, **variables: Any) -> Ran:
    """Run the role as a user of plain Ansible does."""
    progress = lab.folder / "progress"
    progress.write_text("")
    done = subprocess.run(
        command(lab, *arguments, **variables), capture_output=True, text=True, check=False, timeout=400, cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1", "SGLANG_OPS_PROGRESS": str(progress)},
    )  # fmt: skip
    told = re.findall(r"^(?:ok|changed|fatal): \[.*?\](?:: FAILED!)? => (\{.*\})$", done.stdout, re.MULTILINE)
    results = [json.loads(text) for text in told if "validate_args_context" not in text]
    results = [result for result in results if (result.get("sglang_ops") or {}).get("kind") != "lock"]
    results = [result for result in results if "add_group" not in result]  # made here, not on the host
    assert any("sglang_ops" in result for result in results), done.stdout + done.stderr
    return Ran(results, done.stdout, progress.read_text())


def publish(vendor: Vendor, version: str, *, postinst: str = "") -> None:
    """A driver of that version, as NVIDIA cuts it into packages."""
    scripts = {"postinst": f"#!/bin/sh\n{postinst}\n"} if postinst else {}
    vendor.publish("nvidia-open", f"{version}-1", f"libnvidia-compute (= {version}-1)", scripts=scripts)
    vendor.publish("libnvidia-compute", f"{version}-1")
    for name in ("nvidia-persistenced", "nvidia-fabricmanager"):
        vendor.publish(name, f"{version}-1", files={f"/lib/systemd/system/{name}.service": UNIT})


def pin(vendor: Vendor, what: str) -> None:
    text = f"Package: *nvidia*\nPin: version {what}*\nPin-Priority: 1000\n"
    name = f"nvidia-driver-pinning-{what}"
    vendor.publish(
        name,
        "1-1",
        files={f"/etc/apt/preferences.d/{name}.pref": text},
        extra={
            "Provides": "nvidia-driver-pinning",
            "Conflicts": "nvidia-driver-pinning",
            "Replaces": "nvidia-driver-pinning",
        },
    )


def release_when_waited_for(lab: Lab) -> None:
    """End the process that holds dpkg's lock, once somebody is seen to wait for it."""
    progress = lab.folder / "progress"
    wait_until(lambda: progress.exists() and "waiting for" in progress.read_text(), 100, every=0.5)
    lab.ssh("kill $(cat /run/locker)")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-drv", hosts=1, gpus=1, engine="docker", os="debian12", server="simulator")
    made.ssh(f"printf %s {shlex.quote(GPUS)} >/usr/local/sbin/gpus; chmod +x /usr/local/sbin/gpus; "
             f"printf %s {shlex.quote(GPUS_UNIT)} >/etc/systemd/system/gpus.service")  # fmt: skip
    return made


@pytest.fixture(scope="module")
def vendor(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendor]:
    address = re.sub(r"\d+$", "1", lab.ssh("hostname -I").split()[0])
    made = Vendor(tmp_path_factory.mktemp("vendor"), address)
    pin(made, "580")
    publish(made, "580.95.05")
    publish(made, "590.48.01")
    yield made
    made.close()


def versions(lab: Lab) -> dict[str, str]:
    shown = lab.ssh("dpkg-query -W -f '${db:Status-Status} ${Package} ${Version}\\n' '*nvidia*' 2>/dev/null")
    return {row[1]: row[2] for row in map(str.split, shown.splitlines()) if row[0] == "installed"}


def test_a_host_without_gpus_is_refused_and_check_reaches_the_end(lab: Lab) -> None:
    refused = driver(lab)
    assert refused.result["exit_hint"] == 7
    assert "no NVIDIA GPU on the PCI bus" in refused.result["msg"]
    checked = driver(lab, "--check", "--diff", require_gpu=False)
    assert checked.result["changed"]
    for told in ("compute/cuda/repos/debian12/x86_64/", "blacklist nouveau", "Components: contrib",
                 "install nvidia-driver-pinning-580", "install nvidia-open", "hold the driver's packages"):  # fmt: skip
        assert told in checked.text
    places = "/etc/modprobe.d /etc/apt/sources.list.d /etc/apt/keyrings"
    assert lab.ssh(f"ls {places} 2>/dev/null | grep -E 'sglang|nvidia'") == ""


def test_what_a_repository_can_do_wrong_is_told_in_one_sentence(lab: Lab, vendor: Vendor) -> None:
    asked = {"repository": vendor.url, "repository_key": vendor.key, "require_gpu": False}
    gone = driver(lab, repository="http://127.0.0.1:9/cuda", require_gpu=False)
    assert "key of package repository nvidia-driver cannot be fetched from http://127.0.0.1:9/" in gone.result["msg"]
    assert lab.ssh("ls /etc/apt/sources.list.d/nvidia* 2>/dev/null") == ""

    vendor.new_key(expired=True)
    vendor.sign()
    expired = driver(lab, **asked)
    assert re.search(rf"key \w+ that signs the package repository {vendor.url}\S* has expired", expired.result["msg"])
    vendor.new_key()
    vendor.sign()
    vendor.close()
    unreachable = driver(lab, **asked)
    vendor.open()
    assert f"The package repository {vendor.url} cannot be used: Could not connect" in unreachable.result["msg"]
    assert "nvidia-open" not in versions(lab)


def test_a_driver_is_pinned_exact_held_and_stays(lab: Lab, vendor: Vendor) -> None:
    asked = {"repository": vendor.url, "repository_key": vendor.key, "fabric_manager": "true", "require_gpu": False}
    vendor.publish("nvidia-fabricmanager", "580.105.08-1")  # goes before the driver that it belongs to
    lab.ssh(f"setsid python3 -c {shlex.quote(LOCK)} >/dev/null 2>&1 & echo $! >/run/locker; sleep 1")
    threading.Thread(target=release_when_waited_for, args=(lab,)).start()
    made = driver(lab, **asked)
    assert made.driver["version"] == "580.95.05", made.text
    assert re.search(r"waiting for python3 \(process \d+\)", made.progress)
    wanted = {"nvidia-open": "580.95.05-1", "libnvidia-compute": "580.95.05-1", "nvidia-fabricmanager": "580.95.05-1",
              "nvidia-persistenced": "580.95.05-1", "nvidia-driver-pinning-580": "1-1"}  # fmt: skip
    assert wanted.items() <= versions(lab).items()
    assert set(wanted) <= set(lab.ssh("apt-mark showhold").split())
    assert lab.ssh("systemctl is-enabled nvidia-persistenced nvidia-fabricmanager").split() == ["enabled"] * 2
    assert "blacklist nouveau" in lab.ssh("cat /etc/modprobe.d/sglang-ops-nouveau.conf")

    publish(vendor, "580.105.08")
    simulated = lab.ssh("apt-get update -q; apt-get -s dist-upgrade")
    assert re.search(r"kept back:[^.]* nvidia-open", simulated)
    assert "Inst nvidia" not in simulated
    again = driver(lab, **asked)
    assert (again.result["changed"], len(again.results)) == (False, 1), again.text

    lab.ssh("apt-mark unhold nvidia-open; rm /etc/apt/sources.list.d/nvidia-driver.sources")
    repaired = driver(lab, **asked)
    assert repaired.result["changed"]
    assert "nvidia-open" in lab.ssh("apt-mark showhold; cat /etc/apt/sources.list.d/nvidia-driver.sources")


def test_an_installation_that_was_cut_off_is_completed(lab: Lab, vendor: Vendor) -> None:
    pin(vendor, "580.119.02")
    publish(vendor, "580.119.02", postinst="test -e /run/cut || { touch /run/begun; sleep 60; }")
    asked = {"repository": vendor.url, "repository_key": vendor.key, "fabric_manager": "true", "require_gpu": False,
             "version": "580.119.02"}  # fmt: skip
    with subprocess.Popen(command(lab, **asked), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True) as run:
        lab.ssh("for i in $(seq 300); do test -e /run/begun && break; sleep 0.2; done")
        os.killpg(run.pid, 9)
    lab.ssh("touch /run/cut; kill -9 $(pgrep -x dpkg) $(pgrep -f nvidia-open.postinst); sleep 1")
    assert "580.119.02-1" not in versions(lab).get("nvidia-open", "")
    completed = driver(lab, **asked)
    assert completed.driver["version"] == "580.119.02", completed.text
    assert versions(lab)["nvidia-fabricmanager"] == "580.119.02-1"
    assert lab.ssh("dpkg --audit") == ""
    assert not driver(lab, **asked).result["changed"]


def test_a_reboot_that_is_needed_stops_services_first_and_brings_them_back(lab: Lab, vendor: Vendor) -> None:
    lab.deploy()
    (service,) = re.findall(r"sglang-\S+\.service", lab.ssh("systemctl list-units --plain --no-legend 'sglang-*'"))
    lab.ssh("systemctl enable --now gpus")
    asked = {"repository": vendor.url, "repository_key": vendor.key}
    pin(vendor, "580.126.09")
    kernel = lab.ssh("uname -r").strip()
    publish(vendor, "580.126.09")
    busy = driver(lab, **asked, version="580.126.09")
    assert busy.result["exit_hint"] == 7
    assert f"driver 580.119.02 would be changed while {service} runs" in busy.result["msg"]
    kernels = driver(lab, **asked, version="580.126.09", under_load=True)
    assert f"headers (linux-headers-{kernel}) are in no repository" in kernels.result["msg"]
    vendor.publish(f"linux-headers-{kernel}", "1")
    told = driver(lab, **asked, version="580.126.09", under_load=True, reboot=False)
    assert told.driver["reasons"] == ["kernel module 580.119.02 is loaded, 580.126.09 is installed"]
    assert lab.ssh(f"systemctl is-active {service}").strip() == "active"

    before = lab.ssh("cat /proc/sys/kernel/random/boot_id")
    booted = driver(lab, **asked, version="580.126.09")
    assert "580.95.05 runs 1 GPU" in booted.results[-1]["sglang_ops"]["detail"], booted.text  # the stand-in's version
    assert lab.ssh("cat /proc/sys/kernel/random/boot_id") != before
    assert lab.ssh(f"systemctl is-active {service}").strip() == "active"
    journal = lab.ssh(f"journalctl -b -1 -u {service} --no-pager -o cat")
    assert f"Stopped {service}" in journal or "Deactivated successfully" in journal


def test_a_kernel_module_that_is_not_there_is_told(lab: Lab, vendor: Vendor) -> None:
    lab.ssh("umount /proc/driver; apt-get install -qy kmod")
    asked = {"repository": vendor.url, "repository_key": vendor.key, "version": "580.126.09"}
    failed = driver(lab, **asked)
    assert f"There is no kernel module for {lab.ssh('uname -r').strip()}, and its headers" in failed.result["msg"]


@pytest.mark.slow
def test_the_distributions_driver_is_really_installed(make_lab: Callable[..., Lab]) -> None:
    """Debian 13's own, 100 MB: without the kernel's headers nothing is compiled, which takes two cores minutes."""
    lab = make_lab("t-drv-13", hosts=1, gpus=0, engine="podman", os="debian13", server="simulator")
    asked = {"source": "distribution", "compute_only": True, "require_gpu": False}
    made = driver(lab, **asked)
    assert made.driver["version"].startswith("550."), made.text
    packages = versions(lab)
    assert {"nvidia-smi", "nvidia-open-kernel-dkms", "nvidia-persistenced"} <= set(packages)
    assert set(lab.ssh("apt-mark showhold").split()) >= {"nvidia-smi", "nvidia-open-kernel-dkms"}
    assert "nvidia-current-open" in lab.ssh("dkms status")
    assert "NVIDIA-SMI has failed" in lab.ssh("nvidia-smi")
    assert "Components: contrib non-free non-free-firmware" in lab.ssh("cat /etc/apt/sources.list.d/sglang-ops-*")
    again = driver(lab, **asked)
    assert (again.result["changed"], len(again.results)) == (False, 1), again.text
