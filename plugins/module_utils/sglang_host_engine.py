"""What is there of a container engine on a host, and what it lacks. Reads only. Python 3.8, standard library.

`observe` looks, `plan` (pure) says what is missing; the module `container_engine` does it, and `facts` tells
planning.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from dataclasses import dataclass, field

from ansible.module_utils import sglang_host_api as api
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_image import present  # noqa: F401 (the facts module finds it here)
from ansible.module_utils.sglang_host_state import read_text

DAEMON_JSON = "/etc/docker/daemon.json"
ENABLED = "/etc/systemd/system/*.wants/docker.service"  # the link that `systemctl enable` makes
REGISTRIES_CONF = "/etc/containers/registries.conf.d/50-sglang-ops.conf"
DOCKER_CDI_SINCE = (25, 0)  # older daemons have no CDI; from 28.2 on it is on by default

# Without recommended packages: what of them these engines do need is spelled out. Newer releases have docker's
# client in a package of its own; `--init` of podman is catatonit. What a release does not have is left out.
PACKAGES = {
    "docker": ("docker.io", "docker-cli", "ca-certificates"),
    "podman": ("podman", "crun", "catatonit", "netavark", "ca-certificates"),
}
# What apt would say on hosts whose package lists have never been fetched, as far as the choice of packages and
# of how GPUs are passed depends on it.
CANDIDATES = {
    ("debian", "12"): {"docker.io": "20.10.24", "podman": "4.3.1"},
    ("debian", "13"): {"docker.io": "26.1.5", "docker-cli": "26.1.5", "podman": "5.4.2"},
    ("ubuntu", "24.04"): {"docker.io": "24.0.7", "podman": "4.9.3"},
}
_WRITE_NO_CACHE = ("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=")  # looking changes nothing
_EVERYWHERE = {"crun": "1", "catatonit": "0.1", "netavark": "1", "ca-certificates": "1"}
# What dockerd reads again when it is reloaded (docs.docker.com/reference/cli/dockerd, "Configuration reload
# behavior"); everything else takes effect at its next start. `features` is left out: `cdi` is read at start only.
RELOADABLE = frozenset({
    "allow-nondistributable-artifacts", "authorization-plugins", "debug", "default-runtime", "insecure-registries",
    "labels", "live-restore", "max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts",
    "registry-mirrors", "runtimes", "shutdown-timeout",
})


@dataclass(frozen=True)
class Desired:
    """`daemon` are further settings for daemon.json; `restart` allows to stop containers for a restart of docker."""

    engine: str
    insecure_registries: tuple = ()
    wants_cdi: bool = False
    daemon: dict = field(default_factory=dict)
    restart: bool = False


@dataclass(frozen=True)
class Current:
    """What was found. `candidates`, installable versions by package, are looked up only for a missing engine."""

    version: str | None = None  # of the installed engine
    active: bool = False  # docker's daemon answers; podman has none and is active when installed
    enabled: bool = True
    has_init: bool = True  # what `--init` runs
    containers: int = 0
    insecure: tuple = ()  # in effect, not only configured
    cdi: bool = False
    config: str | None = None  # text of the file that `plan` would change
    waiting: tuple = ()  # settings written by earlier runs that wait for docker's next start
    data_root: str = ""
    has_apt: bool = True
    installed: frozenset = frozenset()
    candidates: dict = field(default_factory=dict)


@dataclass(frozen=True)
class EnginePlan:
    """What to do, in this order: write `after` to `path`, install, tell the service `service`.

    A docker that is installed after its configuration was written needs no restart. `pending` are the settings that
    will take effect only when docker starts the next time, because now it runs containers.
    """

    packages: tuple = ()
    path: str = ""
    before: str | None = None
    after: str | None = None
    service: str = ""  # "", enable, start, reload or restart
    pending: tuple = ()
    refusal: str = ""

    @property
    def changed(self) -> bool:
        return bool(self.packages or self.after is not None or self.service)

    @property
    def steps(self) -> tuple:
        """What would be done, for people."""
        steps = ["write " + self.path] if self.after is not None else []
        steps += ["install " + ", ".join(self.packages)] if self.packages else []
        return tuple(steps + ([self.service + " docker"] if self.service else []))


def plan(current: Current, desired: Desired, packages: tuple | None = None) -> EnginePlan:
    """What `current` lacks. Pure. A refusal names the value and what to do; then nothing is to be touched.

    `packages` are those to install where the caller knows better than to complete the distribution's.
    """
    if packages is None:
        packages = missing_packages(current, desired.engine)
        if packages and not current.has_apt:
            return EnginePlan(refusal="%s is missing and this system has no apt. Run `sglang-ops provision`, which "
                                      "installs it, then deploy again." % desired.engine)
    if desired.engine == "podman":
        after = registries_conf(current.config, desired.insecure_registries)
        return EnginePlan(packages, REGISTRIES_CONF, current.config, after)
    return _plan_docker(current, desired, packages)


def _plan_docker(current: Current, desired: Desired, packages: tuple) -> EnginePlan:
    try:
        changed, after = daemon_json(current, desired)
    except ValueError as error:
        return EnginePlan(refusal="%s is not valid: %s. Correct it, then run this again." % (DAEMON_JSON, error))
    lacks_cdi = desired.wants_cdi and not current.cdi and knows_cdi(current)
    lacks_registry = set(desired.insecure_registries) - set(current.insecure)
    late = {*current.waiting, *changed} - RELOADABLE
    if not current.active:
        return EnginePlan(packages, DAEMON_JSON, current.config, after, "start")
    if (late or lacks_cdi) and (desired.restart or not current.containers):
        return EnginePlan(packages, DAEMON_JSON, current.config, after, "restart")
    if lacks_cdi:
        message = ("docker must be restarted to give GPUs to containers, and runs %d of them. When they may stop, set "
                   "\"features\": {\"cdi\": true} in %s and run `sudo systemctl restart docker`.")
        return EnginePlan(refusal=message % (current.containers, DAEMON_JSON))
    service = "reload" if lacks_registry or RELOADABLE & set(changed) else "" if current.enabled else "enable"
    return EnginePlan(packages, DAEMON_JSON, current.config, after, service, tuple(sorted(late)))


def missing_packages(current: Current, engine: str) -> tuple:
    """An engine that is there, however it came, stays as it is; podman's --init is added to it."""
    if current.version:
        return () if current.has_init or engine == "docker" else ("catatonit",)
    wanted = [name for name in PACKAGES[engine] if name not in current.installed]
    return tuple(name for name in wanted if not current.candidates or name in current.candidates)


