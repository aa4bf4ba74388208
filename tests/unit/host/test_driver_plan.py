"""What is to be done about the driver, whether it may be, and whether the host has to be booted for it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_driver as driver
from ansible.module_utils import sglang_host_driver_packages as catalogue
from ansible.module_utils import sglang_host_driver_work as work
from ansible.module_utils.sglang_host_command import Output
from ansible.module_utils.sglang_host_driver import Found, Policy
from ansible.module_utils.sglang_host_driver_packages import Options, System

DEBIAN = System("debian", "12", "debian", "x86_64", "6.1.0-40-amd64")
H100 = 0x2330
WANTED = catalogue.wanted(DEBIAN, Options(), (H100,), 4)
HERE = {"nvidia-driver-pinning-580": "1-1", "nvidia-open": "580.95.05-1", "nvidia-persistenced": "580.95.05-1",
        "nvidia-fabricmanager": "580.95.05-1", "libnvidia-compute": "580.95.05-1"}  # fmt: skip
BLANK = Found(DEBIAN, (H100,), 4, units={"nvidia-persistenced": ("", False), "nvidia-fabricmanager": ("", False)},
              files={driver.NOUVEAU: driver.NOUVEAU_TEXT})  # fmt: skip
NO_DEVICE = "modprobe: ERROR: could not insert 'nvidia': No such device"
READY = Found(
    DEBIAN, (H100,), 4, loaded="580.95.05", loaded_open=True, built="580.95.05", built_open=True, library="580.95.05",
    headers=True, installed=HERE, held=frozenset(HERE),
    units={"nvidia-persistenced": ("enabled", True), "nvidia-fabricmanager": ("enabled", True)},
)  # fmt: skip


def plan(found: Found, options: Options | None = None, **policy: bool) -> driver.Plan:
    return driver.plan(found, WANTED, options or Options(), Policy(**policy))


def test_a_host_that_is_ready_stays_as_it_is() -> None:
    assert plan(READY) == driver.Plan()
    assert driver.reasons(READY, WANTED) == ()


def test_a_blank_host_gets_all_of_it() -> None:
    planned = plan(replace(BLANK, candidates={"nvidia-open": "580.95.05-1"}))
    assert planned.steps == (
        "write " + driver.NOUVEAU, "install nvidia-driver-pinning-580", "install nvidia-open 580.95.05-1",
        "install nvidia-persistenced", "install nvidia-fabricmanager-580 or nvidia-fabricmanager",
        "hold the driver's packages", "enable nvidia-persistenced", "enable nvidia-fabricmanager",
        "load the kernel module",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"held": frozenset()}, "hold nvidia-open"),
        ({"installed": {**HERE, "nvidia-fabricmanager": "580.105.08-1"}}, "install nvidia-fabricmanager-580 or"),
        ({"installed": {name: HERE[name] for name in list(HERE)[2:]}, "loaded": ""}, "install nvidia-open"),
        ({"installed": {**HERE, "nvidia-open": "570.86.15-1"}}, "install nvidia-open"),
        ({"units": {"nvidia-persistenced": ("disabled", False)}}, "enable nvidia-persistenced"),
        ({"units": {"nvidia-persistenced": ("static", False)}}, "enable nvidia-persistenced"),
        ({"loaded": ""}, "load the kernel module"),
        ({"files": {"/etc/apt/sources.list.d/nvidia-driver.sources": "x"}}, "write /etc/apt/sources"),
    ],
)
def test_whatever_is_amiss_is_put_right(change: dict[str, Any], step: str) -> None:
    assert any(text.startswith(step) for text in plan(replace(READY, **change)).steps)


def test_a_newer_version_of_the_branch_changes_nothing_and_an_exact_one_does() -> None:
    newer = replace(READY, candidates={"nvidia-open": "580.126.09-1"})
    assert not plan(newer).changed
    options = Options(version="580.126.09")
    wanted = catalogue.wanted(DEBIAN, options, (H100,), 4)
    planned = driver.plan(newer, wanted, options, Policy())
    assert planned.packages[:2] == ("nvidia-driver-pinning-580.126.09", "nvidia-open")


@pytest.mark.parametrize(
    ("found", "options", "why"),
    [
        (replace(BLANK, devices=()), {}, "no NVIDIA GPU on the PCI bus"),
        (replace(BLANK, secure_boot=True), {}, "Secure Boot is on"),
        (replace(READY, services=("sglang-a.service",), installed={**HERE, "nvidia-open": "570.1-1"}), {},
         "driver 580.95.05 would be changed while sglang-a.service runs"),
        (replace(READY, processes=("python3 (process 7)",), installed={"libnvidia-compute": "580.95.05-1"}), {},
         "while python3 \\(process 7\\) runs"),
        (replace(READY, installed={"nvidia-container-toolkit": "1.19.0-1"}), {}, "580.95.05 runs here, and no package"),
    ],
)  # fmt: skip
def test_what_may_not_be_done_is_refused(found: Found, options: dict[str, str], why: str) -> None:
    asked = Options(**options)  # type: ignore[arg-type]
    wanted = catalogue.wanted(DEBIAN, asked, found.devices, 4)
    refused = driver.plan(found, wanted, asked, Policy())
    assert re.search(why, refused.refusal)
    assert not refused.changed


@pytest.mark.parametrize("found", [BLANK, replace(BLANK, devices=()), replace(BLANK, secure_boot=True)])
def test_a_driver_of_somebody_else_is_only_asked(found: Found) -> None:
    options = Options("preinstalled")
    unknown = System("nixos", "25.05", "", "x86_64", "6.12")
    wanted = catalogue.wanted(unknown, options, found.devices, found.switches)
    there = replace(found, system=unknown, units={}, files={})
    assert driver.plan(there, wanted, options, Policy()) == driver.Plan()


def test_refusals_give_way_where_that_was_asked_for() -> None:
    assert plan(replace(BLANK, devices=()), require_gpu=False).changed
    assert plan(replace(BLANK, secure_boot=True), enrol=True).changed
    busy = replace(READY, services=("sglang-a.service",), installed={**HERE, "nvidia-open": "570.86.15-1"})
    assert plan(busy, under_load=True).changed
    assert not plan(replace(READY, services=("sglang-a.service",))).refusal  # nothing changes


def test_secure_boot_is_no_matter_to_modules_that_canonical_signed() -> None:
    ubuntu = System("ubuntu", "24.04", "debian", "x86_64", "6.8.0-51-generic")
    options = Options("distribution")
    found = replace(BLANK, system=ubuntu, secure_boot=True)
    planned = driver.plan(found, catalogue.wanted(ubuntu, options, (H100,)), options, Policy())
    assert not planned.refusal
    nvidia = driver.plan(found, catalogue.wanted(ubuntu, Options(), (H100,)), Options(), Policy())
    assert "nvidia_driver_source: distribution" in nvidia.refusal


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"nouveau": True, "loaded": ""}, ("nouveau is loaded",)),
        ({"loaded": "570.86.15"}, ("kernel module 570.86.15 is loaded, 580.95.05 is installed",)),
        ({"loaded_open": False}, ("the proprietary kernel module is loaded, the open one is installed",)),
        ({"loaded": ""}, ()),
    ],
)
def test_a_reboot_is_needed_only_for_a_reason(change: dict[str, Any], reasons: tuple[str, ...]) -> None:
    found = replace(READY, **change)
    assert driver.reasons(found, WANTED) == reasons
    assert not (plan(found).load and reasons and found.nouveau)


def test_services_are_not_started_beside_another_version_of_the_module() -> None:
    found = replace(READY, loaded="570.86.15", units={"nvidia-fabricmanager": ("enabled", False)})
    assert plan(found).services == ()


def test_parts_of_the_distributions_own_repository() -> None:
    mirror, keyring = "http://mirror.example/debian/", "/usr/share/keyrings/debian-archive-keyring.gpg"
    targets = [
        (mirror, "bookworm", "main", keyring), (mirror, "bookworm-updates", "main", "$(SIGNED_BY)"),
        (mirror, "bookworm-updates", "contrib", "$(SIGNED_BY)"), ("https://vendor.example/", "/", "", ""),
    ]  # fmt: skip
    first, second = driver.parts(targets, ("contrib", "non-free"))
    assert (first.name, first.components, first.keyring) == ("sglang-ops-bookworm", ("contrib", "non-free"), keyring)
    assert (second.suites, second.components, second.keyring) == (("bookworm-updates",), ("non-free",), "")
    (text,) = driver.repositories.files(second, "debian").values()
    assert text == f"Types: deb\nURIs: {mirror}\nSuites: bookworm-updates\nComponents: non-free\n"
    assert list(driver.repositories.missing(first, "debian")) == ["/etc/apt/sources.list.d/sglang-ops-bookworm.sources"]


@pytest.mark.parametrize(
    ("error", "dkms", "log", "build", "headers", "why"),
    [
        ("modprobe: ERROR: could not insert 'nvidia': Key was rejected", "", "", "", True, "Secure Boot does"),
        ("modprobe: FATAL: Module nvidia not found in directory /lib/modules/6.1.0-40-amd64",
         "nvidia/580.95.05, 6.1.0-40-amd64, x86_64: added", "", "cc1: error: unrecognized option", True,
         "DKMS did not build the kernel module for 6.1.0-40-amd64 .*: cc1: error: unrecognized option. See"),
        ("modprobe: FATAL: Module nvidia not found in directory", "", "", "", False,
         r"its headers \(linux-headers-6.1.0-40-amd64\) are not installed"),
        ("modprobe: FATAL: Module nvidia not found in directory", "nvidia/580.95.05, 6.5.0: installed", "", "", True,
         "no kernel module nvidia for the running kernel 6.1.0-40-amd64. `dkms status` says: nvidia/580.95.05, 6.5.0"),
        (NO_DEVICE, "", "NVRM: GPU 0000:1b:00.0 requires use of the NVIDIA open kernel modules", "", True,
         "need the open kernel modules"),
        (NO_DEVICE, "", "NVRM: No NVIDIA GPU found.", "", True, r"finds no GPU that it knows \(No NVIDIA GPU found.\)"),
        ("modprobe: ERROR: could not insert: Invalid argument", "", "", "", True, "fails: .* Invalid argument"),
    ],
)  # fmt: skip
def test_why_a_module_cannot_be_loaded(error: str, dkms: str, log: str, build: str, headers: bool, why: str) -> None:
    found = replace(READY, loaded="", headers=headers)
    assert re.search(why, work.why_not(error, dkms, log, found, WANTED, build))


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "580.95.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build", "580.95.05"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Thu Jul 10", "535.309.01"),
        ("", ""),
    ],
)
def test_the_version_of_the_module_that_is_loaded(line: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver.nvidia, "read_text", lambda _: line)
    assert driver.nvidia.driver()["module"] == version


class Offered:
    """Packages as a repository offers them."""

    def __init__(self, **versions: list[str]) -> None:
        self.all = {name.replace("_", "-"): every for name, every in versions.items()}

    def versions(self, name: str) -> list[str]:
        return self.all.get(name, [])

    def candidates(self, names: list[str]) -> dict[str, str]:
        return {name: self.all[name][0] for name in names if name in self.all}


def test_where_no_repository_keeps_to_the_branch_versions_are_chosen() -> None:
    offered = Offered(nvidia_open=["3:590.48.01-1.el10", "3:580.105.08-1.el10"], dkms=["3.2.2-1.el10"])
    found = work.of_branch(["nvidia-open", "dkms"], "nvidia-open", Options(), offered)
    assert found == ["nvidia-open=3:580.105.08-1.el10", "dkms"]
    exact = "nvidia-open=580.95.05"
    assert work.of_branch([exact], exact, Options(version="580.95.05"), offered) == [exact]
    with pytest.raises(work.PackageError, match=r"No repository has nvidia-open of branch 570"):
        work.of_branch(["nvidia-open"], "nvidia-open", Options(branch="570"), offered)


def test_a_pin_that_does_not_hold_is_found_before_the_driver_is_touched() -> None:
    with pytest.raises(work.PackageError, match=r"offer nvidia-open 590.48.01, and 580 is asked for"):
        work.judge_offer(WANTED, Options(), Offered(nvidia_open=["590.48.01-1"]))
    work.judge_offer(WANTED, Options(), Offered(nvidia_open=["580.95.05-1"]))
    work.judge_offer(WANTED, Options(version="580.95.05"), Offered(nvidia_open=["580.95.05-1"]))


def test_headers_of_a_kernel_that_no_repository_knows() -> None:
    bare = replace(READY, headers=False)
    bare_offer = Offered(linux_headers_6=["1"])
    bare_offer.installed = lambda _: {}  # type: ignore[attr-defined]
    with pytest.raises(work.PackageError, match=r"running kernel 6.1.0-40-amd64, whose headers"):
        work.lacking_headers(bare, WANTED, bare_offer)
    assert work.lacking_headers(replace(bare, devices=()), WANTED, bare_offer) == []
    assert work.lacking_headers(READY, WANTED, bare_offer) == []


class Doing:
    """A Progress that keeps what it was told to run."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []

    def report(self, detail: str) -> None:
        assert detail

    def run_child(self, argv: list[str], **_: Any) -> Output:
        self.ran.append(argv)
        return Output(0)


