"""Installing Debian packages, unattended and with progress. Python 3.8, standard library."""

from __future__ import annotations

import glob
import os
import re
import time

from ansible.module_utils.sglang_host_command import Output, run
from ansible.module_utils.sglang_host_package_manager import PackageError, SignatureError, patiently

LISTS = "/var/lib/apt/lists"
_LISTS_MAX_AGE = 24 * 3600
_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_SUSPEND": "1",  # it would restart services that are none of our business
    "APT_LISTCHANGES_FRONTEND": "none",
}
# apt-get could wait for dpkg's lock by itself, but not for those of lists and archives, and without a word.
_APT_GET = (
    "apt-get", "-y", "-o", "DPkg::Lock::Timeout=0", "-o", "APT::Status-Fd=1",
    "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold",
)
_LOCKED = re.compile(r"Could not get lock|Unable to lock|is another process using it|lock was locked by", re.IGNORECASE)
_HOLDER = re.compile(r"held by process (\d+)(?: \(([^)]+)\))?|another process with pid (\d+)")
_MISSING = re.compile(r"Unable to locate package (\S+)|Package '?([^\s']+)'? has no installation candidate|"
                      r"Version '([^']+)' for '([^']+)' was not found")
_STALE = re.compile(r"404 +Not Found|Unable to fetch some|%s" % _MISSING.pattern, re.IGNORECASE)
_BROKEN = re.compile(r"dpkg was interrupted|dpkg returned an error code|^E: Unmet dependencies", re.MULTILINE)
_SIGNATURE = re.compile(r"GPG error: (\S+)|repository '(\S+)[^']*' is not signed|"
                        r"OpenPGP signature verification failed: (\S+)", re.IGNORECASE)
_UNREACHABLE = re.compile(r"^[EW]: (?:Failed to fetch (\S+?)(?:/InRelease)? +(.+)|"
                          r"The repository '(\S+)[^']*' ((?:does not|no longer) ha.+))", re.MULTILINE)
_UNMET = re.compile(r"^ (\S+ : .+)", re.MULTILINE)
_FAILED = re.compile(r"dpkg: error processing (?:package|archive) (\S+).*\n(?: (.+))?")
_NO_NEWS = "Some index files failed to download"  # said after what it was


class Apt:
    """apt-get under a Progress, waiting for other users of the package database."""

    def __init__(self, progress) -> None:
        self._progress = progress
        self._behind = ""  # why lists are not up to date: an update ends well even where a source failed

    def refresh(self, force: bool = False) -> None:
        """Fetch the package lists where they are missing or older than a day."""
        if force or not lists_are_fresh():
            self._progress.report("updating package lists")
            done = self._get("update")
            failed = _NO_NEWS in done.stdout
            self._behind = " Its lists are not up to date: %s" % explained(done) if failed else ""

    def refresh_one(self, source: str) -> None:
        """Fetch the lists of the file `source` only. Raises PackageError whatever is wrong with that repository."""
        self._progress.report("updating package lists")
        self._get("update", "-o", "Dir::Etc::SourceList=" + source, "-o", "Dir::Etc::SourceParts=-",
                  "-o", "APT::Get::List-Cleanup=0", "-o", "APT::Update::Error-Mode=any")

    def install(self, packages) -> None:
        """Install packages (``name`` or ``name=version``) without recommended ones. Lists that have aged, and what an
        earlier installation that was cut off has left half done, are put right on the way, once.
        """
        exact = [name for name in packages if "=" in name]
        self.release(self.held() & {name.partition("=")[0] for name in packages})  # who names it decides about it
        command = ("install", "--no-install-recommends", *(["--allow-downgrades"] if exact else []), *packages)
        try:
            self._get(*command)
        except PackageError as error:
            if _BROKEN.search(error.output):
                self._repair(error.output)
            elif _STALE.search(error.output):
                self.refresh(force=True)
            else:
                raise
            self._again(*command)

    def candidates(self, names) -> dict:
        """The version that would be installed of each package that can be."""
        return policy(run("apt-cache", "policy", *names).stdout) if names else {}

    def versions(self, name) -> list:
        """Every version of a package that some repository has, the newest first."""
        rows = [line.split("|") for line in run("apt-cache", "madison", name).stdout.splitlines()]
        return [row[1].strip() for row in rows if len(row) == 3]

    def installed(self, names=None) -> dict:
        """The versions of those packages, or of all, that are whole and configured."""
        if names is not None and not names:
            return {}
        shown = run("dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status} ${Version}\n",
                    *(names or ())).stdout
        rows = [line.split() for line in shown.splitlines()]
        return {row[0]: row[2] for row in rows if len(row) == 3 and row[1] == "installed"}

    def hold(self, names) -> None:
        done = run("apt-mark", "hold", *names)
        if not done.ok:
            raise PackageError("apt-mark cannot hold %s: %s." % (", ".join(names), done.error))

    def release(self, names) -> None:
        """Hold packages no longer."""
        if names:
            run("apt-mark", "unhold", *sorted(names))

    def held(self) -> frozenset:
        return frozenset(run("apt-mark", "showhold").stdout.split())

    def _again(self, *command) -> None:
        try:
            self._get(*command)
        except PackageError as error:
            raise PackageError("%s%s" % (error, self._behind), error.output) from None

    def _repair(self, told: str) -> None:
        self._progress.report("completing an installation that was cut off")
        self._run(["dpkg", "--configure", "-a"])
        listing = run("dpkg-query", "--show", "--showformat=${db:Status-Eflag} ${Package}\n").stdout.splitlines()
        torn = [line.split()[1] for line in listing if line.startswith("reinstreq ")]
        if torn:
            self._get("install", "--reinstall", "--no-install-recommends", *torn)
        if "fix-broken" in told:
            self._get("install", "--fix-broken", "--no-install-recommends")

    def _get(self, *arguments: str) -> Output:
        words = [word for word in arguments[1:] if not word.startswith("-")]
        subject = words[0].partition("=")[0] if arguments[0] == "install" and words else ""
        done = self._run([*_APT_GET, *arguments], lambda line: self._show(line, subject))
        if not done.ok:
            raise explained(done)
        return done

    def _run(self, argv, on_line=None) -> Output:
        return patiently(lambda: self._progress.run_child(argv, on_line, env=_ENVIRONMENT, gentle=True),
                         holder, self._progress)

    def _show(self, line: str, subject: str) -> None:
        detail = status(line, subject)
        if detail:
            self._progress.report(detail)


