"""Files to be carried: received piece by piece, verified, packed, and read again."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sglang_ops import bundle
from sglang_ops.bundle import Bundle, BundleError, DamagedError, Short, receive
from sglang_ops.errors import UsageError

CONTENT = os.urandom(5_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def source(content: bytes = CONTENT, asked: list[int] | None = None) -> Any:
    def pieces(offset: int) -> Iterator[bytes]:
        if asked is not None:
            asked.append(offset)
        for start in range(offset, len(content), 400_000):
            yield content[start : start + 400_000]

    return pieces


def unseen(_: int) -> None:
    """Nobody looks at the progress."""


class TestReceive:
    """One file, however often its source breaks off."""

    def test_whole_at_once(self, tmp_path: Path) -> None:
        seen: list[int] = []
        assert receive(tmp_path / "a" / "file", len(CONTENT), SHA256, source(), seen.append)
        assert (tmp_path / "a" / "file").read_bytes() == CONTENT
        assert seen[-1] == len(CONTENT)
        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["file"]

    def test_what_is_there_is_not_asked_for(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(CONTENT)
        asked: list[int] = []
        assert not receive(tmp_path / "file", len(CONTENT), SHA256, source(asked=asked), unseen)
        assert asked == []

    @given(some.integers(0, len(CONTENT) - 1))
    def test_an_interrupted_one_goes_on_where_it_was(self, came: int) -> None:
        place = Path(os.environ.get("TMPDIR", "/tmp")) / f"sglang-ops-receive-{os.getpid()}"
        try:
            with pytest.raises(Short, match=rf"broke off after {came} of 5000000 bytes"):
                receive(place / "file", len(CONTENT), SHA256, source(CONTENT[:came]), unseen)
            assert not (place / "file").exists()
            asked: list[int] = []
            assert receive(place / "file", len(CONTENT), SHA256, source(asked=asked), unseen)
            assert asked == [came]
            assert (place / "file").read_bytes() == CONTENT
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @pytest.mark.parametrize("wrong", [b"x" + CONTENT[1:], CONTENT + b"more"])
    def test_other_content_is_thrown_away(self, tmp_path: Path, wrong: bytes) -> None:
        with pytest.raises(DamagedError, match="other content"):
            receive(tmp_path / "file", len(CONTENT), SHA256, source(wrong), unseen)
        assert list(tmp_path.iterdir()) == []

    def test_a_part_that_is_too_long_is_begun_anew(self, tmp_path: Path) -> None:
        (tmp_path / "file.part").write_bytes(CONTENT + b"rest of something else")
        asked: list[int] = []
        assert receive(tmp_path / "file", len(CONTENT), SHA256, source(asked=asked), unseen)
        assert asked == [0]
        assert (tmp_path / "file").read_bytes() == CONTENT


def filled(directory: Path) -> None:
    bundle.write(directory / "list.json", b"{}")
    bundle.write(directory / "deep" / "er" / "file", CONTENT)
    (directory / "deep" / "link").symlink_to("er/file")


class TestOpen:
    """The same names and bytes, from a directory and from a tar."""

    def test_a_directory_and_its_tar(self, tmp_path: Path) -> None:
        target = tmp_path / "all.tar"
        directory = bundle.staging(target)
        filled(directory)
        of_directory = Bundle.open(directory)
        assert of_directory.read("deep/er/file") == CONTENT
        told: list[str] = []
        bundle.finish(target, directory, told.append)
        of_tar = Bundle.open(target)
        assert told == ["writing all.tar"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["all.tar"]
        assert set(of_tar.pieces) == {"list.json", "deep/er/file"}
        assert of_tar.read("deep/er/file") == CONTENT
        assert b"".join(of_tar.pieces["deep/er/file"].pieces(1_234_567)) == CONTENT[1_234_567:]
        with of_tar.pieces["deep/er/file"].open(10) as stream:
            assert stream.read(5) == CONTENT[10:15]

    def test_a_directory_is_finished_as_it_is(self, tmp_path: Path) -> None:
        directory = bundle.staging(tmp_path / "all")
        assert directory == tmp_path / "all"
        bundle.finish(directory, directory, lambda _: None)
        assert directory.is_dir()

    def test_names_that_begin_with_a_dot(self, tmp_path: Path) -> None:
        filled(tmp_path / "in")
        with tarfile.open(tmp_path / "by-hand.tar", "w") as archive:
            archive.add(tmp_path / "in", ".")
        assert Bundle.open(tmp_path / "by-hand.tar").size("list.json") == 2

    @pytest.mark.parametrize("content", [b"no tar at all", b"\x1f\x8b\x08 compressed"])
    def test_what_is_no_bundle(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(BundleError, match="no tar archive"):
            Bundle.open(tmp_path / "file")
        with pytest.raises(BundleError, match="does not exist"):
            Bundle.open(tmp_path / "nothing")

    def test_a_tar_that_was_cut_off(self, tmp_path: Path) -> None:
        filled(tmp_path / "in")
        with tarfile.open(tmp_path / "whole.tar", "w") as archive:
            archive.add(tmp_path / "in", ".")
        whole = (tmp_path / "whole.tar").read_bytes()
        (tmp_path / "half.tar").write_bytes(whole[:2_000_000])
        with pytest.raises(BundleError, match="only a part of one"):
            Bundle.open(tmp_path / "half.tar")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs 1000000000\.0 GB more"):
        bundle.check_space(tmp_path, 10**18)


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made: Not a directory"):
        bundle.staging(tmp_path / "file" / "below")
