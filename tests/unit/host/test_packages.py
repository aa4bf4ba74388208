"""Packages over apt and dnf: what is read from their output, and the one sentence that comes of a failure."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils import sglang_host_apt as apt
from ansible.module_utils import sglang_host_dnf as dnf
from ansible.module_utils import sglang_host_package_manager as manager
from ansible.module_utils import sglang_host_packages as packages
from ansible.module_utils.sglang_host_command import Output
from ansible.module_utils.sglang_host_repositories import Repository

VENDOR = "http://198.18.1.1:43291"
# Each as apt 2.6 (Debian 12), apt 3.0 (Debian 13) or dnf 4 printed it.
SAID = {
    "expired": (
        (f"W: GPG error: {VENDOR}  InRelease: The following signatures were invalid: EXPKEYSIG 1D7129D7F9AD5F53 V\n"
        f"E: The repository '{VENDOR}  InRelease' is not signed."),
        f"The key 1D7129D7F9AD5F53 that signs the package repository {VENDOR} has expired.",
    ),
    "another key": (
        (f"W: GPG error: {VENDOR}  InRelease: The following signatures couldn't be verified because the public key "
        f"is not available: NO_PUBKEY 345354CD158FA42A\nE: The repository '{VENDOR}  InRelease' is not signed."),
        f"The package repository {VENDOR} is signed by the key 345354CD158FA42A, which is not the one that was given",
    ),
    "another key, sqv": (
        ("W: An error occurred during the signature verification. The repository is not updated and the previous index "
        f"files will be used. OpenPGP signature verification failed: {VENDOR}  InRelease: Sub-process /usr/bin/sqv "
        "returned an error code (1), error message is: Missing key 529B93744716, which is needed to verify signature.\n"
        f"E: Failed to fetch {VENDOR}/InRelease  Sub-process /usr/bin/sqv returned an error code (1)"),
        f"The package repository {VENDOR} is signed by the key 529B93744716, which is not the one that was given",
    ),
    "unreachable": (
        (f"E: Failed to fetch {VENDOR}/InRelease  Could not connect to 198.18.1.1:43291 (198.18.1.1). - connect (111: "
        "Connection refused)\nE: Some index files failed to download. They have been ignored, or old ones used."),
        (f"The package repository {VENDOR} cannot be used: Could not connect to 198.18.1.1:43291 (198.18.1.1). - "
        "connect (111: Connection refused). Check network, proxy and URL, or name a mirror."),
    ),
    "no such package": (
        "E: Unable to locate package nvidia-opn",
        "Package nvidia-opn is in no repository of this host.",
    ),
    "no such version": (
        "E: Version '9' for 'nvidia-open' was not found",
        "Version 9 of package nvidia-open is in no repository of this host.",
    ),
    "script": (
        ("dpkg: error processing package nvidia-dkms (--configure):\n installed nvidia-dkms package post-installation "
        "script subprocess returned error exit status 3\nErrors were encountered while processing:\n nvidia-dkms\n"
        "E: Sub-process /usr/bin/dpkg returned an error code (1)"),
        ("dpkg could not install nvidia-dkms: installed nvidia-dkms package post-installation script subprocess "
        "returned error exit status 3."),
    ),
    "dependency": (
        ("The following packages have unmet dependencies:\n needy : Depends: absent (= 3) but it is not installable\n"
        "E: Unable to correct problems, you have held broken packages."),
        "Packages do not fit together: needy : Depends: absent (= 3) but it is not installable.",
    ),
}  # fmt: skip
SAID_BY_DNF = {
    "unreachable": (
        (
            "Errors during downloading metadata for 'cuda':\n  - Curl error (7): Couldn't connect to server for "
            "http://127.0.0.1:8098/repodata/repomd.xml [Failed to connect to 127.0.0.1 port 8098 after 0 ms]\n"
            "Error: Failed to download metadata for repo 'cuda': Cannot download repomd.xml: All mirrors were tried"
        ),
        (
            "The package repository cuda cannot be used: Couldn't connect to server for "
            "http://127.0.0.1:8098/repodata/repomd.xml. Check network"
        ),
    ),
    "no such package": (
        "No match for argument: nvidia-opn\nError: Unable to find a match: nvidia-opn",
        "nvidia-opn is in no repository of this host.",
    ),
    "dependency": (
        (
            "Error: \n Problem: conflicting requests\n  - nothing provides absent needed by needy-3:1-1.el9.noarch\n"
            "(try to add '--skip-broken' to skip uninstallable packages)"
        ),
        "Problem: conflicting requests - nothing provides absent needed by needy-3:1-1.el9.noarch",
    ),
    "unsigned": (
        "Error: Failed to download metadata for repo 't': repomd.xml GPG signature verification error: Bad GPG",
        "A package repository is not signed by the key that was given for it",
    ),
}


class Manager:
    """A Progress on a host where commands end as written down."""

    def __init__(self, *outcomes: Output) -> None:
        self.outcomes = list(outcomes)
        self.ran: list[str] = []
        self.told: list[str] = []

    def report(self, detail: str) -> None:
        self.told.append(detail)

    def run_child(self, argv: list[str], *_: Any, **options: Any) -> Output:
        assert options["gentle"], "a package manager must not be killed in the middle"
        self.ran.append(" ".join(argv))
        return self.outcomes.pop(0) if self.outcomes else Output(0)


@pytest.mark.parametrize("name", SAID)
def test_apts_errors_become_one_sentence(name: str) -> None:
    said, sentence = SAID[name]
    error = apt.explained(Output(100, said))
    assert str(error).startswith(sentence)
    assert isinstance(error, manager.SignatureError) == name.startswith(("expired", "another"))


@pytest.mark.parametrize("name", SAID_BY_DNF)
def test_dnfs_errors_become_one_sentence(name: str) -> None:
    said, sentence = SAID_BY_DNF[name]
    assert str(dnf.explained(Output(1, said))).startswith(sentence)


@pytest.mark.parametrize(
    ("said", "who"),
    [
        (("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 412 (unattended-upgr)\n"
         "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?"),
         "unattended-upgr (process 412)"),
        ("dpkg: error: dpkg frontend lock was locked by another process with pid 8",
         "another package manager (process 8)"),
        ("E: Unable to lock directory /var/lib/apt/lists/", "another package manager"),
        ("E: No space left on device", None),
    ],
)  # fmt: skip
def test_who_holds_apts_lock(said: str, who: str | None) -> None:
    assert apt.holder(Output(100, said)) == who
    assert apt.holder(Output(0, said)) is None


def test_dnf_waits_for_the_one_that_holds_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager.time, "sleep", lambda _: None)
    busy = Output(200, "metadata already locked by 77\n  The application with PID 77 is: packagekitd\n  State : Sleep")
    progress = Manager(busy, busy, Output(0))
    monkeypatch.setattr(dnf, "run", lambda *_: Output(0))
    packages.Packages("redhat", progress).install(["nvidia-open"])
    assert "waiting for packagekitd (process 77)" in progress.told
    assert len(progress.ran) == 3
    assert progress.ran[0].endswith("install nvidia-open")


def test_candidates_are_those_that_can_be_installed() -> None:
    text = ("nvidia-open:\n  Installed: (none)\n  Candidate: 580.95.05-1\n  Version table:\n     580.95.05-1 600\n"
            "nvidia-driver:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n")  # fmt: skip
    assert apt.policy(text) == {"nvidia-open": "580.95.05-1"}


def test_rpm_versions_and_locks() -> None:
    text = "nvidia-open 3:580.95.05-1.el9\nkernel-devel 0:5.14.0-570.el9\npackage dkms is not installed\n"
    assert dnf.versions(text) == {"nvidia-open": "3:580.95.05-1.el9", "kernel-devel": "5.14.0-570.el9"}
    listed = "# Added\nnvidia-open-3:580.95.05-1.el9.*\nkmod-nvidia-open-dkms-3:580.95.05-1.el9.*\n\n!x-0:1-1.*"
    assert dnf.locked(listed) == {"nvidia-open", "kmod-nvidia-open-dkms"}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  Installing       : nvidia-open-3:580.95.05-1.el9.noarch    4/9 ", "installing nvidia-open, 4 of 9"),
        ("(2/9): kmod-nvidia-open-dkms-580.95.05-1.el9.x86_64.rpm  41 MB/s | 12 MB  00:00",
         "downloading kmod-nvidia-open-dkms, 2 of 9"),
        ("Complete!", ""),
    ],
)  # fmt: skip
def test_dnfs_progress_in_few_words(line: str, shown: str) -> None:
    assert dnf.status(line) == shown


def test_exact_versions_are_forced_and_holds_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(apt, "run", lambda *argv: ran.append(argv) or Output(0, "nvidia-open\nlinux-image\n"))
    progress = Manager()
    packages.Packages("debian", progress).install(["nvidia-open=580.1-1", "dkms"])
    assert ("apt-mark", "unhold", "nvidia-open") in ran
    assert progress.ran[0].endswith("install --no-install-recommends --allow-downgrades nvidia-open=580.1-1 dkms")


@pytest.mark.parametrize(
    ("release", "family"),
    [
        ({"ID": "debian"}, "debian"), ({"ID": "ubuntu", "ID_LIKE": "debian"}, "debian"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "redhat"), ({"ID": "rhel", "ID_LIKE": "fedora"}, "redhat"),
        ({"ID": "opensuse-leap", "ID_LIKE": "suse opensuse"}, ""), ({}, ""),
    ],
)  # fmt: skip
def test_families(release: dict[str, str], family: str) -> None:
    assert packages.family_of(release) == family


def test_a_pin_goes_before_everything() -> None:
    path, text = packages.pin_file("sglang-ops-nvidia", {"*nvidia*": "580.95.05-*", "dkms": "3.*"})
    assert path == "/etc/apt/preferences.d/sglang-ops-nvidia"
    assert text == ("Package: *nvidia*\nPin: version 580.95.05-*\nPin-Priority: 1001\n\n"
                    "Package: dkms\nPin: version 3.*\nPin-Priority: 1001\n")  # fmt: skip


def test_a_key_that_no_longer_fits_is_fetched_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    repository = Repository("vendor", VENDOR, VENDOR + "/key")
    monkeypatch.setattr(packages.repositories, "missing", lambda *_: {})
    monkeypatch.setattr(packages.repositories, "write", lambda given, *_: written.append(given.name))
    packages.Packages("debian", Manager(Output(100, SAID["expired"][0]))).add(repository)
    assert written == ["vendor"]
    with pytest.raises(packages.PackageError, match="has expired"):
        packages.Packages("debian", Manager(*[Output(100, SAID["expired"][0])] * 2)).add(repository)
    assert written == ["vendor"] * 2
