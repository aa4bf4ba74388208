"""Which packages bring a container engine to a host, and from where. Python 3.8, standard library.

`look` reads the host, `supply` (pure) decides. An engine that is there stays as it is, unless another one or another
version was asked for by name; and while it runs containers not even then, unless its restart was asked for as well.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass, field

from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils import sglang_host_packages as managers
from ansible.module_utils import sglang_host_repositories as repositories
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_state import read_text

DOCKER_URL = "https://download.docker.com/linux"
# What Docker builds packages for, of the systems that this tool knows: the release, by the distribution's ID.
DOCKER_RELEASES = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04"), "rhel": ("8", "9", "10")}
DOCKER_CE = ("docker-ce", "docker-ce-cli", "containerd.io")
_CODENAMES = {"12": "bookworm", "13": "trixie", "22.04": "jammy", "24.04": "noble"}
_RHEL = ("rhel", "rocky", "almalinux", "centos")  # one and the same repository
_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/*", "/etc/yum.repos.d/*.repo")
_DNF_SECONDS = 120
_SHOWN = 8  # versions in a message
# Packages of one engine that carry its version; containerd and the others have versions of their own.
_ONE_VERSION = ("docker-ce", "docker-ce-cli", "docker.io", "docker-cli", "podman")


@dataclass(frozen=True)
class Origin:
    """What was asked for. `version` is upstream's (28.5.1) or the package's own."""

    source: str = "distribution"  # or docker
    repository: str = DOCKER_URL
    key: str = ""
    version: str = ""
    replace: bool = False
    restart: bool = False


@dataclass(frozen=True)
class Shelf:
    """What the package manager has, as far as the decision needs it."""

    release: dict  # of os-release
    machine: str = "x86_64"
    installed: dict = field(default_factory=dict)
    candidates: dict = field(default_factory=dict)
    held: frozenset = frozenset()
    lacking: dict = field(default_factory=dict)  # files of the repository, by path
    ours: bool = False  # whether an earlier run wrote the repository
    elsewhere: str = ""  # a source file of others that already names the repository

    @property
    def family(self) -> str:
        return managers.family_of(self.release)

    @property
    def system(self) -> str:
        return self.release.get("PRETTY_NAME") or self.release.get("ID") or "this system"


@dataclass(frozen=True)
class Supply:
    """What to install (``name`` or ``name=version``) from which repository, and to hold at its version."""

    packages: tuple = ()
    repository: repositories.Repository | None = None
    files: dict = field(default_factory=dict)
    hold: tuple = ()
    notes: tuple = ()
    refusal: str = ""


def docker_release(release: dict):
    """(distribution, release) as Docker's repository names them, None where it has no packages. Pure."""
    name = release.get("ID", "")
    name = "rhel" if name in _RHEL else name
    number = release.get("VERSION_ID", "")
    number = number.partition(".")[0] if name in ("rhel", "debian") else number
    return (name, number) if number in DOCKER_RELEASES.get(name, ()) else None


def docker_repository(release: dict, machine: str, origin: Origin) -> repositories.Repository:
    """Docker's repository, or a mirror with the same layout, for a release that `docker_release` knows. Pure."""
    name, number = docker_release(release)
    base = "%s/%s" % (origin.repository.rstrip("/"), name)
    key = origin.key or base + "/gpg"
    if name == "rhel":
        return repositories.Repository("docker-ce", "%s/%s/$basearch/stable" % (base, number), key)
    return repositories.Repository("docker-ce", base, key, (_CODENAMES[number],), ("stable",), (architecture(machine),))


