"""Which packages NVIDIA's driver is made of, per distribution. Pure. Python 3.8, standard library.

Sources: NVIDIA's driver installation guide (docs.nvidia.com/datacenter/tesla/driver-installation-guide), the package
lists of Debian and Ubuntu. A name such as ``a|b`` stands for whichever of both the repository has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible.module_utils.sglang_host_repositories import Repository

NVIDIA = "https://developer.download.nvidia.com/compute/cuda/repos"
# NVIDIA's path and the key that signs what lies there.
_APT_KEYS = {"ubuntu2204": "3bf863cc.pub", "ubuntu2404": "3bf863cc.pub", "debian12": "3bf863cc.pub",
             "debian13": "8793F200.pub"}
_RPM_KEYS = {"rhel8": "D42D0685.pub", "rhel9": "D42D0685.pub", "rhel10": "CDF6BA43.pub"}
_RELEASED_WITH = {"22.04": "5.15.", "24.04": "6.8."}  # Ubuntu's first kernels; later ones are its HWE kernels
_REBUILDS = ("rhel", "rocky", "almalinux")
_ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "sbsa"}
SUPPORTED = "Ubuntu 22.04 and 24.04, Debian 12 and 13, and RHEL, Rocky and Alma Linux 8, 9 and 10"
LAST_PROPRIETARY = 580  # the last branch for Maxwell, Pascal and Volta
_LAST_SUFFIXED = 580  # Ubuntu's packages carry the branch in their names up to here
# First PCI device numbers of a generation (pci.ids); Turing was the first whose GPUs run the open modules.
_MAXWELL, _TURING = 0x1340, 0x1E00
# HGX B200 and B300, whose NVSwitches show themselves as network adapters: their fabric needs the subnet manager too.
BLACKWELL_FABRIC = frozenset({0x2901, 0x3182})


class Unsupported(Exception):
    """There is no driver for this host as asked; one sentence says why and what to change."""


@dataclass(frozen=True)
class System:
    """A host as far as names of packages depend on it."""

    distribution: str  # ID and VERSION_ID of os-release
    version: str
    family: str  # "debian", "redhat" or ""
    architecture: str
    kernel: str  # release, as uname says


@dataclass(frozen=True)
class Options:
    """What was asked for; the role's variables without their prefix."""

    source: str = "nvidia"
    branch: str = "580"
    version: str = ""
    flavour: str = "auto"
    compute_only: bool = False
    fabric_manager: str = "auto"
    persistenced: bool = True
    repository: str = ""
    key: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a host is to have."""

    flavour: str
    repository: Repository | None = None
    components: tuple = ()  # of the distribution's own archive
    prerequisites: tuple = ()  # packages before all others: pins, headers, dkms' home
    stream: str = ""  # of dnf's module
    choose: bool = False  # no repository keeps to the branch, so each version is chosen, and locked afterwards
    packages: tuple = ()  # the first tells the driver's version
    exact: tuple = ()  # of the same driver version as the first, or they do not start
    services: tuple = ()
    headers: tuple = ()  # of the running kernel, where the module is built here
    warnings: tuple = ()

    @property
    def builds(self):
        """Whether the kernel module is built on the host, and so signed by nobody whom Secure Boot knows."""
        return bool(self.headers)


def generation(devices):
    """The flavour that GPUs with these PCI device numbers need, "open" or "proprietary". Raises Unsupported."""
    old = [number for number in devices if number < _TURING]
    if any(number < _MAXWELL for number in old):
        raise Unsupported("The GPU 10de:%04x is older than Maxwell, and no driver branch that is maintained knows it."
                          % min(old))
    if old and any(number >= _TURING for number in devices):
        raise Unsupported("GPUs 10de:%04x (before Turing) and 10de:%04x (Turing or newer) need different kernel "
                          "modules. Take one of them out." % (min(old), max(devices)))
    return "proprietary" if old else "open"


def flavour_of(options, devices):
    """The kernel modules to install, judged against GPUs and branch. Raises Unsupported."""
    needed = generation(devices) if devices else "open"
    chosen = needed if options.flavour == "auto" else options.flavour
    if chosen == "open" and needed == "proprietary" and options.flavour != "auto":
        raise Unsupported("The GPU 10de:%04x is older than Turing, and the open kernel modules do not know it. Set "
                          "nvidia_driver_flavour: proprietary." % min(devices))
    branch = branch_of(options)
    if chosen == "proprietary" and options.source == "nvidia" and branch > LAST_PROPRIETARY:
        raise Unsupported("The proprietary kernel modules end with branch %d, and %d is asked for. Set "
                          "nvidia_driver_branch: \"%d\"." % (LAST_PROPRIETARY, branch, LAST_PROPRIETARY))
    return chosen


def branch_of(options):
    """The branch as a number, of the exact version where there is one. Raises Unsupported."""
    if options.version and not re.match(r"^\d{3}\.\d+(\.\d+)?$", options.version):
        raise Unsupported("nvidia_driver_version '%s' is no driver version, such as 580.95.05." % options.version)
    text = options.version.partition(".")[0] or options.branch
    if not re.match(r"^\d{3}$", text):
        raise Unsupported("nvidia_driver_branch '%s' is no driver branch, such as \"580\"." % options.branch)
    return int(text)


def needs_fabric_manager(options, switches, devices):
    if options.fabric_manager == "auto":
        return bool(switches) or bool(BLACKWELL_FABRIC & set(devices))
    return options.fabric_manager == "true"


def wanted(system, options, devices=(), switches=0):
    """What `system` is to have for GPUs of the PCI device numbers `devices`. Raises Unsupported."""
    if options.source == "preinstalled":
        return Wanted("")
    place = place_of(system)
    flavour = flavour_of(options, devices)
    if options.source == "distribution" and options.version:
        raise Unsupported("A distribution has one version of a branch, and nvidia_driver_version %s cannot be chosen. "
                          "Set nvidia_driver_source: nvidia, or leave the version out." % options.version)
    build = _DISTRIBUTION[system.family] if options.source == "distribution" else _VENDOR[system.family]
    fabric = needs_fabric_manager(options, switches, devices)
    found = build(system, options, place, flavour, fabric)
    services = (["nvidia-persistenced"] if options.persistenced else []) + (["nvidia-fabricmanager"] if fabric else [])
    subnet = fabric and options.source == "nvidia" and bool(BLACKWELL_FABRIC & set(devices))
    found["packages"] = tuple(found["packages"]) + (("nvlsm",) if subnet else ())
    return Wanted(services=tuple(services), **dict({"flavour": flavour}, **found))


def place_of(system):
    """The distribution as NVIDIA's repository spells it: debian12, ubuntu2204, rhel9. Raises Unsupported."""
    name = system.distribution + system.version.replace(".", "")
    if system.distribution in _REBUILDS:
        name = "rhel" + system.version.partition(".")[0]
    if name not in _APT_KEYS and name not in _RPM_KEYS:
        raise Unsupported("%s %s is not supported: the driver is installed on %s. Install it yourself, and set "
                          "nvidia_driver_source: preinstalled." % (system.distribution, system.version, SUPPORTED))
    if system.architecture not in _ARCHITECTURES or (system.distribution == "debian" and
                                                     system.architecture != "x86_64"):
        raise Unsupported("There is no driver for %s on %s %s." % (
            system.architecture, system.distribution, system.version))
    return name