def lists_are_fresh() -> bool:
    if not glob.glob(os.path.join(LISTS, "*_Packages*")):
        return False
    return time.time() - os.stat(LISTS).st_mtime < _LISTS_MAX_AGE


def policy(text: str) -> dict:
    """Candidates by package, from `apt-cache policy`. Pure."""
    found = re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (\S+)", text, re.MULTILINE)
    return {name: version for name, version in found if version != "(none)"}


def status(line: str, subject: str) -> str:
    """A line of apt's status stream as a few words about `subject`, "" for every other line. Pure."""
    kind, _, rest = line.partition(":")
    words = {"dlstatus": "downloading", "pmstatus": "installing"}
    fields = rest.split(":")
    if kind not in words or len(fields) < 3 or not subject:
        return ""
    return "%s %s, %.0f %%" % (words[kind], subject, float(fields[1]))


def holder(done: Output):
    """Who holds the lock that a program failed on; None where it failed on none, or not at all. Pure."""
    if done.ok or not _LOCKED.search(done.stdout):
        return None
    found = _HOLDER.search(done.stdout)
    number, name = (found.group(1) or found.group(3), found.group(2)) if found else (None, None)
    return "%s (process %s)" % (name or "another package manager", number) if number else "another package manager"


def explained(done: Output) -> PackageError:
    """What apt-get and dpkg complained about, as one sentence with a remedy. Pure."""
    text, words = done.stdout, reason(done)
    signature, missing, unreachable = _SIGNATURE.search(text), _MISSING.search(text), _UNREACHABLE.search(text)
    failed, unmet = _FAILED.search(text), _UNMET.findall(text)
    if signature:
        return SignatureError(unsigned(_first(signature), text), text)
    if missing:
        first, second, version, name = missing.groups()
        what = "Version %s of package %s" % (version, name) if version else "Package %s" % (first or second)
        words = ("%s is in no repository of this host. Check its name and version, and the repositories in "
                 "/etc/apt/sources.list.d." % what)
    elif unreachable:
        words = "The package repository %s cannot be used: %s. Check network, proxy and URL, or name a mirror." % (
            _first(unreachable), (unreachable.group(2) or unreachable.group(4)).rstrip(" .:"))
    elif failed:
        words = "dpkg could not install %s: %s. `sudo dpkg --configure -a` on the host shows all that it says." % (
            failed.group(1), (failed.group(2) or words).rstrip(" ."))
    elif unmet:
        words = "Packages do not fit together: %s." % "; ".join(unmet)
    return PackageError(words, text)


def unsigned(url: str, text: str) -> str:
    """What is wrong with a repository's signature. Pure."""
    url = url.rstrip(":")
    key = re.search(r"NO_PUBKEY (\w+)|(?:EXPKEYSIG|KEYEXPIRED|REVKEYSIG) (\w+)|Missing key (\w+)", text)
    named = " %s" % _first(key) if key else ""
    if re.search(r"EXPKEYSIG|KEYEXPIRED|expired", text, re.IGNORECASE):
        return ("The key%s that signs the package repository %s has expired. Have the repository signed anew, or "
                "give the URL of its current key." % (named, url))
    if re.search(r"NO_PUBKEY|Missing key", text):
        return "The package repository %s is signed by the key%s, which is not the one that was given for it." % (
            url, named)
    return "The package repository %s has no valid signature. Give a repository that is signed." % url


def _first(match) -> str:
    return next(group for group in match.groups() if group)


def reason(done: Output) -> str:
    """The errors of apt-get, or else its warnings, in one line."""
    for mark in ("E: ", "W: "):
        told = [line[3:].strip() for line in done.stdout.splitlines() if line.startswith(mark) and _NO_NEWS not in line]
        if told:
            return " ".join(dict.fromkeys(told))
    return done.error
