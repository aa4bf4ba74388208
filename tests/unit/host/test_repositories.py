"""Repositories of vendors: the files that describe them, and the key, which has to be one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible.module_utils import sglang_host_repositories as repositories
from ansible.module_utils.sglang_host_repositories import Repository, RepositoryError

CUDA = Repository("nvidia-driver", "https://mirror.example/debian12/x86_64", "https://mirror.example/key.pub")


def test_apt_gets_a_deb822_source_signed_by_its_own_key() -> None:
    assert repositories.files(CUDA, "debian") == {
        "/etc/apt/sources.list.d/nvidia-driver.sources": (
            "# The key is from https://mirror.example/key.pub\n"
            "Types: deb\nURIs: https://mirror.example/debian12/x86_64\nSuites: /\n"
            "Signed-By: /etc/apt/keyrings/nvidia-driver.asc\n"
        )
    }
    docker = Repository("docker", "https://m.example", "https://m.example/gpg", ("bookworm",), ("stable",), ("amd64",))
    (text,) = repositories.files(docker, "debian").values()
    assert "Suites: bookworm\nComponents: stable\nArchitectures: amd64\nSigned-By:" in text


@pytest.mark.parametrize(("signed", "checks"), [("packages", (1, 0)), ("metadata", (0, 1))])
def test_dnf_gets_a_repo_that_checks_what_the_key_signs(signed: str, checks: tuple[int, int]) -> None:
    repository = Repository("toolkit", "https://m.example/rpm/$basearch", "https://m.example/gpgkey", signed=signed)
    (text,) = repositories.files(repository, "redhat").values()
    assert text.endswith(
        f"[toolkit]\nname=toolkit\nbaseurl=https://m.example/rpm/$basearch\nenabled=1\ngpgcheck={checks[0]}\n"
        f"repo_gpgcheck={checks[1]}\ngpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-toolkit\n"
    )


@pytest.fixture
def key(tmp_path: Path) -> bytes:
    """A real key, binary."""
    home = ["gpg", "--homedir", str(tmp_path), "--batch", "--passphrase", ""]
    subprocess.run([*home, "--quick-gen-key", "a@example.invalid", "ed25519", "sign"], check=True, capture_output=True)
    exported = subprocess.run([*home, "--export"], check=True, capture_output=True).stdout
    subprocess.run(["gpgconf", "--homedir", str(tmp_path), "--kill", "all"], check=True)  # gpg's agent would stay
    return exported


def test_a_binary_key_is_armoured_as_gpg_does_it(key: bytes, tmp_path: Path) -> None:
    text = repositories.armoured(key, CUDA)
    shown = subprocess.run(
        ["gpg", "--homedir", str(tmp_path), "--batch", "--dearmor"],
        input=text.encode(), check=True, capture_output=True,
    )  # fmt: skip
    assert shown.stdout == key
    assert repositories.armoured(b"Comment\r\n" + text.replace("\n", "\r\n").encode(), CUDA) == text


@pytest.mark.parametrize("data", [b"<html>Sign in to the proxy</html>", b"", b"\x89PNG"])
def test_what_is_no_key_is_refused(data: bytes) -> None:
    with pytest.raises(RepositoryError, match="is no OpenPGP key"):
        repositories.armoured(data, CUDA)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's files are below a directory of the test."""
    for name in ("source_path", "key_path"):
        real = getattr(repositories, name)
        monkeypatch.setattr(repositories, name, lambda *given, real=real: str(tmp_path) + real(*given))
    return tmp_path


@pytest.mark.parametrize("family", ["debian", "redhat"])
def test_what_is_missing_is_written_once(family: str, key: bytes, here: Path) -> None:
    (here / "key.gpg").write_bytes(key)
    repository = Repository("vendor", "https://m.example", str(here / "key.gpg"))
    paths = list(repositories.missing(repository, family))
    assert sorted(paths) == sorted(repositories.write(repository, family))
    assert all(Path(path).exists() for path in paths)
    assert repositories.missing(repository, family) == {}
    Path(paths[0]).write_text("changed by somebody\n")
    assert paths[0] in repositories.missing(repository, family)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/key", "/nowhere/key", "nonsense://x"])
def test_a_key_out_of_reach_leaves_no_source_behind(url: str, here: Path) -> None:
    repository = Repository("vendor", "https://m.example", url)
    with pytest.raises(RepositoryError, match=r"key of package repository vendor cannot be fetched from \S+: .+ Check"):
        repositories.write(repository, "debian")
    assert not (here / "etc").exists()