def knows_cdi(current: Current) -> bool:
    version = tuple(int(part) for part in re.findall(r"\d+", version_of(current, "docker") or "")[:2])
    return not version or version >= DOCKER_CDI_SINCE  # an unknown one ignores the unknown feature


def daemon_json(current: Current, desired: Desired) -> tuple:
    """(names of the settings that change, the new text of daemon.json or None). What is there already stays."""
    settings = json.loads(current.config) if (current.config or "").strip() else {}
    if not isinstance(settings, dict):
        raise ValueError("it holds no JSON object")  # noqa: TRY004 (one kind of error for one kind of mistake)
    wanted = merged(settings, desired.daemon)
    known = wanted.get("insecure-registries", [])
    added = [name for name in desired.insecure_registries if name not in (*known, *current.insecure)]
    if added:
        wanted["insecure-registries"] = [*known, *added]
    if desired.wants_cdi and not current.cdi and knows_cdi(current):
        wanted["features"] = dict(wanted.get("features", {}), cdi=True)
    changed = tuple(name for name in wanted if name not in settings or wanted[name] != settings[name])
    return changed, json.dumps(wanted, indent=2) + "\n" if changed else None


def merged(settings: dict, added: dict) -> dict:
    """`settings` with `added` laid over: objects key by key, everything else as a whole. Pure."""
    over = {name: merged(settings[name], value) if isinstance(value, dict) and isinstance(settings.get(name), dict)
            else value for name, value in added.items()}
    return dict(settings, **over)


def registries_conf(text: str | None, insecure: tuple) -> str | None:
    """The new text of podman's drop-in; registries that an earlier run added stay. None where it has them all."""
    known = re.findall(r'^location = "([^"]+)"$', text or "", re.MULTILINE)
    added = [name for name in insecure if name not in known]
    if not added:
        return None
    entries = ['[[registry]]\nlocation = "%s"\ninsecure = true\n' % name for name in [*known, *added]]
    return "# Written by sglang-ops from container_engine_insecure_registries.\n" + "\n".join(entries)