def architecture(machine: str) -> str:
    """Debian's word for it. Pure."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def asked_for(engine: str, origin: Origin) -> tuple:
    """The packages of an engine, the one that is named for it first; a version goes to those that share it. Pure."""
    names = (*DOCKER_CE, "ca-certificates") if origin.source == "docker" else engines.PACKAGES[engine]
    return tuple("%s=%s" % (name, origin.version) if origin.version and name in _ONE_VERSION else name
                 for name in names)


def supply(engine: str, current: engines.Current, origin: Origin, shelf: Shelf) -> Supply:
    """What brings the engine that was asked for. Pure. A refusal names the value and what to do."""
    if origin.source == "docker" and engine != "docker":
        return Supply(refusal="container_engine_source is docker, and container_engine is %s, which only the "
                              "distribution has. Set container_engine_source: distribution." % engine)
    if current.version:
        wanted, note = exchanged(engine, current, origin, shelf)
    else:
        wanted, note = absent(engine, current, origin, shelf), ""
    if (wanted or not current.version) and not_to_be_had(engine, origin, shelf):
        return Supply(refusal=not_to_be_had(engine, origin, shelf))
    if note:
        return Supply(notes=(note,))
    named = {name.partition("=")[0] for name in wanted}
    held = [name for name in _ONE_VERSION if origin.version and (name in shelf.installed or name in named)]
    hold = tuple(name for name in held if name not in shelf.held or name in named)
    if origin.source != "docker" or shelf.elsewhere or not (wanted or (shelf.ours and shelf.lacking)):
        return Supply(wanted, hold=hold)
    return Supply(wanted, docker_repository(shelf.release, shelf.machine, origin), shelf.lacking, hold)


def absent(engine: str, current: engines.Current, origin: Origin, shelf: Shelf) -> tuple:
    """The packages of an engine that is missing or half installed. Pure."""
    on_offer = current.candidates or shelf.candidates
    wanted = [item for item in asked_for(engine, origin)
              if "=" in item or item not in (*shelf.installed, *current.installed)]
    if origin.source == "docker":
        return tuple(wanted)
    return tuple(item for item in wanted if not on_offer or item.partition("=")[0] in on_offer)


def exchanged(engine: str, current: engines.Current, origin: Origin, shelf: Shelf) -> tuple:
    """(packages, why the engine stays as it is) for an engine that is there. Pure."""
    if origin.source != "docker" and not origin.version:
        return engines.missing_packages(current, engine), ""
    asked = asked_for(engine, origin)
    main = asked[0].partition("=")[0]
    have = shelf.installed.get(main)
    if have and (not origin.version or origin.version in spellings(have)):
        return (), ""
    if not have and not (origin.replace and origin.source == "docker"):
        told = "%s %s stays: it is not of the package %s." % (engine, current.version, main)
        return (), told + (" container_engine_replace: true exchanges it." if origin.source == "docker" else "")
    if current.containers and not origin.restart:
        told = "%s %s stays: %s would stop the %d containers that it runs. container_engine_restart: true allows that."
        return (), told % (engine, current.version, asked[0], current.containers)
    if not have:
        return asked, ""
    return tuple(item for item in asked if "=" in item and item.partition("=")[0] in shelf.installed), ""


def not_to_be_had(engine: str, origin: Origin, shelf: Shelf) -> str:
    """Why this system cannot get the packages, "" where it can. Pure."""
    if not shelf.family:
        return "%s is missing, and %s has neither apt nor dnf. Install %s, then run this again." % (
            engine, shelf.system, engine)
    if origin.source == "docker" and not docker_release(shelf.release):
        known = ", ".join("%s %s" % (name, "/".join(numbers)) for name, numbers in DOCKER_RELEASES.items())
        return ("Docker's repository is known for %s, and this is %s. Install docker, or set "
                "container_engine_source: distribution." % (known, shelf.system))
    if origin.source != "docker" and engine == "docker" and shelf.family == "redhat":
        return ("docker is missing, and %s has no package of it. Set container_engine_source: docker, or "
                "container_engine: podman." % shelf.system)
    return ""


def spellings(version: str) -> tuple:
    """How a version may be given: 5:28.5.1-1~debian.13~trixie, the same without epoch, and 28.5.1. Pure."""
    bare = version.partition(":")[2] or version
    return version, bare, re.split(r"[-+~]", bare, maxsplit=1)[0]


def resolved(packages, versions_of, variable: str = "container_engine_version") -> tuple:
    """`packages` with the package's own version in place of upstream's. Raises PackageError, naming what there is."""
    found = []
    for name, _, version in (item.partition("=") for item in packages):
        on_offer = versions_of(name) if version else []
        fitting = [full for full in on_offer if version in spellings(full)]
        if version and not fitting:
            known = ", ".join(list(dict.fromkeys(spellings(full)[2] for full in on_offer))[:_SHOWN])
            raise managers.PackageError("%s %s is in no repository of this host, which has %s. Set %s to one that "
                                        "is there." % (name, version, known or "none", variable))
        found.append("%s=%s" % (name, fitting[0]) if version else name)
    return tuple(found)


def versions(name: str, family: str) -> list:
    """Every version of a package that can be had, the newest first."""
    if family == "debian":
        return [line.split("|")[1].strip() for line in run("apt-cache", "madison", name).stdout.splitlines()]
    shown = run("dnf", "-q", "list", "--available", "--showduplicates", name, timeout=_DNF_SECONDS).stdout
    return re.findall(r"^%s\.\S+\s+(\S+)" % re.escape(name), shown, re.MULTILINE)[::-1]


def look(engine: str, current: engines.Current, origin: Origin, manager_of) -> Shelf:
    """What `supply` needs to know. `manager_of(family)` gives the package manager. Reads only."""
    release, machine = managers.os_release(), os.uname().machine
    shelf = Shelf(release, machine)
    plain = origin.source != "docker" and not origin.version
    if not shelf.family or (plain and (current.version or shelf.family == "debian")):
        return shelf  # `engines.observe` has seen all that matters
    manager = manager_of(shelf.family)
    names = [item.partition("=")[0] for item in asked_for(engine, origin)]
    found = {
        "installed": manager.installed(names),
        "candidates": manager.candidates(names) if plain else {},
        "held": manager.held() if origin.version else frozenset(),
    }
    if origin.source == "docker" and docker_release(release):
        repository = docker_repository(release, machine, origin)
        path = repositories.source_path(repository, shelf.family)
        found.update(lacking=repositories.missing(repository, shelf.family), ours=os.path.exists(path),
                     elsewhere=named_elsewhere(repository.url, path))
    return Shelf(release, machine, **found)


def named_elsewhere(url: str, own: str) -> str:
    """The source file of others that names a repository already: apt takes one with two keys for an error."""
    place = re.sub(r"^\w+://|/$", "", url).split("/$")[0]
    for path in sorted(name for pattern in _SOURCES for name in glob.glob(pattern)):
        lines = (read_text(path) or "").splitlines() if path != own else []
        if any(place in line for line in lines if not line.lstrip().startswith("#")):
            return path
    return ""
