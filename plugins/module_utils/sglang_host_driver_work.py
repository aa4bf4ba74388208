"""Installing NVIDIA's driver, loading it, and asking whether it works. Python 3.8, standard library."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import subprocess
import time

from ansible.module_utils import sglang_host_driver as driver
from ansible.module_utils import sglang_host_driver_packages as catalogue
from ansible.module_utils import sglang_host_nvidia as nvidia
from ansible.module_utils import sglang_host_repositories as repositories
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_packages import PackageError
from ansible.module_utils.sglang_host_state import read_text, write_atomic

_KEYS = ("/var/lib/shim-signed/mok/MOK.der", "/var/lib/dkms/mok.pub")  # Ubuntu's, dkms' own
_BUILD_LOG = "/var/lib/dkms/nvidia*/*/build/make.log"
_SMI_SECONDS = 120  # the first call initialises every GPU
_BACK_SECONDS = 120


class Failure(Exception):
    """The driver is not as it should be; the message says why and what to do."""


def install(found, wanted, options, planned, packages, progress):
    """Repositories, pin, headers and packages, in this order: what pins must be there before what it pins."""
    family, kernel = found.system.family, found.system.kernel
    if planned.packages and family == "debian":
        packages.refresh()
    for repository in driver.sources(wanted, family):
        missing = set(repositories.files(repository, family)) & set(found.files)
        if missing or (repository.key and planned.packages):  # the distribution's own lists are fresh by now
            packages.add(repository)
    if driver.NOUVEAU in found.files:
        write_atomic(driver.NOUVEAU, driver.NOUVEAU_TEXT)
        rebuild_initramfs(kernel, progress)
    if not planned.packages:
        return
    headers = lacking_headers(found, wanted, packages)
    if wanted.stream:
        packages.stream(wanted.stream)
    held = found.held.intersection(catalogue.belong(found.installed, driver.version_of(found, wanted)))
    packages.release(held)  # they change together, or not at all
    try:
        change(wanted, options, planned, headers, packages)
    except BaseException:
        with contextlib.suppress(PackageError):
            packages.hold(sorted(held & set(packages.installed())))
        raise


def change(wanted, options, planned, headers, packages):
    """Install the packages of a plan: what pins the branch, the driver, what must be of its very version."""
    first = [entry for entry in planned.packages if entry in wanted.prerequisites]
    if first:
        packages.install(first)
    if not wanted.choose and not wanted.stream:
        judge_offer(wanted, options, packages)
    rest = [chosen(entry, packages) for entry in planned.packages
            if entry not in wanted.prerequisites and entry not in wanted.exact]
    packages.install([*headers, *(of_branch(rest, wanted.packages[0], options, packages) if wanted.choose else rest)])
    exactly(wanted, packages)


def judge_offer(wanted, options, packages):
    """Raises PackageError where the repositories, pinned as they are, would give another driver than is asked for."""
    name = driver.choices(wanted.packages[0])[0]
    offered = catalogue.upstream(packages.candidates([name]).get(name, ""))
    asked = options.version or options.branch
    if offered and options.source == "nvidia" and offered != asked and not offered.startswith(asked + "."):
        raise PackageError("The repositories offer %s %s, and %s is asked for. See /etc/apt/preferences.d, and "
                           "apt-cache policy %s." % (name, offered, asked, name))


def lacking_headers(found, wanted, packages):
    """The packages of headers to install. Raises PackageError where the running kernel has none any more."""
    if found.headers or not wanted.headers:
        return []
    offered = packages.candidates([wanted.headers[0]]) or packages.installed([wanted.headers[0]])
    if not offered and found.devices:
        raise PackageError("The kernel module is built for the running kernel %s, whose headers (%s) are in no "
                           "repository. Upgrade the kernel, reboot, and run this again." % (
                               found.system.kernel, wanted.headers[0]))
    return list(wanted.headers) if offered else []


def chosen(entry, packages):
    """The name of an entry such as ``a|b`` that the repositories have; the first where they have none."""
    names = entry.split("|")
    if len(names) == 1:
        return entry
    offered = packages.candidates(names)
    return next((name for name in names if name in offered), names[0])


def of_branch(entries, first, options, packages):
    """Each package in the newest version of the branch, where it has any; the `first` must. Raises PackageError."""
    found = []
    for entry in entries:
        every = packages.versions(entry)
        fitting = [full for full in every if catalogue.upstream(full).startswith(options.branch + ".")]
        if not fitting and entry == first and "=" not in entry:
            raise PackageError("No repository has %s of branch %s." % (entry, options.branch))
        found.append("%s=%s" % (entry, fitting[0]) if fitting else entry)
    return found


def exactly(wanted, packages):
    """Packages that only start beside a driver of their own version."""
    for entry in wanted.exact:
        have = packages.installed(driver.choices(wanted.packages[0]))
        version = catalogue.upstream(next(iter(have.values()), ""))
        name = chosen(entry, packages)
        fitting = [full for full in packages.versions(name) if catalogue.upstream(full) == version]
        if not fitting:
            raise PackageError("%s must be of the driver's very version, %s, and no repository has that. Set "
                               "nvidia_driver_version to one that has both." % (name, version))
        packages.install(["%s=%s" % (name, fitting[0])])


def rebuild_initramfs(kernel, progress):
    """Nouveau is loaded from there, long before the file that forbids it can be read."""
    image = driver.initramfs(kernel)
    if image is None:
        return
    progress.report("rebuilding the initramfs")
    done = progress.run_child(image[1], gentle=True)
    if not done.ok:
        raise Failure("%s failed: %s. It has to work before the next boot." % (image[1][0], done.error.rstrip(".")))


def start(names, now):
    """Enable services, and start them `now` or at the next boot. Raises Failure."""
    for name in names:
        words = ["enable"] + (["--now"] if now else [])
        done = run("systemctl", *words, name + ".service", timeout=_SMI_SECONDS)
        if not done.ok:
            raise Failure("%s does not start: %s. See `journalctl -u %s` on the host." % (
                name, done.error.rstrip("."), name))


def load(found, wanted, packages, progress):
    """Load the kernel module, built anew where the kernel is newer than it. Raises Failure with the reason why not."""
    progress.report("loading the kernel module")
    done = run("modprobe", "nvidia", timeout=_SMI_SECONDS)
    if not done.ok and "not found in directory" in done.error and wanted.builds and shutil.which("dkms"):
        headers = lacking_headers(found, wanted, packages)
        if headers:
            packages.install(headers)  # whose scripts have dkms build
        progress.report("building the kernel module")
        progress.run_child(["dkms", "autoinstall", "-k", found.system.kernel], gentle=True)
        done = run("modprobe", "nvidia", timeout=_SMI_SECONDS)
    if done.ok:
        run("modprobe", "nvidia-uvm", timeout=_SMI_SECONDS)
        return
    log = run("dmesg").stdout[-20000:]
    logs = sorted(glob.glob(_BUILD_LOG), key=os.path.getmtime)
    raise Failure(why_not(done.error, run("dkms", "status").stdout, log, found, wanted,
                          (read_text(logs[-1]) or "") if logs else ""))


def why_not(error, dkms, log, found, wanted, build):
    """Why the kernel module cannot be loaded, in one sentence with a remedy. Pure."""
    kernel = found.system.kernel
    if re.search(r"Key was rejected|Required key not available", error):
        return ("The kernel module is built, but Secure Boot does not know the key that signs it. Confirm the key on "
                "the console (mokutil --list-new), or turn Secure Boot off.")
    if "not found" in error:
        built = [line for line in dkms.splitlines() if line.startswith("nvidia") and kernel in line]
        if built and "installed" not in built[0]:
            wrong = re.findall(r"^.*(?:error|Error)[: ].*$", build, re.MULTILINE)
            return "DKMS did not build the kernel module for %s (%s)%s. See %s, then run `dkms autoinstall`." % (
                kernel, built[0].strip(), ": " + wrong[0].strip() if wrong else "", _BUILD_LOG)
        if wanted.builds and not found.headers:
            return ("There is no kernel module for %s, and its headers (%s) are not installed. Install them, then run "
                    "`dkms autoinstall`." % (kernel, wanted.headers[0]))
        return "There is no kernel module nvidia for the running kernel %s. `dkms status` says: %s." % (
            kernel, "; ".join(dkms.split("\n")).strip("; ") or "nothing")
    if "No such device" in error and "requires use of the NVIDIA open kernel modules" in log:
        return "These GPUs need the open kernel modules. Set nvidia_driver_flavour: open."
    if "No such device" in error:
        told = re.findall(r"NVRM: (.+)", log)
        return ("The kernel module finds no GPU that it knows%s. Check nvidia_driver_flavour (Turing and newer: open; "
                "older: proprietary) and nvidia_driver_branch." % (" (%s)" % told[-1].strip() if told else ""))
    return "modprobe nvidia fails: %s. `dmesg | grep NVRM` on the host says more." % error.rstrip(".")


def enrol(password):
    """Ask the firmware to take the key that signs modules built here; True where somebody has to confirm it yet."""
    path = next((path for path in _KEYS if os.path.exists(path)), None)
    if path is None or not shutil.which("mokutil"):
        raise Failure("There is no key to enrol (%s), or no mokutil. Install shim-signed and mokutil." % _KEYS[-1])
    if "already enrolled" in run("mokutil", "--test-key", path).stdout:
        return False
    if "SHA1" not in run("mokutil", "--list-new").stdout:
        if not password:
            raise Failure("nvidia_driver_mok: enrol needs nvidia_driver_mok_password, which the console asks for at "
                          "the next boot.")
        done = subprocess.run(["mokutil", "--import", path], input="%s\n%s\n" % (password, password), check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=60)
        if done.returncode:
            raise Failure("mokutil cannot take the key %s: %s." % (path, done.stdout.strip().rpartition("\n")[2]))
    return True


def verify(found, wanted):
    """Ask nvidia-smi; what it says in a few words. Raises Failure where it does not list every GPU."""
    if not found.devices and wanted.packages:
        return "no GPU"
    done = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", timeout=_SMI_SECONDS)
    if not done.ok:
        raise Failure("nvidia-smi says: %s. `dmesg | grep NVRM` on the host says more." % done.error.rstrip("."))
    listed = done.stdout.split()
    if not listed:
        raise Failure("nvidia-smi lists no GPU.")
    if len(listed) < len(found.devices):
        raise Failure("%d GPUs are on the PCI bus, and nvidia-smi lists %d. `dmesg | grep NVRM` on the host says why."
                      % (len(found.devices), len(listed)))
    if "nvidia-fabricmanager" in wanted.services and nvidia.fabric_manager()["state"] != "active":
        raise Failure("The fabric manager does not run. See `journalctl -u nvidia-fabricmanager` on the host.")
    return "%s runs %d GPU%s" % (listed[0], len(listed), "s" if len(listed) > 1 else "")


def wait_for(names):
    """Until services that ran before a reboot run again. Raises Failure."""
    deadline = time.monotonic() + _BACK_SECONDS
    while True:
        missing = [name for name in names if not run("systemctl", "--quiet", "is-active", name).ok]
        if not missing:
            return
        if time.monotonic() > deadline:
            raise Failure("%s did not come back after the reboot. See `journalctl -u %s` on the host." % (
                ", ".join(missing), missing[0]))
        time.sleep(1)