def version_of(current: Current, engine: str) -> str | None:
    """The installed version, else the one that would be installed, as far as that is known."""
    if current.version or not current.has_apt:
        return current.version
    return current.candidates.get(PACKAGES[engine][0])


def observe(engine: str) -> Current:
    """Look at the engine and, where it is missing, at what the package manager has."""
    found = _docker() if engine == "docker" else _podman()
    if found.get("version") and found.get("has_init", True):
        return Current(**found)
    return Current(has_apt=bool(shutil.which("apt-get")), installed=_installed(PACKAGES[engine]),
                   candidates=_candidates(PACKAGES[engine]), **found)


def _docker() -> dict:
    config = read_text(DAEMON_JSON)
    found = {"config": config, "data_root": _configured_root(config)}
    if not (shutil.which("dockerd") or os.path.exists(api.DOCKER_SOCKET)) or not shutil.which("docker"):
        return found
    try:
        info = api.get(api.DOCKER_SOCKET, "/info") or {}
    except api.ApiError:
        if _torn("docker.io", "docker-ce"):
            return found  # an installation that was cut off is to be completed
        told = re.search(r"version ([\d.]+)", run("docker", "--version").stdout)
        return dict(found, version=told.group(1) if told else "0")
    indexes = (info.get("RegistryConfig") or {}).get("IndexConfigs") or {}
    enabled = bool(glob.glob(ENABLED))
    return dict(found, version=info["ServerVersion"].partition("+")[0], active=True, enabled=enabled,
                containers=info.get("ContainersRunning", 0), cdi=bool(info.get("CDISpecDirs")),
                insecure=tuple(name for name, index in indexes.items() if not index.get("Secure", True)),
                data_root=info.get("DockerRootDir") or found["data_root"])


def _configured_root(config: str | None) -> str:
    try:
        return json.loads(config or "{}").get("data-root", "/var/lib/docker")
    except (ValueError, AttributeError):
        return "/var/lib/docker"


def _podman() -> dict:
    storage = read_text("/etc/containers/storage.conf") or ""
    root = re.search(r'^\s*graphroot\s*=\s*"([^"]+)"', storage, re.MULTILINE)
    data_root = root.group(1) if root else "/var/lib/containers/storage"
    found = {"config": read_text(REGISTRIES_CONF), "data_root": data_root}
    if not shutil.which("podman"):
        return found
    told = re.search(r"version ([\d.]+)", run("podman", "--version").stdout)
    has_init = any(map(os.path.exists, ("/usr/libexec/podman/catatonit", "/usr/bin/catatonit")))
    return dict(found, version=told.group(1) if told else "0", active=True, cdi=True, has_init=has_init)


def _installed(packages: tuple) -> frozenset:
    listing = run("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", *packages).stdout
    return frozenset(line.split()[1] for line in listing.splitlines() if line.startswith("installed "))


def _torn(*packages: str) -> bool:
    """Whether dpkg knows one of the packages and has not finished with it."""
    states = run("dpkg-query", "--show", "--showformat=${db:Status-Status}\n", *packages).stdout.split()
    return bool(set(states) - {"installed", "not-installed", "config-files"})


def _candidates(packages: tuple) -> dict:
    """Upstream versions that apt would install, without epoch and packaging suffixes."""
    text = run("apt-cache", *_WRITE_NO_CACHE, "policy", *packages).stdout
    found = re.findall(r"^(\S+):\n.*\n  Candidate: (?:\d+:)?(\d[\d.]*)", text, re.MULTILINE)
    if packages[0] in dict(found):
        return {name: version.rstrip(".") for name, version in found}
    values = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', read_text("/etc/os-release") or "", re.MULTILINE))
    known = CANDIDATES.get((values.get("ID", ""), values.get("VERSION_ID", "")))
    return dict(_EVERYWHERE, **known) if known else {}


def facts(engine: str, insecure_registries, wants_cdi: bool) -> dict:
    """The engine as planning sees it. `version` is the candidate's where it is not installed yet.

    `pending` lists what must be done before it is usable, `refusal` why that cannot be done now.
    """
    current = observe(engine)
    needed = plan(current, Desired(engine, tuple(insecure_registries), wants_cdi))
    return {
        "name": engine,
        "path": shutil.which(engine) or "",
        "version": version_of(current, engine),
        "running": bool(current.version) and current.active,
        "data_root": current.data_root,
        "pending": list(needed.steps),
        "refusal": needed.refusal,
    }
