"""Installing Debian packages, unattended and with progress. Python 3.8, standard library."""

from __future__ import annotations

import glob
import os
import re
import time

from ansible.module_utils.sglang_host_command import Output, run

LISTS = "/var/lib/apt/lists"
_LISTS_MAX_AGE = 24 * 3600
_LOCK_SECONDS = 300
_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_SUSPEND": "1",  # it would restart services that are none of our business
    "APT_LISTCHANGES_FRONTEND": "none",
}
_APT_GET = (
    "apt-get", "-y", "-o", "DPkg::Lock::Timeout=%d" % _LOCK_SECONDS, "-o", "APT::Status-Fd=1",
    "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold",
)
_LOCKED = re.compile(r"Could not get lock|Unable to lock|is another process using it", re.IGNORECASE)
_STALE = re.compile(r"404 +Not Found|Unable to (locate package|fetch some)|no installation candidate", re.IGNORECASE)
_BROKEN = re.compile(r"dpkg was interrupted|dpkg returned an error code|Unmet dependencies", re.IGNORECASE)


class AptError(Exception):
    """The package manager failed; the text is its own."""


class Apt:
    """apt-get under a Progress, waiting for other users of the package database."""

    def __init__(self, progress) -> None:
        self._progress = progress

    def refresh(self, force: bool = False) -> None:
        """Fetch the package lists where they are missing or older than a day."""
        if force or not lists_are_fresh():
            self._progress.report("updating package lists")
            self._get("update")

    def install(self, packages) -> None:
        """Install packages without recommended ones. Lists that have aged, and what an earlier installation that
        was cut off has left half done, are put right on the way, once.
        """
        command = ("install", "--no-install-recommends", *packages)
        try:
            self._get(*command)
        except AptError as error:
            if _BROKEN.search(str(error)):
                self._repair()
            elif _STALE.search(str(error)):
                self.refresh(force=True)
            else:
                raise
            self._get(*command)

    def _repair(self) -> None:
        self._progress.report("completing an installation that was cut off")
        self._progress.run_child(["dpkg", "--configure", "-a"], env=_ENVIRONMENT, gentle=True)
        listing = run("dpkg-query", "--show", "--showformat=${db:Status-Eflag} ${Package}\n").stdout.splitlines()
        torn = [line.split()[1] for line in listing if line.startswith("reinstreq ")]
        if torn:
            self._get("install", "--reinstall", "--no-install-recommends", *torn)

    def _get(self, *arguments: str) -> None:
        subject = next((word for word in arguments[1:] if not word.startswith("-")), "")
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            done = self._progress.run_child([*_APT_GET, *arguments], lambda line: self._show(line, subject),
                                            env=_ENVIRONMENT, gentle=True)
            if done.ok:
                return
            if not _LOCKED.search(done.stdout) or time.monotonic() > deadline:
                raise AptError(reason(done))
            self._progress.report("waiting for another package manager")
            time.sleep(3)  # apt-get itself waits for dpkg's lock only, not for those of lists and archives

    def _show(self, line: str, subject: str) -> None:
        detail = status(line, subject)
        if detail:
            self._progress.report(detail)


def lists_are_fresh() -> bool:
    if not glob.glob(os.path.join(LISTS, "*_Packages*")):
        return False
    return time.time() - os.stat(LISTS).st_mtime < _LISTS_MAX_AGE


def status(line: str, subject: str) -> str:
    """A line of apt's status stream as a few words about `subject`, "" for every other line. Pure."""
    kind, _, rest = line.partition(":")
    words = {"dlstatus": "downloading", "pmstatus": "installing"}
    fields = rest.split(":")
    if kind not in words or len(fields) < 3 or not subject:
        return ""
    return "%s %s, %.0f %%" % (words[kind], subject, float(fields[1]))


def reason(done: Output) -> str:
    """What apt-get and dpkg complained about, in one line."""
    errors = [line[3:].strip() for line in done.stdout.splitlines() if line.startswith("E: ")]
    return " ".join(errors) or done.error
