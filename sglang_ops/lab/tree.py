"""The golden tree: the Debian root file system that all hosts show, each under a layer of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from sglang_ops.errors import OpsError
from sglang_ops.lab import debian
from sglang_ops.lab.locks import locked
from sglang_ops.lab.settings import USERS

_EVERY_HOST = (
    "systemd systemd-sysv dbus openssh-server ca-certificates sudo python3 python3-apt iproute2 procps util-linux"
)
_PACKAGES: Mapping[str, str] = {
    "debian12": f"{_EVERY_HOST} runc",  # why: assets/tree/debian12/etc/containers
    "debian13": _EVERY_HOST,
}

# Engines and what goes with them. They are downloaded, not installed: hosts start without an engine, and a
# hundred installations ask the mirror once.
_ENGINE_PACKAGES: Mapping[str, str] = {
    "debian12": "docker.io podman crun netavark aardvark-dns catatonit iptables nftables",
    "debian13": "docker.io docker-cli podman crun netavark aardvark-dns catatonit iptables nftables",
}

# Nothing in a disposable host needs housekeeping, and a console nobody sees needs no prompt.
# Modules are the machine's business; the unit would fail.
_MASKED = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service "
    "fstrim.timer man-db.timer systemd-tmpfiles-clean.timer "
    "console-getty.service getty@.service systemd-modules-load.service"
)
_ENABLED = "systemd-networkd.service ssh.service"

Log = Callable[[str], None]


def is_cached(system: str, cache: Path) -> bool:
    """Whether a tree of `system` ("debian12", "debian13") is ready."""
    return _tree(system, cache).is_dir()


def ensure(system: str, cache: Path, *, log: Log) -> Path:
    """The golden tree of `system`, built where it is missing (half a minute, 500 MB). Never half built."""
    tree = _tree(system, cache)
    tree.parent.mkdir(parents=True, exist_ok=True)
    with locked(tree.parent):
        sweep(cache)
        if not tree.is_dir():
            started = time.monotonic()
            partial = tree.with_name(f".partial-{tree.name}")
            suite = debian.SUITES[system]
            debian.bootstrap(suite, _PACKAGES[system].split(), partial, log=log, keep_lists=True)
            _customise(partial, system)
            partial.rename(tree)
            log(f"host tree {system} built in {time.monotonic() - started:.0f} s")
    return tree


def sweep(cache: Path) -> None:
    """Remove what an interrupted build has left; for the holder of the lock on CACHE/trees."""
    for partial in (cache / "trees").glob(".partial-*"):
        shutil.rmtree(partial)


def _tree(system: str, cache: Path) -> Path:
    return cache / "trees" / f"{system}-{_key(system)}"


def _key(system: str) -> str:
    """A hash of everything that decides what is in the tree."""
    recipe: list[object] = [
        _PACKAGES,
        _ENGINE_PACKAGES[system],
        _MASKED,
        _ENABLED,
        USERS,
        debian.apt_settings(),
    ]
    recipe += [os.environ.get(debian.MIRROR_VARIABLE), debian.authorities_digest()]
    recipe += [(name, path.read_text()) for name, path in _files(system)]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]


def _files(system: str) -> list[tuple[str, Path]]:
    """The files of assets/tree that `system` gets, by their path in the tree."""
    with resources.as_file(resources.files("sglang_ops.lab") / "assets" / "tree") as root:
        return [
            (str(path.relative_to(root / part)), path)
            for part in ("every", system)
            for path in sorted((root / part).rglob("*"))
            if path.is_file()
        ]


def _customise(tree: Path, system: str) -> None:
    for name, source in _files(system):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)
    for user, uid in USERS.items():
        _in(tree, "useradd", "--create-home", "--shell", "/bin/bash", "--uid", str(uid), user)
        (tree / "home" / user / ".ssh").mkdir(mode=0o700)
        os.chown(tree / "home" / user / ".ssh", uid, uid)
    _in(tree, "systemctl", "--quiet", "mask", *_MASKED.split())
    _in(tree, "systemctl", "--quiet", "enable", *_ENABLED.split())
    _in(
        tree, "apt-get", "--quiet", "--yes", "--no-install-recommends", "--download-only",
        "install", *_ENGINE_PACKAGES[system].split(),
    )  # fmt: skip
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # each host gets keys of its own


def _in(tree: Path, *command: str) -> None:
    """Run a command in the tree, with the machine's resolver."""
    done = subprocess.run(
        ["chroot", str(tree), *command],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise OpsError(f"'{' '.join(command)}' failed in the host tree: {done.stderr.strip()}")
