"""NVIDIA's driver on a host: what is there, what is to be done, and whether a reboot is needed. Reads only.

The decision is in `plan`, which is pure; `sglang_host_driver_work` does what it says. Python 3.8, standard library.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field

from ansible.module_utils import sglang_host_driver_packages as catalogue
from ansible.module_utils import sglang_host_machine as machine
from ansible.module_utils import sglang_host_nvidia as nvidia
from ansible.module_utils import sglang_host_packages as packaging
from ansible.module_utils import sglang_host_repositories as repositories
from ansible.module_utils import sglang_host_state as state
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_systemd import show

NOUVEAU = "/etc/modprobe.d/sglang-ops-nouveau.conf"
NOUVEAU_TEXT = "# GPUs are NVIDIA's driver's.\nblacklist nouveau\noptions nouveau modeset=0\n"
_PCI = "/sys/bus/pci/devices"
# Packages that hold a part of the driver, as the distributions and NVIDIA name them.
_PART = re.compile(r"(lib)?nvidia-(driver|kernel|dkms|headless|utils|open|compute|smi)|linux-modules-nvidia-|"
                   r"a?kmod-nvidia|cuda-drivers")


@dataclass(frozen=True)
class Found:
    """A host as it is."""

    system: catalogue.System
    devices: tuple = ()  # PCI device numbers of the GPUs
    switches: int = 0
    secure_boot: bool | None = None
    nouveau: bool = False
    loaded: str = ""  # version of the kernel module in use, "" for none
    loaded_open: bool = False
    built: str = ""  # version and licence of the module that the running kernel would load
    built_open: bool = False
    library: str = ""
    headers: bool = False
    installed: dict = field(default_factory=dict)
    held: frozenset = frozenset()
    candidates: dict = field(default_factory=dict)
    units: dict = field(default_factory=dict)  # of driver services: {name: (enabled, active)}
    services: tuple = ()  # units of this tool that run
    processes: tuple = ()  # on GPUs
    files: dict = field(default_factory=dict)  # what is to be written, by path


@dataclass(frozen=True)
class Policy:
    """What may be done."""

    hold: bool = True
    require_gpu: bool = True
    enrol: bool = False  # a key for Secure Boot
    under_load: bool = False  # change the driver while services run


@dataclass(frozen=True)
class Plan:
    """What is to be done, in words and in parts."""

    refusal: str = ""
    steps: tuple = ()
    packages: tuple = ()
    hold: tuple = ()
    services: tuple = ()
    load: bool = False
    warnings: tuple = ()

    @property
    def changed(self):
        return bool(self.steps)


def system():
    release = packaging.os_release()
    name = os.uname()
    return catalogue.System(release.get("ID", ""), release.get("VERSION_ID", ""), packaging.family_of(release),
                            name.machine, name.release)


def hardware():
    """(PCI device numbers of GPUs that are this host's own, number of NVSwitches)."""
    gpus, switches = nvidia.pci()
    own = [gpu["address"] for gpu in gpus if gpu["driver"] != "vfio-pci"]  # those are a virtual machine's
    numbers = [(state.read_text(os.path.join(_PCI, address, "device")) or "0x0").strip() for address in own]
    return tuple(int(number, 16) for number in numbers), len(switches)


def observe(here, wanted, devices, switches, packages, look):
    """Everything that the plan rests on; candidates only if somebody is to `look` at them (dnf asks the network)."""
    loaded, driver = state.read_text("/proc/driver/nvidia/version") or "", nvidia.driver()
    built = run("modinfo", "-F", "version", "nvidia").stdout.strip()
    licence = run("modinfo", "-F", "license", "nvidia").stdout.strip() if built else ""
    names = [name for entry in wanted.packages + wanted.exact for name in choices(entry)]
    return Found(
        here, devices, switches, machine.secure_boot(), os.path.isdir("/sys/module/nouveau"),
        driver["module"], "Open Kernel Module" in loaded, built, bool(licence) and "NVIDIA" not in licence,
        driver["library"], os.path.isdir("/lib/modules/%s/build/" % here.kernel),
        packages.installed(), packages.held(), packages.candidates(names) if look else {}, units(wanted.services),
        running(), processes(), files(wanted, here),
    )


def choices(entry):
    """The names that an entry such as ``a|b`` or ``a=1.2`` stands for."""
    return [name.partition("=")[0] for name in entry.split("|")]


def files(wanted, here):
    """What has to be written, by path; nothing where somebody else installed the driver. What forbids nouveau counts
    only once it is in the initramfs, whose rebuilding may have been cut off.
    """
    if not wanted.packages:
        return {}
    image = initramfs(here.kernel)
    written = state.read_text(NOUVEAU) == NOUVEAU_TEXT
    late = written and image is not None and os.path.getmtime(image[0]) < os.path.getmtime(NOUVEAU)
    lacking = {} if written and not late else {NOUVEAU: NOUVEAU_TEXT}
    for repository in sources(wanted, here.family):
        lacking.update(repositories.missing(repository, here.family))
    return lacking


def initramfs(kernel):
    """(path, command that rebuilds it); None where the host boots without one."""
    debian, redhat = "/boot/initrd.img-" + kernel, "/boot/initramfs-%s.img" % kernel
    if os.path.exists(debian) and shutil.which("update-initramfs"):
        return debian, ["update-initramfs", "-u", "-k", "all"]
    if os.path.exists(redhat) and shutil.which("dracut"):
        return redhat, ["dracut", "--force", "--kver", kernel]
    return None


def sources(wanted, family):
    """The repositories that the driver comes from: parts of the distribution's own that are missing, NVIDIA's."""
    own = parts(_targets(), wanted.components) if family == "debian" and wanted.components else []
    return own + ([wanted.repository] if wanted.repository else [])


def _targets():
    """(URI, suite, component, keyring) of every source that apt has, but for those that this tool wrote."""
    fields = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)|$(SOURCESENTRY)"
    told = run("apt-get", "indextargets", "--format", fields, "Created-By: Packages").stdout
    rows = [line.split("|") for line in told.splitlines()]
    return [tuple(row[:4]) for row in rows if len(row) == 5 and "sglang-ops-" not in row[4]]


