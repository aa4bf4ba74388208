"""Installing RPM packages with dnf, unattended and with progress. Python 3.8, standard library."""

from __future__ import annotations

import re

from ansible.module_utils.sglang_host_command import Output, run
from ansible.module_utils.sglang_host_package_manager import PackageError, SignatureError, patiently
from ansible.module_utils.sglang_host_state import read_text

LOCKS = "/etc/dnf/plugins/versionlock.list"
_VERSIONLOCK = "python3-dnf-plugin-versionlock"
_SECONDS = 300
# Its own wait has no end, and every error must be told apart.
_DNF = ("dnf", "-y", "--setopt=exit_on_lock=True", "--setopt=install_weak_deps=False")
_LOCKED = re.compile(r"already locked by (\d+)|Failed to obtain the transaction lock|\.rpm\.lock")
_HOLDER = re.compile(r"The application with PID \d+ is: (\S+)")
_SIGNATURE = re.compile(r"repomd\.xml GPG signature verification error|GPG check FAILED|Public key .* is not installed|"
                        r"key.* has expired|Signing key not found|Bad GPG signature", re.IGNORECASE)
_UNREACHABLE = re.compile(r"Failed to download metadata for repo '([^']+)'")
_CURL = re.compile(r"Curl error \(\d+\): (.+?)(?: \[|$)", re.MULTILINE)
_MISSING = re.compile(r"(?:Unable to find a match|No match for argument|No package (?:matches|match)): (.+)")


class Dnf:
    """dnf under a Progress, waiting for other users of the package database. The same calls as Apt's."""

    def __init__(self, progress) -> None:
        self._progress = progress

    def refresh(self, force: bool = False) -> None:
        """Fetch metadata anew; otherwise dnf itself looks at their age."""
        if force:
            self._progress.report("updating package lists")
            self._dnf("makecache")

    def refresh_one(self, source: str) -> None:
        """Fetch the metadata of the repository that the file `source` describes. Raises PackageError."""
        self._progress.report("updating package lists")
        name = re.sub(r"^.*/|\.repo$", "", source)
        self._dnf("makecache", "--repo", name, "--setopt=%s.skip_if_unavailable=False" % name)

    def install(self, packages) -> None:
        """Install packages, ``name`` or ``name=version``; an exact version may be an older one."""
        named = [name.partition("=")[0] for name in packages]
        self.release(self.held() & set(named))  # who names it decides about it
        self._dnf("install", *[name.replace("=", "-", 1) for name in packages])
        older = {name: version for name, _, version in (item.partition("=") for item in packages) if version}
        have = self.installed(older)
        wrong = ["%s-%s" % item for item in older.items() if not _is(have.get(item[0], ""), item[1])]
        if wrong:  # install leaves a newer version alone
            self._dnf("downgrade", *wrong)

    def module(self, stream: str) -> None:
        """Have a module follow a stream, ``name:stream``, and no other."""
        self._dnf("module", "reset", stream.partition(":")[0])
        self._dnf("module", "enable", stream)

    def candidates(self, names) -> dict:
        """The version that would be installed of each package that can be."""
        return versions(self._repoquery("--latest-limit=1", *names)) if names else {}

    def versions(self, name) -> list:
        """Every version of a package that some repository has, the newest first."""
        rows = self._repoquery("--show-duplicates", name).splitlines()
        return sorted((version for row in rows for version in versions(row).values()), reverse=True,
                      key=lambda version: [int(part) for part in re.findall(r"\d+", version)])

    def installed(self, names=None) -> dict:
        """The versions of those packages, or of all, that are installed."""
        if names is not None and not names:
            return {}
        shown = run("rpm", "-q", "--queryformat", "%{NAME} %|EPOCH?{%{EPOCH}}:{0}|:%{VERSION}-%{RELEASE}\n",
                    *(names or ["-a"]))
        return versions(shown.stdout)

    def hold(self, names) -> None:
        """Lock packages at the version they have; the plugin that does so comes first."""
        if read_text(LOCKS) is None:
            self._dnf("install", _VERSIONLOCK)
        self._dnf("versionlock", "add", *names)

    def release(self, names) -> None:
        """Lock packages no longer."""
        if names:
            self._dnf("versionlock", "delete", *sorted(names))

    def held(self) -> frozenset:
        return locked(read_text(LOCKS) or "")

    def _repoquery(self, *arguments) -> str:
        return run("dnf", "-q", "repoquery", "--available", "--queryformat",
                   "%{name} %{epoch}:%{version}-%{release}\n", *arguments, timeout=_SECONDS).stdout

    def _dnf(self, *arguments: str) -> Output:
        shown = self._progress_of(arguments)
        done = patiently(lambda: self._progress.run_child([*_DNF, *arguments], shown, gentle=True),
                         holder, self._progress)
        if not done.ok:
            raise explained(done)
        return done

    def _progress_of(self, arguments):
        if arguments[0] != "install":
            return None
        return lambda line: self._report(status(line))

    def _report(self, detail: str) -> None:
        if detail:
            self._progress.report(detail)


