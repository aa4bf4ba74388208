"""Files against the hashes that are their names."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from ansible.module_utils import sglang_host_checksums as checksums

CONTENT = b"weights" * 300_000


def names(content: bytes) -> dict[str, str]:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324
    return {"sha256": hashlib.sha256(content).hexdigest(), "git": git}


@pytest.mark.parametrize("kind", ["sha256", "git"])
@pytest.mark.parametrize("content", [CONTENT, b""], ids=["some", "empty"])
def test_a_file_is_right_or_told_what_it_is(tmp_path: Path, kind: str, content: bytes) -> None:
    name = names(content)[kind]
    good, bad = tmp_path / name, tmp_path / "bad"
    good.write_bytes(content)
    bad.write_bytes(content + b"x")
    told: list[str] = []
    found = checksums.wrong({str(good): name, str(bad): name}, told.append)
    assert list(found) == [str(bad)]
    assert names(content + b"x")[kind] in found[str(bad)]


def test_git_itself_agrees(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    told = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    assert checksums.wrong({str(path): told}, lambda _: None) == {}


def test_a_name_that_is_no_hash_is_left_out(tmp_path: Path) -> None:
    assert checksums.kind('"W/etag-of-a-mirror"') == checksums.kind("g" * 64) == ""
    (tmp_path / "etag").write_bytes(b"x")
    assert checksums.wrong({str(tmp_path / "etag"): "etag"}, lambda _: None) == {}


def test_a_file_that_cannot_be_read_is_wrong_too(tmp_path: Path) -> None:
    assert checksums.wrong({str(tmp_path / "none"): "a" * 64}, lambda _: None) == {
        str(tmp_path / "none"): "cannot be read: No such file or directory"
    }


def test_it_stops_when_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        stream.truncate(1 << 30)  # takes a second or two to read, and no room

    def leave(_detail: str) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        checksums.wrong({str(path): "a" * 64}, leave)