def parts(targets, components):
    """Components of the distribution's own repositories that are not enabled, as repositories. Pure."""
    known = {}
    for uri, suite, component, keyring in targets:
        known.setdefault((uri, suite, "" if "$(" in keyring else keyring), set()).add(component)
    found = []
    for (uri, suite, keyring), have in sorted(known.items()):
        missing = tuple(name for name in components if name not in have)
        name = "sglang-ops-" + re.sub(r"\W+", "-", suite)
        if "main" in have and missing and name not in [repository.name for repository in found]:
            found.append(repositories.Repository(name, uri, "", (suite,), missing, keyring=keyring))
    return found


def units(names):
    """{name: (enabled, active)}; enabled is "" for a unit that is not there."""
    active = show(names)
    asked = {name: run("systemctl", "is-enabled", name + ".service").stdout.strip() for name in names}
    return {name: ("" if asked[name] == "not-found" else asked[name],
                   active.get(name, {}).get("ActiveState") == "active") for name in names}


def running():
    """Units of the services of this tool that run or are about to."""
    names = state.names()
    properties = show(names)
    return tuple(name + ".service" for name in names
                 if properties.get(name, {}).get("ActiveState") in ("active", "activating", "reloading"))


def processes():
    """Programs that hold a GPU, as the driver tells."""
    if not shutil.which("nvidia-smi"):
        return ()
    done = run("nvidia-smi", "--query-compute-apps=pid,process_name", "--format=csv,noheader")
    rows = [line.split(",", 1) for line in done.stdout.splitlines()] if done.ok else []
    return tuple("%s (process %s)" % (row[1].strip(), row[0].strip()) for row in rows if len(row) == 2)


def version_of(found, wanted):
    """The driver's version as installed, "" for none."""
    for name in choices(wanted.packages[0]) if wanted.packages else ():
        if name in found.installed:
            return catalogue.upstream(found.installed[name])
    return "" if wanted.packages else found.library or found.built


def lacking(found, wanted, options):
    """Entries of `wanted` that are not installed, or not of the branch or version asked for. Pure."""
    def present(entry):
        return any(name in found.installed for name in choices(entry))

    have = version_of(found, wanted)
    right = bool(have) and (have == options.version if options.version else
                            options.source != "nvidia" or have.startswith(options.branch + "."))
    entries = [entry for entry in wanted.prerequisites + wanted.packages if not present(entry)]
    if have and not right:
        entries = list(wanted.prerequisites + wanted.packages)
    apart = [entry for entry in wanted.exact if not any(
        name in found.installed and catalogue.upstream(found.installed[name]) == have for name in choices(entry))]
    return tuple(dict.fromkeys(entries + apart))


