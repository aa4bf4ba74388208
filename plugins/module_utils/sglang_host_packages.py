"""Packages, whatever the distribution's package manager is. Python 3.8, standard library."""

from __future__ import annotations

import re

from ansible.module_utils import sglang_host_repositories as repositories
from ansible.module_utils.sglang_host_apt import Apt
from ansible.module_utils.sglang_host_dnf import Dnf
from ansible.module_utils.sglang_host_package_manager import PackageError, SignatureError
from ansible.module_utils.sglang_host_state import read_text

__all__ = ["PackageError", "Packages", "family_of", "os_release", "pin_file"]

_FAMILIES = {"debian": "debian", "ubuntu": "debian", "rhel": "redhat", "fedora": "redhat", "centos": "redhat"}


def os_release(path="/etc/os-release"):
    """What the distribution says of itself: ID, VERSION_ID, VERSION_CODENAME, ID_LIKE, PRETTY_NAME, …"""
    return dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', read_text(path) or "", re.MULTILINE))


def family_of(release):
    """`debian` (apt), `redhat` (dnf), or "" for a distribution that is neither. Pure."""
    names = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    return next((_FAMILIES[name] for name in names if name in _FAMILIES), "")


def pin_file(stem, pins):
    """(path, text) of apt preferences that keep packages, by name or pattern, at versions or patterns. Pure.

    1001 goes before whatever else is on offer, and takes an older version if need be.
    """
    blocks = ["Package: %s\nPin: version %s\nPin-Priority: 1001\n" % pin for pin in pins.items()]
    return "/etc/apt/preferences.d/" + stem, "\n".join(blocks)


class Packages:
    """The package manager of a family. Every call can raise PackageError; locks of others are waited for."""

    def __init__(self, family, progress):
        self._family = family
        self._progress = progress
        self._manager = Apt(progress) if family == "debian" else Dnf(progress)
        # The same names on both sides; "version" is whole: 1:2.3-4 or 2.3-4.
        self.candidates = self._manager.candidates  # (names) -> {name: version that would be installed}
        self.versions = self._manager.versions  # (name) -> all versions on offer, the newest first
        self.installed = self._manager.installed  # (names, or all) -> {name: version}, whole ones only
        self.refresh = self._manager.refresh  # (force=False): where lists are missing or old
        self.install = self._manager.install  # (["name" or "name=version", …]); repairs what was cut off
        self.hold = self._manager.hold  # (names): no upgrade changes them
        self.release = self._manager.release  # (names): upgrades change them again
        self.held = self._manager.held  # () -> names that are held

    def add(self, repository):
        """Write a repository's files and fetch its lists, that one's only. A key that no longer fits is fetched again,
        once: vendors prolong theirs.
        """
        fetched = bool(repositories.missing(repository, self._family))
        if fetched:
            repositories.write(repository, self._family, self._progress)
        source = repositories.source_path(repository, self._family)
        try:
            self._manager.refresh_one(source)
        except SignatureError:
            if fetched:
                raise
            repositories.write(repository, self._family, self._progress)
            self._manager.refresh_one(source)

    def stream(self, name):
        """Have a dnf module follow a stream, ``nvidia-driver:580-open``."""
        self._manager.module(name)
