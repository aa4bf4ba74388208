"""The system: distribution, kernel, clock, limits. Each check is pure and says nothing of a host that is fit."""

from __future__ import annotations

from sglang_ops.planning.doctor_facts import Examined, Finding

# By os-release's ID: the releases, as far as they matter.
SUPPORTED = {
    "ubuntu": ("22.04", "24.04"),
    "debian": ("12", "13"),
    "rhel": ("8", "9", "10"),
    "rocky": ("8", "9", "10"),
    "almalinux": ("8", "9", "10"),
}
_BY_MAJOR = ("rhel", "rocky", "almalinux")
_SUPPORTED_IN_WORDS = "Ubuntu 22.04 or 24.04, Debian 12 or 13, or RHEL, Rocky or AlmaLinux 8, 9 or 10"
MOST_SKEW = 60.0  # seconds; TLS and tokens begin to fail where clocks differ by more
LEAST_MEMLOCK = 64 * 2**20  # bytes; pinned buffers need more than the usual 8 MiB
LEAST_SHM = 2**30  # bytes; NCCL and SGLang's processes talk through it
_DAY = 86400


def supported_os(seen: Examined) -> Finding | None:
    system = seen.machine.system
    version = system.version.partition(".")[0] if system.distribution in _BY_MAJOR else system.version
    if version in SUPPORTED.get(system.distribution, ()):
        return None
    name = system.name or system.distribution or "a system without /etc/os-release"
    return Finding("os", f"{name} is not supported", f"Install {_SUPPORTED_IN_WORDS}.")


def kernel_headers(seen: Examined) -> Finding | None:
    """Matters only where DKMS builds the module and it is not there."""
    system = seen.machine.system
    if system.headers or not system.dkms or "nvidia" in system.modules:
        return None
    detail = f"the driver's module is built by DKMS, and the headers of the running kernel {system.kernel} are missing"
    rpm = system.distribution in _BY_MAJOR
    install = f"dnf install kernel-devel-{system.kernel}" if rpm else f"apt-get install linux-headers-{system.kernel}"
    return Finding("kernel-headers", detail, f"sudo {install} && sudo dkms autoinstall && sudo modprobe nvidia")


def secure_boot(seen: Examined) -> Finding | None:
    """Matters only where the module is not loaded: one that is was signed by a key that the firmware knows."""
    system = seen.machine.system
    if not system.secure_boot or "nvidia" in system.modules or not seen.machine.nvidia.pci:
        return None
    detail = "Secure Boot is on and the nvidia module is not loaded: an unsigned one is refused"
    remedy = (
        "Install modules signed by the distribution (Ubuntu: linux-modules-nvidia-580-server-open-$(uname -r)), enrol "
        "the DKMS key (sudo mokutil --import /var/lib/dkms/mok.pub, confirmed on the console at the next boot), or "
        "switch Secure Boot off in the firmware."
    )
    return Finding("secure-boot", detail, remedy)


def nouveau(seen: Examined) -> Finding | None:
    ours = [device for device in seen.machine.nvidia.pci if device.driver not in ("nvidia", "vfio-pci")]
    if "nouveau" not in seen.machine.system.modules or not ours:
        return None
    rpm = seen.machine.system.distribution in _BY_MAJOR
    rebuild = "dracut --force" if rpm else "update-initramfs -u"
    remedy = (
        r"printf 'blacklist nouveau\noptions nouveau modeset=0\n' | sudo tee /etc/modprobe.d/nouveau.conf && "
        f"sudo {rebuild} && sudo reboot"
    )
    return Finding("nouveau", "the kernel module nouveau is loaded and keeps GPUs from NVIDIA's driver", remedy)


def clock_skew(seen: Examined) -> Finding | None:
    """The host's clock against the controller's, allowing for the time that asking took."""
    there = seen.machine.clock.seconds
    skew = there - seen.answered if there > seen.answered else min(0.0, there - seen.asked)
    if abs(skew) <= MOST_SKEW:
        return None
    amount = f"{abs(skew):.0f} s" if abs(skew) < _DAY else f"{abs(skew) / _DAY:.0f} days"
    detail = f"the clock is {amount} {'ahead of' if skew > 0 else 'behind'} this machine's"
    return Finding("clock", detail, "sudo timedatectl set-ntp true (and see: timedatectl timesync-status)")


def clock_unsynchronised(seen: Examined) -> Finding | None:
    """A container has the clock of its machine, and nothing to say about it."""
    if seen.machine.system.container or seen.machine.clock.synchronised is not False:
        return None
    return Finding("clock", "nothing keeps the clock right (no NTP)", "sudo timedatectl set-ntp true", warning=True)


def memlock(seen: Examined) -> Finding | None:
    """Only where the containers are not given a limit of their own."""
    limit = seen.machine.limits.memlock
    if limit is None or limit >= LEAST_MEMLOCK or any(item.startswith("memlock=") for item in seen.settings.ulimits):
        return None
    detail = f"containers may lock {limit // 2**20} MiB of memory, and sglang_server_ulimits does not raise it"
    return Finding("ulimits", detail, "Set sglang_server_ulimits: [memlock=-1, stack=67108864].", warning=True)


def shared_memory(seen: Examined) -> Finding | None:
    """Containers share the host's /dev/shm (--ipc host)."""
    size = seen.machine.limits.shm
    if size >= LEAST_SHM:
        return None
    detail = f"shared memory holds {size // 2**20} MiB; NCCL and SGLang's processes exchange data there"
    remedy = "sudo mount -o remount,size=50% /dev/shm, and the same in /etc/fstab"
    return Finding("shm", detail, remedy, warning=True)


CHECKS = (
    supported_os,
    kernel_headers,
    secure_boot,
    nouveau,
    clock_skew,
    clock_unsynchronised,
    memlock,
    shared_memory,
)