def _repository(system, options, place):
    base = options.repository.rstrip("/") or "%s/%s/%s" % (NVIDIA, place, _ARCHITECTURES[system.architecture])
    key = options.key or "%s/%s" % (base, (_APT_KEYS if system.family == "debian" else _RPM_KEYS)[place])
    return Repository("nvidia-driver", base + ("/" if system.family == "debian" else ""), key)


def _vendor_apt(system, options, place, flavour, fabric):
    branch, ubuntu = branch_of(options), system.distribution == "ubuntu"
    mark = "-%d" % branch if ubuntu and branch <= _LAST_SUFFIXED else ""
    if not options.compute_only:
        packages = ["nvidia-open" if flavour == "open" else "cuda-drivers"]
    elif ubuntu:
        dkms = "nvidia-dkms%s%s" % (mark, "-open" if flavour == "open" else "")
        packages = ["libnvidia-compute" + mark, dkms] + (["nvidia-utils" + mark] if mark else [])
    else:
        packages = ["nvidia-driver-cuda", "nvidia-kernel-open-dkms" if flavour == "open" else "nvidia-kernel-dkms"]
    if options.persistenced and (not ubuntu or options.compute_only):
        packages.append("nvidia-compute-utils" + mark if mark else "nvidia-persistenced")
    return {
        "repository": _repository(system, options, place),
        "components": () if ubuntu else ("contrib",),
        "prerequisites": ("nvidia-driver-pinning-%s" % (options.version or branch),),
        "packages": packages,
        "exact": ("nvidia-fabricmanager%s|nvidia-fabricmanager" % (mark or "-%d" % branch),) if fabric else (),
        "headers": ("linux-headers-" + system.kernel,),
    }


