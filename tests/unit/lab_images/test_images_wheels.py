"""Wheels are fetched for the image's Python and unpacked without what the image does not need."""

from __future__ import annotations

import stat
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sglang_ops.errors import OpsError
from sglang_ops.lab.images import wheels


def make_wheel(directory: Path, name: str, files: dict[str, int]) -> None:
    """A wheel whose files have these modes."""
    directory.mkdir(exist_ok=True)
    with zipfile.ZipFile(directory / f"{name}-1-py3-none-any.whl", "w") as archive:
        for path, mode in files.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (stat.S_IFREG | mode) << 16
            archive.writestr(entry, path)


def tree(site: Path) -> set[str]:
    return {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}


def test_unpack_merges_libraries_and_leaves_the_rest(tmp_path: Path) -> None:
    files = (
        "one/__init__.py", "one-1.data/purelib/one/more.py", "one-1.data/platlib/fast.so", "one-1.data/scripts/run",
        "one-1.data/data/share/man/one.1", "one-1.dist-info/METADATA",
    )  # fmt: skip
    make_wheel(tmp_path / "wheels", "one", dict.fromkeys(files, 0o644))
    make_wheel(tmp_path / "wheels", "two", {"two/tool": 0o755, "two/data": 0o600})
    wheels.unpack(tmp_path / "wheels", tmp_path / "site")
    assert tree(tmp_path / "site") == {
        "one/__init__.py", "one/more.py", "fast.so", "one-1.dist-info/METADATA", "two/tool", "two/data",
    }  # fmt: skip
    modes = [stat.S_IMODE((tmp_path / "site/two" / name).stat().st_mode) for name in ("tool", "data")]
    assert modes == [0o755, 0o644]


def test_unpack_leaves_out_what_matches(tmp_path: Path) -> None:
    files = ("a/x.py", "a/x.pyi", "a/tests/t.py", "b/lib/c/deep.so", "tests.py")
    make_wheel(tmp_path / "wheels", "one", dict.fromkeys(files, 0o644))
    wheels.unpack(tmp_path / "wheels", tmp_path / "site", without=("*.pyi", "*/tests/*", "b/lib/*"))
    assert tree(tmp_path / "site") == {"a/x.py", "tests.py"}


def test_a_wheel_cannot_write_elsewhere(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "evil", dict.fromkeys(("../outside", "a/../../outside", "/outside"), 0o644))
    wheels.unpack(tmp_path / "wheels", tmp_path / "site")
    assert not tree(tmp_path / "site")
    assert not (tmp_path / "outside").exists()


class Commands:
    """Stands for `subprocess.run`; `failing` says which commands fail."""

    def __init__(self, failing: Sequence[str] = ()) -> None:
        self.run: list[list[str]] = []
        self.failing = failing

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.run.append(command)
        if "--version" not in command and any(word in command for word in self.failing):
            return subprocess.CompletedProcess(command, 1, "", "a\nERROR: no such thing\n")
        if "--torch-backend" in command:
            package = Path(command[command.index("--target") + 1]) / "torch"
            package.mkdir(parents=True)
            (package / "__init__.py").write_text("")
        return subprocess.CompletedProcess(command, 0, "", "")

    def downloads(self) -> list[list[str]]:
        return [command for command in self.run if "download" in command]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(wheels.subprocess, "run", commands)
    return commands


def test_fetch_asks_pip_for_the_image_not_for_this_machine(commands: Commands, tmp_path: Path) -> None:
    wheels.fetch(["a==1", "b==2"], tmp_path / "w")
    (download,) = commands.downloads()
    assert download[-2:] == ["a==1", "b==2"]
    assert "--no-deps" in download
    assert download[download.index("--python-version") + 1] == "3.11"
    assert any(argument.startswith("--platform=manylinux_2_36_") for argument in download)
    assert not any(argument.startswith("--platform=manylinux_2_37_") for argument in download)


def test_torch_is_asked_for_by_itself(commands: Commands, tmp_path: Path) -> None:
    wheels.fetch(["a==1", "torch==2.13.0+cpu"], tmp_path / "w")
    assert [download[-1] for download in commands.downloads()] == ["a==1", "torch==2.13.0+cpu"]


def test_where_pip_does_not_find_torch_uv_does(commands: Commands, tmp_path: Path) -> None:
    commands.failing = ("torch==2.13.0+cpu",)
    wheels.fetch(["torch==2.13.0+cpu"], tmp_path / "w")
    uv = next(command for command in commands.run if "--torch-backend" in command)
    assert uv[-1] == "torch==2.13.0"
    wheels.unpack(tmp_path / "w", tmp_path / "site")
    assert tree(tmp_path / "site") == {"torch/__init__.py"}
    assert [path.suffix for path in (tmp_path / "w").iterdir()] == [".whl"]


def test_pips_words_are_the_error(commands: Commands, tmp_path: Path) -> None:
    commands.failing = ("a==1",)
    with pytest.raises(OpsError, match=r"pip could not download 1 packages: a . ERROR: no such thing"):
        wheels.fetch(["a==1"], tmp_path / "w")


def test_without_any_pip_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "No module named pip")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OpsError) as refused:
        wheels.fetch(["a==1"], tmp_path / "w")
    assert refused.value.fix == "apt-get install python3-pip"