def plan(found, wanted, options, policy):
    """What is to be done on a host. Pure."""
    refusal = refused(found, wanted, options, policy)
    needed = lacking(found, wanted, options)
    if not refusal and needed and (found.loaded or version_of(found, wanted)) and not policy.under_load:
        busy = found.services + found.processes
        if busy:
            refusal = ("%s would be changed while %s runs, which then finds library and kernel module apart. Stop it, "
                       "or set nvidia_driver_under_load: true." % (
                           "driver " + (found.loaded or version_of(found, wanted)), ", ".join(busy)))
    if refusal:
        return Plan(refusal, warnings=wanted.warnings)
    version = version_of(found, wanted)
    hold = tuple(name for name in catalogue.belong(found.installed, version) if name not in found.held)
    hold = hold if policy.hold and wanted.packages else ()
    quiet = bool(found.devices) and not reasons(found, wanted)  # else the next boot starts what is enabled
    idle = tuple(name for name, (enabled, active) in found.units.items()
                 if enabled == "disabled" or (enabled and quiet and not active))
    new = [name for name, (enabled, _) in found.units.items() if not enabled and needed]
    load = bool(found.devices and wanted.packages) and not found.loaded and not found.nouveau
    steps = ["write " + path for path in found.files]
    steps += ["install " + _shown(entry, found.candidates, options) for entry in needed]
    steps += ["hold " + name for name in hold] if hold else (["hold the driver's packages"] if needed and policy.hold
                                                              else [])
    steps += ["enable " + name for name in [*idle, *new]]
    steps += ["load the kernel module"] if load else []
    warnings = list(wanted.warnings)
    if not found.devices and wanted.packages:
        warnings.append("There is no NVIDIA GPU on the PCI bus: no kernel module is loaded, and nvidia-smi not asked.")
    return Plan("", tuple(steps), needed, hold, idle, load, tuple(warnings))


def _shown(entry, candidates, options):
    """A package with the version that it will have, as far as that can be known before the pin is in place."""
    asked = options.version or options.branch
    known = [name for name in choices(entry) if catalogue.upstream(candidates.get(name, "")).startswith(
        "" if options.source == "distribution" else asked) and name in candidates]
    return "%s %s" % (known[0], candidates[known[0]]) if known else entry.replace("=", " ").replace("|", " or ")


def refused(found, wanted, options, policy):
    """Why nothing may be done here, "" for no reason. Pure."""
    if options.source == "preinstalled":
        return ""  # there is nothing to do; what nvidia-smi says decides
    if not found.devices and policy.require_gpu:
        return ("There is no NVIDIA GPU on the PCI bus (lspci -nn -d 10de:). Take the host out of the inventory, or "
                "set nvidia_driver_require_gpu: false to install the driver all the same.")
    if found.loaded and not any(_PART.match(name) for name in found.installed):
        return ("Driver %s runs here, and no package holds it: NVIDIA's .run file or the provider's image brought it. "
                "Set nvidia_driver_source: preinstalled to keep it, or remove it first (nvidia-uninstall)."
                % found.loaded)
    if found.secure_boot and wanted.builds and not found.loaded and not policy.enrol:
        signed = "set nvidia_driver_source: distribution, whose modules Canonical signs; " \
            if found.system.distribution == "ubuntu" else ""
        return ("Secure Boot is on, and it loads no kernel module that is built here. Turn it off in the firmware; %s"
                "or set nvidia_driver_mok: enrol, and confirm the key on the console at the next boot." % signed)
    return ""


def reasons(found, wanted):
    """Why the host has to be booted anew, in order of weight. Pure. A module that is loaded in the right version and
    flavour serves, whatever packages ask for.
    """
    if not found.devices:
        return ()
    version = version_of(found, wanted)
    told = ["nouveau is loaded"] if found.nouveau else []
    if found.loaded and version and found.loaded != version:
        told.append("kernel module %s is loaded, %s is installed" % (found.loaded, version))
    elif found.loaded and found.built == found.loaded and found.loaded_open != found.built_open:
        told.append("the %s kernel module is loaded, the %s one is installed" % (
            ("open", "proprietary") if found.loaded_open else ("proprietary", "open")))
    return tuple(told)
