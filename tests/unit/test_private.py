"""Private directories: removed at the end, and a day after a process that could not."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from sglang_ops import private

TOMORROW = private.ABANDONED_SECONDS + 60


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(private.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_directory_goes_with_its_process(place: Path) -> None:
    with private.directory() as path:
        assert path.parent == place
        assert path.stat().st_mode & 0o777 == 0o700
        private.sweep(place, time.time() + TOMORROW)
        assert path.is_dir(), "whoever lives keeps it, however long"
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_goes_a_day_later_and_nothing_else(place: Path) -> None:
    left, others = place / "sglang-ops-0ab_9xyz", ("sglang-ops-0", "sglang-ops-lock-0ab_9xyz", "other-0ab_9xyz")
    for path in (left, *(place / name for name in others)):
        path.mkdir()
    (left / "artifacts").mkdir()
    (place / "sglang-ops-abcdefgh").symlink_to(place / "other-0ab_9xyz")
    private.sweep(place)
    assert left.is_dir(), "something that it had started may still use it"
    private.sweep(place, time.time() + TOMORROW)
    assert not left.exists()
    assert {path.name for path in place.iterdir()} == {*others, "sglang-ops-abcdefgh"}


def test_a_locked_one_stays(place: Path) -> None:
    held = place / "sglang-ops-0ab_9xyz"
    held.mkdir()
    lock = os.open(held, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    private.sweep(place, time.time() + TOMORROW)
    os.close(lock)
    assert held.is_dir()