def _vendor_rpm(system, options, place, flavour, fabric):
    branch = branch_of(options)
    kernel_module = "kmod-nvidia-open-dkms" if flavour == "open" else "kmod-nvidia-latest-dkms"
    packages = [("nvidia-open" if flavour == "open" else "cuda-drivers")]
    if options.compute_only:
        packages = ["nvidia-driver-cuda", kernel_module]
    if options.version:
        packages = ["%s=%s" % (name, options.version) for name in packages]
    streams = place != "rhel10"
    return {
        "repository": _repository(system, options, place),
        # dkms is in EPEL; RHEL itself has no package that adds it.
        "prerequisites": ("epel-release",) if system.distribution != "rhel" else (),
        "stream": "nvidia-driver:%d-%s" % (branch, "open" if flavour == "open" else "dkms") if streams else "",
        "choose": not streams,
        "packages": packages + (["nvidia-persistenced"] if options.persistenced else []),
        "exact": ("nvidia-fabricmanager|nvidia-fabric-manager",) if fabric else (),
        "headers": ("kernel-devel-" + system.kernel, "kernel-headers"),
        "warnings": () if system.distribution != "rhel" else
        ("dkms comes from EPEL, which has to be enabled on RHEL beforehand.",),
    }


def _own_debian(system, options, _place, flavour, fabric):
    """Debian has one branch per release. Its open module of release 12 stayed behind the libraries, and fits none."""
    old = system.version == "12"
    if fabric:
        raise Unsupported("Debian has no fabric manager, which this host needs for its NVSwitches. Set "
                          "nvidia_driver_source: nvidia.")
    if old and options.flavour == "open":
        raise Unsupported("Debian 12 has no open kernel modules that fit its driver. Set nvidia_driver_flavour: auto, "
                          "or nvidia_driver_source: nvidia.")
    flavour = "proprietary" if old else flavour
    module = "nvidia-open-kernel-dkms" if flavour == "open" else "nvidia-kernel-dkms"
    packages = ["nvidia-smi", "libcuda1", module, "firmware-nvidia-gsp"] if options.compute_only else \
        ["nvidia-driver", module, "nvidia-smi"]
    return {
        "flavour": flavour,
        "components": ("contrib", "non-free", "non-free-firmware"),
        "packages": packages + (["nvidia-persistenced"] if options.persistenced else []),
        "headers": ("linux-headers-" + system.kernel,),
        "warnings": ("Debian %s ships branch %s, whatever nvidia_driver_branch says: it runs images of CUDA 12 (-cu129)"
                     " only." % (system.version, "535" if old else "550"),),
    }


def _own_ubuntu(system, options, _place, flavour, fabric):
    """Modules that Canonical built and signed: neither headers nor keys of one's own."""
    branch, mark = branch_of(options), "-open" if flavour == "open" else ""
    kind = re.sub(r"^[\d.]+-\d+-", "", system.kernel)  # generic, aws, …
    if kind == "generic" and not system.kernel.startswith(_RELEASED_WITH.get(system.version, "")):
        kind += "-hwe-" + system.version
    packages = ["nvidia-utils-%d-server" % branch, "nvidia-headless-no-dkms-%d-server%s" % (branch, mark),
                "linux-modules-nvidia-%d-server%s-%s" % (branch, mark, system.kernel),
                "linux-modules-nvidia-%d-server%s-%s" % (branch, mark, kind)]
    if not options.compute_only:
        packages.append("nvidia-driver-%d-server%s" % (branch, mark))
    return {
        "components": ("restricted", "multiverse"),
        "packages": packages,  # the daemon is in nvidia-compute-utils, which headless brings
        "exact": ("nvidia-fabricmanager-%d" % branch,) if fabric else (),
    }


def _own_apt(system, *rest):
    return (_own_ubuntu if system.distribution == "ubuntu" else _own_debian)(system, *rest)


def _own_rpm(system, *_):
    raise Unsupported("%s %s has no driver of its own. Set nvidia_driver_source: nvidia." % (
        system.distribution, system.version))


_VENDOR = {"debian": _vendor_apt, "redhat": _vendor_rpm}
_DISTRIBUTION = {"debian": _own_apt, "redhat": _own_rpm}


def upstream(version):
    """NVIDIA's version in a package's: 580.95.05 of 3:580.95.05-1.el9. "" where there is none."""
    found = re.search(r"(?:^|:)(\d{3}\.\d+(?:\.\d+)?)", version)
    return found.group(1) if found else ""


def belong(installed, version):
    """Of all packages that are installed, {name: version}, those that must not change by themselves: every one that
    carries the driver's very version, and what pins its branch.
    """
    return sorted(name for name, full in installed.items()
                  if name.startswith("nvidia-driver-pinning-") or (version and upstream(full) == version))
