"""What a machine must be and have to carry a lab, and the packages installed where they are missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from sglang_ops.errors import OpsError, PreflightError
from sglang_ops.lab.settings import Shape

# Debian and Ubuntu packages by the file that shows that they are there.
_PACKAGES: Mapping[str, str] = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "docker-registry": "docker-registry",
    "nft": "nftables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "ssh-keygen": "openssh-client",
    "mkfs.ext4": "e2fsprogs",
    "strip": "binutils",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}

_GIB = 1 << 30
_HOST_MEMORY = {"real": 1.8 * _GIB, "simulator": 0.25 * _GIB}
_HOST_DISK = {"real": 3.0 * _GIB, "simulator": 0.6 * _GIB}  # an image in an engine's store, and its packages
_CACHE_DISK = {"real": 6.0 * _GIB, "simulator": 2.0 * _GIB}  # tree, images, and what building them takes


def check(shape: Shape, state: Path, cache: Path, *, cold: bool) -> None:
    """Refuse, before anything is touched, a machine that cannot carry the lab. Raises PreflightError."""
    if platform.system() != "Linux":
        raise PreflightError(
            f"A lab needs Linux; this is {platform.system()}.",
            fix="Use a Debian or Ubuntu machine, a virtual one will do.",
        )
    check_root()
    if missing_packages() and not shutil.which("apt-get"):
        raise PreflightError(
            f"A lab needs {', '.join(missing_packages())}, and there is no apt-get to install them with.",
            fix="Install them by hand, or use a Debian or Ubuntu machine.",
        )
    _check_memory(shape)
    _check_disk(shape, state, cache, cold=cold)


def check_root() -> None:
    """Raises PreflightError for everyone but root."""
    if os.geteuid() != 0:
        raise PreflightError(
            "A lab is made of namespaces, mounts and network rules, and only root can make them.",
            fix="Run it with sudo.",
        )


def missing_packages() -> list[str]:
    """The packages that the lab needs and that are not installed."""
    path = search_path()
    return [
        package
        for sign, package in _PACKAGES.items()
        if not (Path(sign).exists() if sign.startswith("/") else shutil.which(sign, path=path))
    ]


def search_path() -> str:
    """PATH with the directories of system programs, where a user's PATH under sudo or su may not lead."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def install_packages(log: Callable[[str], None]) -> None:
    """Install what is missing with apt. Raises OpsError with apt's last line."""
    packages = missing_packages()
    if not packages:
        return
    log(f"installing {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "--quiet", "update"],
        ["apt-get", "--quiet", "--yes", "install", "--no-install-recommends", *packages],
    ):
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise OpsError(f"apt could not install {' '.join(packages)}: {' '.join(last)}")
    if "docker-registry" in packages and Path("/run/systemd/system").is_dir():
        # The package starts a registry on port 5000 of the machine; the lab only wants the program.
        subprocess.run(["systemctl", "disable", "--quiet", "--now", "docker-registry"], check=False)


def _check_memory(shape: Shape) -> None:
    need = shape.hosts * _HOST_MEMORY[shape.server] + shape.gateway * _HOST_MEMORY["simulator"]
    have = _available_memory()
    if have < need:
        raise PreflightError(
            f"{shape.hosts} hosts with the {shape.server} server need {_gib(need)} of memory, "
            f"and {_gib(have)} are available.",
            fix="Ask for fewer hosts."
            if shape.server == "simulator"
            else "Ask for fewer hosts, or --server simulator.",
        )


def _check_disk(shape: Shape, state: Path, cache: Path, *, cold: bool) -> None:
    """State and cache may lie on two file systems, or share one and then its room."""
    needs = {
        state: shape.hosts * _HOST_DISK[shape.server] + shape.gateway * _HOST_DISK["simulator"],
        cache: _CACHE_DISK[shape.server] if cold else 0.0,
    }
    by_device: dict[int, tuple[Path, float]] = {}
    for path, need in needs.items():
        there = _nearest(path)
        device = there.stat().st_dev
        by_device[device] = (there, need + by_device.get(device, (there, 0.0))[1])
    for path, need in by_device.values():
        free = shutil.disk_usage(path).free
        if free < need:
            raise PreflightError(
                f"The lab needs {_gib(need)} of disk, and {_gib(free)} are free below {path}.",
                fix="Make room, ask for fewer hosts, or set SGLANG_OPS_LAB_STATE and SGLANG_OPS_LAB_CACHE.",
            )


def _nearest(path: Path) -> Path:
    """The path itself or the closest directory above it that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


def _available_memory() -> int:
    """Bytes that can be had without swapping, as the kernel estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise OpsError("/proc/meminfo does not tell how much memory is available.")


def _gib(count: float) -> str:
    return f"{count / _GIB:.1f} GiB"
