"""Machines that cannot carry a lab are refused in one sentence, before anything is touched."""

from __future__ import annotations

import os
import platform
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from sglang_ops.errors import ExitCode, PreflightError
from sglang_ops.lab import requirements
from sglang_ops.lab.settings import Shape

GIB = 1 << 30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def good_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with everything; each test takes one thing away."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(requirements, "missing_packages", list)
    monkeypatch.setattr(requirements, "_available_memory", lambda: 64 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(200 * GIB, 0, 200 * GIB))


def refusal(tmp_path: Path, *, cold: bool = True, **shape: object) -> str:
    before = list(tmp_path.iterdir())
    with pytest.raises(PreflightError) as caught:
        requirements.check(Shape(**shape), tmp_path / "state", tmp_path / "cache", cold=cold)  # type: ignore[arg-type]
    assert caught.value.exit_code is ExitCode.REFUSED
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == before
    return caught.value.message


def test_a_good_machine_is_taken(tmp_path: Path) -> None:
    requirements.check(Shape(hosts=8), tmp_path / "state", tmp_path / "cache", cold=True)


def test_not_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert refusal(tmp_path) == "A lab needs Linux; this is Darwin."


def test_not_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "only root" in refusal(tmp_path)


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requirements, "_available_memory", lambda: 2 * GIB)
    assert "2 hosts with the real server need 3.6 GiB of memory, and 2.0 GiB are available" in refusal(tmp_path)
    requirements.check(Shape(server="simulator"), tmp_path / "state", tmp_path / "cache", cold=True)


def test_too_little_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(200 * GIB, 0, 8 * GIB))
    assert "12.0 GiB of disk, and 8.0 GiB are free" in refusal(tmp_path)
    requirements.check(Shape(), tmp_path / "state", tmp_path / "cache", cold=False)


def test_missing_packages_without_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requirements, "missing_packages", lambda: ["mmdebstrap"])
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert "mmdebstrap" in refusal(tmp_path)
