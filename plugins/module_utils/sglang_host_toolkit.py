"""NVIDIA's container toolkit, which writes the CDI specification that hands GPUs to containers.

`observe` reads the host, `plan` (pure) says what is missing, `install` and `renew` do it. The legacy runtime hook is
never set up: its containers lose their GPUs at every `systemctl daemon-reload`. Python 3.8, standard library.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from dataclasses import dataclass, field

from ansible.module_utils import sglang_host_nvidia as nvidia
from ansible.module_utils import sglang_host_repositories as repositories
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_engine_packages import architecture, named_elsewhere, resolved, versions
from ansible.module_utils.sglang_host_packages import PackageError
from ansible.module_utils.sglang_host_state import read_text

URL = "https://nvidia.github.io/libnvidia-container/stable"
KEY = "https://nvidia.github.io/libnvidia-container/gpgkey"
VERSION = "1.20.1-1"
# One version for all four: they are released together, and apt would otherwise mix them.
PACKAGES = ("nvidia-container-toolkit", "nvidia-container-toolkit-base", "libnvidia-container-tools",
            "libnvidia-container1")
UNITS = ("nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service")
UNITS_SINCE = (1, 18)  # the first whose units write the specification at every boot and driver change
OWN_SPEC = "/etc/cdi/nvidia.yaml"  # written by older toolkits on our behalf; nothing renews it by itself
CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")  # of two specifications of a device, the second directory's counts
_UNIT_PATHS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_LIBRARY = re.compile(r"lib(?:cuda|nvidia-ml)\.so\.(\d+\.\d+(?:\.\d+)?)")  # libraries carry the driver's version
_DEVICE = re.compile(r"[\"']?\bname[\"']?:\s*[\"']?([\w:.-]+)")
_VERSION = re.compile(r"(\d+\.\d+\.\d+(?:~\w+(?:\.\d+)?)?)(-\d+)?")
_SECONDS = 120


@dataclass(frozen=True)
class Wanted:
    version: str = VERSION
    repository: str = URL
    key: str = KEY


@dataclass(frozen=True)
class Found:
    """What there is. `gpus` are (number, UUID) as nvidia-smi tells them."""

    family: str = "debian"
    machine: str = "x86_64"
    installed: dict = field(default_factory=dict)
    held: frozenset = frozenset()
    units: bool = False
    enabled: bool = False  # both units, and the path is watched
    gpus: tuple = ()
    driver: str = ""
    specs: tuple = ()  # (path, text), the ones that count last
    lacking: dict = field(default_factory=dict)
    ours: bool = False
    elsewhere: str = ""


@dataclass(frozen=True)
class ToolkitPlan:
    """What to do, in this order. `stale` says why the CDI specification must be written anew."""

    family: str = "debian"
    repository: repositories.Repository | None = None
    files: dict = field(default_factory=dict)
    packages: tuple = ()
    hold: tuple = ()
    enable: bool = False
    stale: str = ""
    version: str = ""
    notes: tuple = ()
    refusal: str = ""

    @property
    def steps(self) -> tuple:
        """What would be done, for people."""
        steps = ["write " + path for path in sorted(self.files)] if self.repository else []
        steps += ["install " + ", ".join(self.packages)] if self.packages else []
        steps += ["hold " + ", ".join(self.hold)] if self.hold else []
        steps += ["enable " + ", ".join(UNITS)] if self.enable else []
        return tuple(steps + (["write the CDI specification (%s)" % self.stale] if self.stale else []))


def repository(wanted: Wanted, family: str, machine: str) -> repositories.Repository:
    """NVIDIA's repository, or a mirror with the same layout. Only its metadata are signed for dnf. Pure."""
    base = wanted.repository.rstrip("/")
    if family == "redhat":
        return repositories.Repository(PACKAGES[0], base + "/rpm/$basearch", wanted.key, signed="metadata")
    return repositories.Repository(PACKAGES[0], "%s/deb/%s" % (base, architecture(machine)), wanted.key)


def plan(found: Found, wanted: Wanted) -> ToolkitPlan:
    """What `found` lacks. Pure. A newer toolkit than the wanted one stays; its four packages become one version."""
    told = _VERSION.fullmatch(wanted.version)
    if not told:
        return ToolkitPlan(refusal="container_engine_toolkit_version '%s' is no version such as %s." % (
            wanted.version, VERSION))
    if not found.family:
        return ToolkitPlan(refusal="The container toolkit is packaged for apt and dnf, and this system has neither. "
                                   "Set container_engine_toolkit: false, and install it by other means.")
    asked = told.group(1) + (told.group(2) or "-1")
    version = max([asked, *found.installed.values()], key=order)
    notes = []
    if version != asked:
        notes.append("Container toolkit %s stays: it is newer than container_engine_toolkit_version %s." % (
            version, asked))
    if not found.gpus:
        notes.append("nvidia-smi shows no GPU here yet: the CDI specification is written once the driver runs.")
    lacking = any(found.installed.get(name) != version for name in PACKAGES)
    packages = tuple("%s=%s" % (name, version) for name in PACKAGES) if lacking else ()
    source = repository(wanted, found.family, found.machine)
    own = not found.elsewhere and bool(packages or (found.ours and found.lacking))
    has_units = found.units or (bool(packages) and order(version)[0] >= UNITS_SINCE)
    return ToolkitPlan(
        found.family, source if own else None, found.lacking if own else {}, packages,
        tuple(name for name in PACKAGES if packages or name not in found.held),
        has_units and not found.enabled, staleness(found), version, tuple(notes),
    )


