"""How Debian trees are asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sglang_ops.errors import OpsError
from sglang_ops.lab import debian


def test_default_mirrors_are_mmdebstraps_own() -> None:
    command = debian.bootstrap_command("bookworm", ["python3", "sudo"], Path("/t"))
    assert command[0] == "mmdebstrap"
    assert command[-2:] == ["bookworm", "/t"]
    assert "--include=python3,sudo" in command
    assert not any("://" in word for word in command)


def test_a_named_mirror_comes_last() -> None:
    assert debian.bootstrap_command("trixie", [], Path("/t"), mirror="http://mirror.example/d")[-1].endswith("/d")


def test_the_machines_proxy_travels_and_other_settings_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    dump = 'Acquire::http::Proxy "http://proxy.example:3128";\nAPT::Install-Recommends "1";\n'
    monkeypatch.setenv("https_proxy", "http://other.example:3129")
    monkeypatch.setenv("http_proxy", "http://ignored.example:1")
    done = subprocess.CompletedProcess([], 0, stdout=dump)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert debian.apt_settings() == [
        'Acquire::http::Proxy "http://proxy.example:3128"',
        'Acquire::https::Proxy "http://other.example:3129"',
    ]


def test_a_failed_bootstrap_leaves_no_tree_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tree = tmp_path / "tree"

    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if command[0] == "mmdebstrap":
            tree.mkdir()
        return subprocess.CompletedProcess(command, 1 if command[0] == "mmdebstrap" else 0, stdout="E: no such suite\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(OpsError, match="E: no such suite") as caught:
        debian.bootstrap("woody", [], tree, log=lambda _: None)
    assert debian.MIRROR_VARIABLE in (caught.value.fix or "")
    assert not tree.exists()
