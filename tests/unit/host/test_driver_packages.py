"""The driver's packages, repositories and pins on every system that is supported. All of this is rendered, none run."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils import sglang_host_driver_packages as catalogue
from ansible.module_utils import sglang_host_repositories as repositories
from ansible.module_utils.sglang_host_driver_packages import Options, System, Unsupported

H100, A100, T4, V100, P100, K80, B200 = 0x2330, 0x20B0, 0x1EB8, 0x1DB1, 0x15F8, 0x102D, 0x2901
REPOSITORIES = "https://developer.download.nvidia.com/compute/cuda/repos"
SYSTEMS = {
    "ubuntu2204": System("ubuntu", "22.04", "debian", "x86_64", "5.15.0-160-generic"),
    "ubuntu2404": System("ubuntu", "24.04", "debian", "x86_64", "6.8.0-51-generic"),
    "debian12": System("debian", "12", "debian", "x86_64", "6.1.0-40-amd64"),
    "debian13": System("debian", "13", "debian", "x86_64", "6.12.48-amd64"),
    "rhel8": System("rhel", "8.10", "redhat", "x86_64", "4.18.0-553.el8_10.x86_64"),
    "rhel9": System("rocky", "9.6", "redhat", "x86_64", "5.14.0-570.el9_6.x86_64"),
    "rhel10": System("almalinux", "10.0", "redhat", "x86_64", "6.12.0-55.el10_0.x86_64"),
}
APT = tuple(name for name, system in SYSTEMS.items() if system.family == "debian")
RPM = tuple(name for name, system in SYSTEMS.items() if system.family == "redhat")


def wanted(place: str, devices: tuple[int, ...] = (H100,), switches: int = 0, **options: Any) -> catalogue.Wanted:
    return catalogue.wanted(SYSTEMS[place], Options(**options), devices, switches)


@pytest.mark.parametrize("place", APT)
def test_apt_pins_before_the_driver_and_has_the_kernels_headers(place: str) -> None:
    found = wanted(place)
    assert found.prerequisites == ("nvidia-driver-pinning-580",)
    assert found.packages[0] == "nvidia-open"
    assert found.headers == ("linux-headers-" + SYSTEMS[place].kernel,)
    assert found.components == (("contrib",) if "debian" in place else ())
    assert found.services == ("nvidia-persistenced",)
    assert wanted(place, version="580.95.05").prerequisites == ("nvidia-driver-pinning-580.95.05",)


KEYS = {"ubuntu2204": "3bf863cc.pub", "ubuntu2404": "3bf863cc.pub", "debian12": "3bf863cc.pub",
        "debian13": "8793F200.pub", "rhel8": "D42D0685.pub", "rhel9": "D42D0685.pub",
        "rhel10": "CDF6BA43.pub"}  # fmt: skip


@pytest.mark.parametrize("place", SYSTEMS)
def test_the_repository_is_nvidias_for_this_system_or_its_mirror(place: str) -> None:
    found, family = wanted(place).repository, SYSTEMS[place].family
    assert found is not None
    (text,) = repositories.files(found, family).values()
    assert f"{REPOSITORIES}/{place}/x86_64" in text
    assert found.key == f"{REPOSITORIES}/{place}/x86_64/{KEYS[place]}"
    assert ("Suites: /" in text) == (family == "debian")
    mirror = wanted(place, repository="https://mirror.example/cuda/").repository
    assert mirror is not None
    assert mirror.url.rstrip("/") == "https://mirror.example/cuda"
    assert mirror.key == f"https://mirror.example/cuda/{KEYS[place]}"


def test_dnf_follows_a_stream_or_where_there_are_none_versions_are_chosen() -> None:
    for place in ("rhel8", "rhel9"):
        assert wanted(place).stream == "nvidia-driver:580-open"
        assert not wanted(place).choose
        assert wanted(place, (V100,)).stream == "nvidia-driver:580-dkms"
    assert wanted("rhel10").stream == ""
    assert wanted("rhel10").choose
    for place in RPM:
        assert wanted(place).packages == ("nvidia-open", "nvidia-persistenced")
        assert wanted(place).headers[0] == "kernel-devel-" + SYSTEMS[place].kernel
        assert wanted(place, version="580.95.05").packages[0] == "nvidia-open=580.95.05"
    assert wanted("rhel8").prerequisites == ()  # RHEL itself has no package that adds EPEL
    assert wanted("rhel9").prerequisites == ("epel-release",)


@pytest.mark.parametrize(
    ("place", "options", "packages"),
    [
        ("ubuntu2404", {}, ("libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-utils-580",
                            "nvidia-compute-utils-580")),
        ("ubuntu2404", {"branch": "590"}, ("libnvidia-compute", "nvidia-dkms-open", "nvidia-persistenced")),
        ("debian12", {}, ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced")),
        ("rhel9", {}, ("nvidia-driver-cuda", "kmod-nvidia-open-dkms", "nvidia-persistenced")),
    ],
)  # fmt: skip
def test_compute_only_leaves_out_displays(place: str, options: dict[str, str], packages: tuple[str, ...]) -> None:
    assert wanted(place, compute_only=True, **options).packages == packages


@pytest.mark.parametrize(
    ("devices", "flavour"),
    [((T4,), "open"), ((A100, H100), "open"), ((B200,), "open"), ((V100, P100), "proprietary"), ((), "open")],
)
def test_the_flavour_goes_by_the_generation(devices: tuple[int, ...], flavour: str) -> None:
    assert wanted("ubuntu2404", devices).flavour == flavour
    packages = wanted("ubuntu2404", devices).packages
    assert packages[0] == ("nvidia-open" if flavour == "open" else "cuda-drivers")


@pytest.mark.parametrize(
    ("place", "devices", "options", "why"),
    [
        ("ubuntu2404", (V100,), {"flavour": "open"}, "10de:1db1 is older than Turing"),
        ("ubuntu2404", (V100,), {"branch": "590"}, 'end with branch 580, and 590 is asked for. .*: "580"'),
        ("ubuntu2404", (V100,), {"version": "595.10.01"}, "end with branch 580, and 595"),
        ("ubuntu2404", (K80,), {}, "10de:102d is older than Maxwell"),
        ("ubuntu2404", (P100, H100), {}, "10de:15f8 .* and 10de:2330 .* need different"),
        ("ubuntu2404", (H100,), {"branch": "latest"}, "'latest' is no driver branch"),
        ("ubuntu2404", (H100,), {"version": "580"}, "'580' is no driver version"),
        ("debian12", (H100,), {"source": "distribution", "version": "535.309.01"}, "cannot be chosen"),
        ("debian12", (H100,), {"source": "distribution", "flavour": "open"}, "no open kernel modules that fit"),
        ("rhel9", (H100,), {"source": "distribution"}, "rocky 9.6 has no driver of its own"),
    ],
)
def test_what_cannot_be_is_refused(place: str, devices: tuple[int, ...], options: dict[str, str], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        wanted(place, devices, **options)


@pytest.mark.parametrize(
    "system",
    [
        System("ubuntu", "20.04", "debian", "x86_64", "5.4"), System("debian", "11", "debian", "x86_64", "5.10"),
        System("rhel", "7.9", "redhat", "x86_64", "3.10"), System("opensuse-leap", "15.6", "", "x86_64", "6.4"),
        System("debian", "12", "debian", "aarch64", "6.1"), System("ubuntu", "24.04", "debian", "riscv64", "6.8"),
    ],
)  # fmt: skip
def test_systems_that_are_not_supported_are_named(system: System) -> None:
    with pytest.raises(Unsupported, match=f"{system.distribution} {system.version}"):
        catalogue.wanted(system, Options(), (H100,))


def test_arm_servers_have_a_repository_of_their_own() -> None:
    system = System("ubuntu", "24.04", "debian", "aarch64", "6.8.0-51-generic-64k")
    found = catalogue.wanted(system, Options(), (0x2342,))
    assert found.repository is not None
    assert found.repository.url == f"{REPOSITORIES}/ubuntu2404/sbsa/"


@pytest.mark.parametrize("place", SYSTEMS)
def test_switches_bring_the_fabric_manager_and_blackwells_the_subnet_manager(place: str) -> None:
    assert wanted(place).exact == ()
    switched = wanted(place, switches=4)
    assert switched.exact[0].startswith("nvidia-fabricmanager")
    assert "nvidia-fabricmanager" in switched.services
    assert "nvlsm" not in switched.packages
    assert "nvlsm" in wanted(place, (B200,) * 8).packages
    assert wanted(place, (B200,) * 8, fabric_manager="false").exact == ()


@pytest.mark.parametrize(
    ("place", "kernel", "kind"),
    [
        ("ubuntu2204", "5.15.0-160-generic", "generic"), ("ubuntu2204", "6.8.0-60-generic", "generic-hwe-22.04"),
        ("ubuntu2404", "6.8.0-51-generic", "generic"), ("ubuntu2404", "6.11.0-29-generic", "generic-hwe-24.04"),
        ("ubuntu2404", "6.8.0-1020-aws", "aws"),
    ],
)  # fmt: skip
def test_ubuntus_own_modules_are_signed_by_canonical(place: str, kernel: str, kind: str) -> None:
    system = System("ubuntu", SYSTEMS[place].version, "debian", "x86_64", kernel)
    found = catalogue.wanted(system, Options("distribution", compute_only=True), (H100,), 4)
    assert found.packages == (
        "nvidia-utils-580-server", "nvidia-headless-no-dkms-580-server-open",
        f"linux-modules-nvidia-580-server-open-{kernel}", f"linux-modules-nvidia-580-server-open-{kind}",
    )  # fmt: skip
    assert found.exact == ("nvidia-fabricmanager-580",)
    assert not found.builds
    assert found.repository is None
    assert found.components == ("restricted", "multiverse")


@pytest.mark.parametrize(
    ("place", "flavour", "module"),
    [("debian12", "proprietary", "nvidia-kernel-dkms"), ("debian13", "open", "nvidia-open-kernel-dkms")],
)
def test_debians_own_driver(place: str, flavour: str, module: str) -> None:
    found = wanted(place, source="distribution", compute_only=True)
    assert found.packages == ("nvidia-smi", "libcuda1", module, "firmware-nvidia-gsp", "nvidia-persistenced")
    assert found.flavour == flavour
    assert found.components == ("contrib", "non-free", "non-free-firmware")
    assert "CUDA 12" in found.warnings[0]
    with pytest.raises(Unsupported, match="Debian has no fabric manager"):
        wanted(place, switches=1, source="distribution")


def test_all_that_carries_the_drivers_version_belongs_to_it() -> None:
    installed = {
        "nvidia-open": "580.95.05-1", "libnvidia-compute": "580.95.05-1", "nvidia-driver-pinning-580": "1-1",
        "nvidia-container-toolkit": "1.20.1-1", "nvidia-modprobe": "595.1.0-1", "bash": "5.2.15-2",
    }  # fmt: skip
    assert catalogue.belong(installed, "580.95.05") == ["libnvidia-compute", "nvidia-driver-pinning-580", "nvidia-open"]
    assert catalogue.upstream("3:580.95.05-1.el9") == "580.95.05"
    assert catalogue.upstream("1-1") == ""