def versions(text: str) -> dict:
    """``name version`` lines by name; epoch 0 is not said. Pure."""
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: re.sub(r"^(?:0|\(none\)):", "", row[1]) for row in rows if len(row) == 2 and ":" in row[1]}


def _is(have: str, asked: str) -> bool:
    """Whether a whole version is the one asked for, which may leave out epoch and release. Pure."""
    return asked in (have, have.partition(":")[2]) or re.sub(r"^\d+:", "", have).startswith(asked + "-")


def locked(text: str) -> frozenset:
    """Names in the list of versionlock. Pure."""
    entries = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("#", "!"))]
    return frozenset(re.sub(r"-(?:\d+:)?[^-:]+-[^-]+$", "", entry) for entry in entries)


def status(line: str) -> str:
    """A line of dnf as a few words about what it does, "" for every other line. Pure."""
    found = re.match(r"\s*(Installing|Upgrading|Running scriptlet)\s*: (\S+?)-(?:\d+:)?\d\S* +(\d+)/(\d+)", line)
    if found:
        return "installing %s, %s of %s" % found.group(2, 3, 4)
    found = re.match(r"\((\d+)/(\d+)\): (\S+?)-\d", line)
    return "downloading %s, %s of %s" % found.group(3, 1, 2) if found else ""


def holder(done: Output):
    """Who holds the lock that dnf failed on; None where it failed on none, or not at all. Pure."""
    found = None if done.ok else _LOCKED.search(done.stdout)
    if not found:
        return None
    name = _HOLDER.search(done.stdout)
    who = name.group(1) if name else "another package manager"
    return "%s (process %s)" % (who, found.group(1)) if found.group(1) else who


def explained(done: Output) -> PackageError:
    """What dnf complained about, as one sentence with a remedy. Pure."""
    text = done.stdout
    told = re.sub(r"\(try to add .*\)", "", text.rpartition("Error:")[2] or done.error)
    words = " ".join(told.split()).rstrip(".")
    missing, unreachable, curl = _MISSING.findall(text), _UNREACHABLE.search(text), _CURL.search(text)
    if _SIGNATURE.search(text):
        what = "The key that signs a package repository has expired" if "expired" in text else \
            "A package repository is not signed by the key that was given for it"
        return SignatureError("%s: %s. Give the URL of its current key." % (what, words), text)
    if unreachable:
        words = "The package repository %s cannot be used: %s. Check network, proxy and URL, or name a mirror." % (
            unreachable.group(1), curl.group(1) if curl else words)
    elif missing:
        words = ("%s is in no repository of this host. Check name and version, and the repositories in "
                 "/etc/yum.repos.d." % ", ".join(dict.fromkeys(missing)))
    return PackageError(words, text)
