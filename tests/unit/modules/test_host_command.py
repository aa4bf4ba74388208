"""Programs that are run on hosts, and numbers as people read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible.module_utils import sglang_host_command as command


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (4_837, "4 kB"), (412_000_000, "412 MB"), (14_900_000_000, "14.9 GB")],
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert command.size(count) == text


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (412_345_678, 700_000_000, "412 / 700 MB"),
        (3_100_000_000, 14_900_000_000, "3.1 / 14.9 GB"),
        (200_000, 700_000_000, "0 / 700 MB"),
        (7_000_000, 0, "7 MB"),
    ],
)
def test_progress_has_one_unit(done: int, total: int, text: str) -> None:
    assert command.share(done, total) == text


def test_a_program_that_is_missing_or_slow_is_an_outcome() -> None:
    assert command.run("sglang-ops-no-such-program").rc == command.NOT_FOUND
    slow = command.run("sleep", "5", timeout=0.1)
    assert slow.rc == command.TIMED_OUT
    assert "sleep did not answer" in slow.error


def test_the_last_words_count() -> None:
    done = command.run("sh", "-c", "echo fine; echo; echo 'E: broken' >&2; exit 3")
    assert (done.rc, done.ok, done.error) == (3, False, "E: broken")
    assert command.run("false").error == "exit code 1"


def test_messages_are_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert "LC_ALL=C.UTF-8" in command.run("env").stdout.splitlines()


def test_free_space_of_a_directory_to_come(tmp_path: Path) -> None:
    usage = os.statvfs(tmp_path)
    free = command.free_bytes(str(tmp_path / "not" / "there" / "yet"))
    assert free == pytest.approx(usage.f_bavail * usage.f_frsize, rel=0.05)