def test_a_kernel_newer_than_the_module_gets_it_built(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Output(1, "", "modprobe: FATAL: Module nvidia not found in directory /lib/modules/x")
    answers = [missing, Output(0), Output(0)]
    monkeypatch.setattr(work, "run", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr(work.shutil, "which", lambda name: f"/usr/sbin/{name}")
    doing = Doing()
    work.load(replace(READY, loaded=""), WANTED, Offered(), doing)
    assert doing.ran == [["dkms", "autoinstall", "-k", DEBIAN.kernel]]
    assert answers == []


def test_an_initramfs_older_than_what_forbids_nouveau_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, image = tmp_path / "nouveau.conf", tmp_path / "initrd.img"
    monkeypatch.setattr(driver, "NOUVEAU", str(file))
    monkeypatch.setattr(driver, "initramfs", lambda _: (str(image), ["update-initramfs"]))
    monkeypatch.setattr(driver, "sources", lambda *_: [])
    assert list(driver.files(WANTED, DEBIAN)) == [str(file)]
    image.touch()
    file.write_text(driver.NOUVEAU_TEXT)
    os.utime(image, (1, 1))
    assert list(driver.files(WANTED, DEBIAN)) == [str(file)]
    image.touch()
    os.utime(file, (1, 1))
    assert driver.files(WANTED, DEBIAN) == {}


def test_what_was_held_is_held_again_where_the_change_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Offered):
        told: tuple[list[str], list[str]] = ([], [])

        def refresh(self) -> None: ...

        def installed(self) -> dict[str, str]:
            return HERE

        def release(self, names: frozenset[str]) -> None:
            self.told[0].extend(sorted(names))

        def hold(self, names: list[str]) -> None:
            self.told[1].extend(names)

        def install(self, names: list[str]) -> None:
            raise work.PackageError("no space")

    packages, options = Failing(), Options(version="580.126.09")
    wanted = catalogue.wanted(DEBIAN, options, (H100,))
    planned = driver.plan(READY, wanted, options, Policy())
    monkeypatch.setattr(driver, "sources", lambda *_: [])
    with pytest.raises(work.PackageError, match="no space"):
        work.install(READY, wanted, options, planned, packages, Doing())
    assert packages.told[0] == packages.told[1] == sorted(HERE)