def order(version: str) -> tuple:
    """Sorts versions of the toolkit; a release comes after its candidates. Pure."""
    upstream, _, rest = version.partition("~")
    numbers = tuple(map(int, re.findall(r"\d+", upstream)))
    return numbers[:3], not rest, tuple(map(int, re.findall(r"\d+", rest))) or numbers[3:]


def staleness(found: Found) -> str:
    """Why containers would not get the GPUs that are here from the driver that runs, "" where they would. Pure."""
    if not found.gpus:
        return ""
    if not found.specs:
        return "there is none"
    path, text = next(((path, text) for path, text in reversed(found.specs) if _LIBRARY.search(text)), ("", ""))
    named = sorted(set(_LIBRARY.findall(text)))
    if named and found.driver and found.driver not in named:
        return "%s is for driver %s, and %s runs" % (path, ", ".join(named), found.driver)
    devices = {name for _, text in found.specs for name in _DEVICE.findall(text)}
    parents = {name.partition(":")[0] for name in devices}  # 0:1 is an instance of GPU 0 under MIG
    absent = [number for number, uuid in found.gpus if not {number, uuid} & (devices | parents)]
    return "it lacks GPU %s" % ", ".join(absent) if absent else ""


def observe(wanted: Wanted, family: str, manager) -> Found:
    """Look at the host. Reads only."""
    gpus, driver = shown_gpus()
    if not family:
        return Found(family, gpus=gpus, driver=driver)
    machine = os.uname().machine
    source = repository(wanted, family, machine)
    path = repositories.source_path(source, family)
    place = "%s/%s" % (wanted.repository.rstrip("/"), "rpm" if family == "redhat" else "deb")
    return Found(
        family, machine, manager.installed(PACKAGES), manager.held(), has_units(), enabled(), gpus, driver,
        specifications(), repositories.missing(source, family), os.path.exists(path), named_elsewhere(place, path),
    )


def has_gpus() -> bool:
    """Whether there is an NVIDIA GPU, on the bus or through a driver that works."""
    return bool(nvidia.pci()[0] or shown_gpus()[0])


def shown_gpus() -> tuple:
    """(GPUs, driver): what nvidia-smi says."""
    done = run("nvidia-smi", "--query-gpu=index,uuid,driver_version", "--format=csv,noheader,nounits")
    rows = nvidia.table(done.stdout, ["uuid", "driver"]) if done.ok else {}
    return tuple((number, row["uuid"]) for number, row in rows.items()), next(
        (row["driver"] for row in rows.values()), "")


def specifications() -> tuple:
    """CDI specifications of NVIDIA GPUs, those that count last."""
    paths = [path for directory in CDI_DIRECTORIES for path in sorted(glob.glob(directory + "/*"))
             if path.endswith((".yaml", ".yml", ".json"))]
    texts = [(path, read_text(path) or "") for path in paths]
    return tuple((path, text) for path, text in texts if "nvidia.com/gpu" in text)


def has_units() -> bool:
    return any(os.path.exists(os.path.join(path, UNITS[0])) for path in _UNIT_PATHS)


def enabled() -> bool:
    links = [glob.glob("/etc/systemd/system/*.wants/" + unit) for unit in UNITS]
    return all(links) and run("systemctl", "is-active", "--quiet", UNITS[0]).ok


def install(planned: ToolkitPlan, manager) -> None:
    """Packages, their hold and their units. Raises PackageError."""
    if planned.packages:
        manager.install(resolved(planned.packages, lambda name: versions(name, planned.family),
                                 "container_engine_toolkit_version"))
    if planned.hold:
        manager.hold(planned.hold)
    # The packages do this themselves, but only where systemd has no failed unit of anybody's.
    if has_units() and not enabled():
        told("enable", "--quiet", *UNITS)
        told("start", UNITS[0])


def renew(observed) -> None:
    """Write the CDI specification anew where it is stale; `observed()` looks again. Raises PackageError."""
    if not staleness(observed()):
        return
    if has_units():
        told("restart", UNITS[1])
    if staleness(observed()):  # no units, or those of a version that does not know a distribution's own driver
        generate()
    why = staleness(observed())
    if why:
        raise PackageError("the CDI specification is not as it should be after it was written anew: %s. See "
                           "`nvidia-ctk cdi list` and `journalctl -u %s`." % (why, UNITS[1]))


def generate() -> None:
    """For toolkits without units. In one move: the engines read whatever ends in .yaml."""
    os.makedirs(os.path.dirname(OWN_SPEC), mode=0o755, exist_ok=True)
    new = OWN_SPEC + ".new"
    done = run("nvidia-ctk", "cdi", "generate", "--format=yaml", "--output=" + new, timeout=_SECONDS)
    if not done.ok:
        raise PackageError("`nvidia-ctk cdi generate` says: %s." % done.error)
    shutil.move(new, OWN_SPEC)


def told(*words: str) -> None:
    done = run("systemctl", *words, timeout=_SECONDS)
    if not done.ok:
        raise PackageError("systemctl %s says: %s See `journalctl -u %s`." % (" ".join(words), done.error, words[-1]))
