"""Which packages bring an engine, from where, on each system; what is there stays unless it was asked to go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_engine_packages as supplies
from ansible.module_utils import sglang_host_engine_setup as setup
from ansible.module_utils import sglang_host_repositories as repositories
from ansible.module_utils.sglang_host_command import Output
from ansible.module_utils.sglang_host_engine import Current
from ansible.module_utils.sglang_host_packages import PackageError, family_of

Origin, Shelf = supplies.Origin, supplies.Shelf
MIRROR = "https://mirror.example/docker"
DOCKER = Origin("docker")
RELEASES = {
    "debian12": {"ID": "debian", "VERSION_ID": "12", "VERSION_CODENAME": "bookworm"},
    "debian13": {"ID": "debian", "VERSION_ID": "13", "VERSION_CODENAME": "trixie"},
    "ubuntu2204": {"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "22.04", "VERSION_CODENAME": "jammy"},
    "ubuntu2404": {"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "24.04", "VERSION_CODENAME": "noble"},
    "rhel8": {"ID": "rhel", "ID_LIKE": "fedora", "VERSION_ID": "8.10"},
    "rhel9": {"ID": "rhel", "ID_LIKE": "fedora", "VERSION_ID": "9.4"},
    "rocky9": {"ID": "rocky", "ID_LIKE": "rhel centos fedora", "VERSION_ID": "9.5"},
    "rocky10": {"ID": "rocky", "ID_LIKE": "rhel centos fedora", "VERSION_ID": "10.0"},
}
FULL = {"debian": "5:28.5.1-1~debian.12~bookworm", "redhat": "3:28.5.1-1.el9"}


def there(version: str = "26.1.5", **changes: Any) -> Current:
    return Current(version=version, active=True, **changes)


@pytest.mark.parametrize(
    ("system", "url", "suite"),
    [
        ("debian12", "/debian", "bookworm"),
        ("debian13", "/debian", "trixie"),
        ("ubuntu2204", "/ubuntu", "jammy"),
        ("ubuntu2404", "/ubuntu", "noble"),
        ("rhel8", "/rhel/8/$basearch/stable", ""),
        ("rhel9", "/rhel/9/$basearch/stable", ""),
        ("rocky9", "/rhel/9/$basearch/stable", ""),
        ("rocky10", "/rhel/10/$basearch/stable", ""),
    ],
)
def test_dockers_repository_on_each_system(system: str, url: str, suite: str) -> None:
    shelf = Shelf(RELEASES[system], "aarch64")
    supply = supplies.supply("docker", Current(), DOCKER, shelf)
    assert supply.packages == ("docker-ce", "docker-ce-cli", "containerd.io", "ca-certificates")
    family = family_of(RELEASES[system])
    ((path, text),) = repositories.files(supply.repository, family).items()
    if suite:
        assert path == "/etc/apt/sources.list.d/docker-ce.sources"
        assert text.splitlines()[1:] == [
            "Types: deb", f"URIs: {supplies.DOCKER_URL}{url}", f"Suites: {suite}", "Components: stable",
            "Architectures: arm64", "Signed-By: /etc/apt/keyrings/docker-ce.asc",
        ]  # fmt: skip
    else:
        assert path == "/etc/yum.repos.d/docker-ce.repo"
        assert text.splitlines()[1:] == [
            "[docker-ce]", "name=docker-ce", f"baseurl={supplies.DOCKER_URL}{url}", "enabled=1", "gpgcheck=1",
            "repo_gpgcheck=0", "gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-docker-ce",
        ]  # fmt: skip
    assert supply.repository.key == f"{supplies.DOCKER_URL}/{url.split('/')[1]}/gpg"


def test_a_mirror_and_its_key() -> None:
    origin = Origin("docker", MIRROR + "/", "https://mirror.example/key")
    repository = supplies.supply("docker", Current(), origin, Shelf(RELEASES["debian12"])).repository
    assert (repository.url, repository.key) == (MIRROR + "/debian", "https://mirror.example/key")


@pytest.mark.parametrize("system", ["rhel8", "rocky9", "rocky10"])
def test_podman_comes_from_the_distribution_everywhere(system: str) -> None:
    shelf = Shelf(RELEASES[system], candidates={"podman": "4:5.2.2-9.el9_5", "crun": "1", "netavark": "1"})
    supply = supplies.supply("podman", Current(has_apt=False), Origin(), shelf)
    assert (supply.packages, supply.repository) == (("podman", "crun", "netavark"), None)


@pytest.mark.parametrize(
    ("engine", "origin", "release", "says"),
    [
        ("podman", DOCKER, RELEASES["debian12"], "Set container_engine_source: distribution."),
        ("docker", Origin(), RELEASES["rocky9"], "has no package of it. Set container_engine_source: docker, or"),
        ("docker", DOCKER, {"ID": "fedora", "VERSION_ID": "42", "PRETTY_NAME": "Fedora 42"}, "this is Fedora 42."),
        ("docker", DOCKER, {"ID": "debian", "VERSION_ID": "11"}, "debian 12/13, ubuntu 22.04/24.04, rhel 8/9/10"),
        ("docker", Origin(), {"ID": "arch", "PRETTY_NAME": "Arch"}, "Arch has neither apt nor dnf"),
        ("podman", Origin(), {}, "this system has neither apt nor dnf. Install podman"),
    ],
)
def test_what_cannot_be_had_is_refused(engine: str, origin: Any, release: dict[str, str], says: str) -> None:
    supply = supplies.supply(engine, Current(has_apt=False), origin, Shelf(release))
    assert says in supply.refusal
    assert not supply.packages


@pytest.mark.parametrize("origin", [Origin(), Origin(replace=True), Origin(restart=True)])
def test_an_engine_that_is_there_stays(origin: Any) -> None:
    for system in RELEASES.values():
        assert supplies.supply("docker", there(), origin, Shelf(system)) == supplies.Supply()


class TestThere:
    """supply() for a docker that is there."""

    def test_dockers_own_stays_at_its_version(self) -> None:
        shelf = Shelf(RELEASES["debian12"], installed={"docker-ce": FULL["debian"]}, lacking={"x": "y"})
        assert supplies.supply("docker", there("28.5.1"), DOCKER, shelf) == supplies.Supply()

    @pytest.mark.parametrize("spelled", ["28.5.1", "28.5.1-1~debian.12~bookworm", FULL["debian"]])
    def test_a_version_that_is_there_is_only_held(self, spelled: str) -> None:
        have = {"docker-ce": FULL["debian"], "docker-ce-cli": FULL["debian"], "containerd.io": "1.7.28-1"}
        origin = Origin("docker", version=spelled)
        shelf = Shelf(RELEASES["debian12"], installed=have)
        supply = supplies.supply("docker", there("28.5.1"), origin, shelf)
        assert (supply.packages, supply.hold) == ((), ("docker-ce", "docker-ce-cli"))
        held = Shelf(RELEASES["debian12"], installed=have, held=frozenset(have))
        assert supplies.supply("docker", there("28.5.1"), origin, held) == supplies.Supply()

    def test_another_version_is_installed_when_nothing_runs_or_it_may_stop(self) -> None:
        have = {"docker-ce": FULL["redhat"], "docker-ce-cli": "1:28.5.1-1.el9", "containerd.io": "1.7.28-3.1.el9"}
        shelf = Shelf(RELEASES["rocky9"], installed=have, ours=True, lacking={"x": "y"})
        origin = Origin("docker", version="29.0.0")
        moved = ("docker-ce=29.0.0", "docker-ce-cli=29.0.0")
        supply = supplies.supply("docker", there("28.5.1"), origin, shelf)
        assert (supply.packages, supply.hold, supply.files) == (moved, ("docker-ce", "docker-ce-cli"), {"x": "y"})
        busy = there("28.5.1", containers=3)
        stays = supplies.supply("docker", busy, origin, shelf)
        assert (stays.packages, stays.hold) == ((), ())
        assert "docker-ce=29.0.0 would stop the 3 containers" in stays.notes[0]
        restart = Origin("docker", version="29.0.0", restart=True)
        assert supplies.supply("docker", busy, restart, shelf).packages == moved

    def test_one_of_other_packages_is_exchanged_only_on_request(self) -> None:
        shelf = Shelf(RELEASES["debian13"], installed={"ca-certificates": "1"})
        stays = supplies.supply("docker", there(), DOCKER, shelf)
        assert (stays.packages, stays.repository) == ((), None)
        (note,) = stays.notes
        assert note.startswith("docker 26.1.5 stays: it is not of the package docker-ce. container_engine_replace: ")
        replace = Origin("docker", replace=True)
        exchanged = supplies.supply("docker", there(), replace, shelf)
        assert exchanged.packages[:3] == supplies.DOCKER_CE
        assert exchanged.repository
        assert "would stop the 2 containers" in supplies.supply("docker", there(containers=2), replace, shelf).notes[0]

    def test_a_repository_of_ours_follows_the_mirror_and_one_of_others_is_used(self) -> None:
        have = {"docker-ce": FULL["debian"]}
        shelf = Shelf(RELEASES["debian12"], installed=have, ours=True, lacking={"x": "new mirror"})
        assert supplies.supply("docker", there("28.5.1"), DOCKER, shelf).files == {"x": "new mirror"}
        others = Shelf(RELEASES["debian12"], lacking={"x": "y"}, elsewhere="/etc/apt/sources.list.d/docker.list")
        supply = supplies.supply("docker", Current(), DOCKER, others)
        assert (bool(supply.packages), supply.repository, supply.files) == (True, None, {})


def test_versions_are_resolved_or_those_on_offer_named() -> None:
    on_offer = {"docker-ce": ["5:28.5.2-1~x", "5:28.5.1-1~x"], "docker-ce-cli": ["5:28.5.1-1~x"]}.__getitem__
    wanted = ("docker-ce=28.5.1", "docker-ce-cli=28.5.1", "containerd.io")
    assert supplies.resolved(wanted, on_offer) == (
        "docker-ce=5:28.5.1-1~x", "docker-ce-cli=5:28.5.1-1~x", "containerd.io")  # fmt: skip
    with pytest.raises(PackageError, match=r"docker-ce-cli 28.5.2 is in no repository .* which has 28.5.1. Set conta"):
        supplies.resolved(("docker-ce=28.5.2", "docker-ce-cli=28.5.2"), on_offer)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("docker.list", "deb [arch=amd64 signed-by=/k] https://download.docker.com/linux/debian bookworm stable", True),
        ("docker.list", "# deb https://download.docker.com/linux/debian bookworm stable", False),
        ("docker.sources", "URIs: https://download.docker.com/linux/debian/", True),
        ("docker-ce.sources", "URIs: https://download.docker.com/linux/debian", False),
        ("docker.list", "deb https://download.docker.com/linux/ubuntu noble stable", False),
    ],
)
def test_a_repository_that_is_known_already_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, found: bool
) -> None:
    (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(supplies, "_SOURCES", (str(tmp_path / "*"),))
    own = str(tmp_path / "docker-ce.sources")
    place = supplies.named_elsewhere("https://download.docker.com/linux/debian", own)
    assert place == (str(tmp_path / name) if found else "")


@pytest.mark.parametrize(
    ("family", "text", "found"),
    [
        ("debian", (" docker-ce | 5:28.5.2-1~x | https://d.example bookworm/stable amd64 Packages\n"
                   " docker-ce | 5:28.5.1-1~x | https://d.example bookworm/stable amd64 Packages\n"),
         ["5:28.5.2-1~x", "5:28.5.1-1~x"]),
        ("redhat", ("Available Packages\ndocker-ce.x86_64        3:28.5.1-1.el9        docker-ce\n"
                   "docker-ce.x86_64        3:28.5.2-1.el9        docker-ce\n"),
         ["3:28.5.2-1.el9", "3:28.5.1-1.el9"]),
        ("debian", "", []),
    ],
)  # fmt: skip
def test_versions_on_offer_come_newest_first(
    monkeypatch: pytest.MonkeyPatch, family: str, text: str, found: list[str]
) -> None:
    monkeypatch.setattr(supplies, "run", lambda *_, **__: Output(0, text))
    assert supplies.versions("docker-ce", family) == found


@pytest.mark.parametrize("before", [None, "the source that worked\n"])
def test_a_repository_that_does_not_work_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    source = tmp_path / "docker-ce.sources"
    if before:
        source.write_text(before)

    class Manager:
        def add(self, _repository: Any) -> None:
            source.write_text("one that does not\n")
            raise PackageError("it cannot be reached")

    monkeypatch.setattr(repositories, "source_path", lambda *_: str(source))
    with pytest.raises(PackageError):
        setup.add(Manager(), None, "debian")
    assert (source.read_text() if source.exists() else None) == before
