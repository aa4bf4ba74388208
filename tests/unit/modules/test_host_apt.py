"""Installing packages: what apt says, and what is done about it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_apt as apt
from ansible.module_utils.sglang_host_command import Output

OK = Output(0)
STALE = Output(100, "E: Failed to fetch docker.io_1.deb  404  Not Found\nE: Unable to fetch some archives")
LOCKED = Output(100, "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)")
CUT_OFF = Output(100, "E: dpkg was interrupted, you must manually run 'dpkg --configure -a'")
TORN = Output(100, "dpkg: error processing containerd\nE: Sub-process /usr/bin/dpkg returned an error code (1)")


class Scripted:
    """A Progress whose programs end as written down."""

    def __init__(self, *outcomes: Output) -> None:
        self.outcomes = list(outcomes)
        self.ran: list[str] = []
        self.told: list[str] = []

    def report(self, detail: str) -> None:
        self.told.append(detail)

    def run_child(self, argv: list[str], *_: Any, **options: Any) -> Output:
        assert options["gentle"], "a package manager must not be killed in the middle"
        assert options["env"]["DEBIAN_FRONTEND"] == "noninteractive"
        self.ran.append(" ".join(word for word in argv if word[0] != "-" and "::" not in word and "=" not in word))
        return self.outcomes.pop(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt.time, "sleep", lambda _: None)


def test_progress_in_few_words() -> None:
    assert apt.status("dlstatus:3:41.7:Retrieving file 3 of 9", "podman") == "downloading podman, 42 %"
    assert apt.status("pmstatus:libc6:66.6667:Preparing libc6 (amd64)", "podman") == "installing podman, 67 %"
    assert apt.status("Setting up podman (4.3.1) ...", "podman") == ""
    assert apt.status("dlstatus:1:0:Retrieving", "") == ""


def test_the_reason_is_what_apt_calls_an_error() -> None:
    assert apt.reason(LOCKED).startswith("Could not get lock /var/lib/apt/lists/lock")
    assert apt.reason(Output(100, "dpkg died")) == "dpkg died"


@pytest.mark.parametrize(
    ("outcomes", "ran"),
    [
        ((OK,), ["apt-get install podman crun"]),
        ((STALE, OK, OK), ["apt-get install podman crun", "apt-get update", "apt-get install podman crun"]),
        ((LOCKED, LOCKED, OK), ["apt-get install podman crun"] * 3),
        ((CUT_OFF, OK, OK), ["apt-get install podman crun", "dpkg", "apt-get install podman crun"]),
    ],
)
def test_what_can_be_put_right_is_put_right(
    outcomes: tuple[Output, ...], ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "run", lambda *_: Output(0, "ok podman\n"))
    scripted = Scripted(*outcomes)
    apt.Apt(scripted).install(["podman", "crun"])
    assert scripted.ran == ran


def test_a_package_torn_in_the_middle_is_unpacked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "run", lambda *_: Output(0, "ok runc\nreinstreq containerd\n"))
    scripted = Scripted(TORN, TORN, OK, OK)
    apt.Apt(scripted).install(["docker.io"])
    assert scripted.ran == [
        "apt-get install docker.io", "dpkg", "apt-get install containerd", "apt-get install docker.io",
    ]  # fmt: skip


@pytest.mark.parametrize("outcomes", [(Output(100, "E: No space left on device"),), (STALE, OK, STALE)])
def test_what_cannot_is_told_in_apts_words(outcomes: tuple[Output, ...]) -> None:
    with pytest.raises(apt.PackageError, match=r"No space left|404"):
        apt.Apt(Scripted(*outcomes)).install(["docker.io"])


def test_waiting_for_a_lock_names_who_holds_it_and_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 200))
    monkeypatch.setattr(apt.time, "monotonic", lambda: next(clock))
    scripted = Scripted(*[LOCKED] * 9)
    with pytest.raises(apt.PackageError, match=r"apt-get \(process 7\) has kept the package database locked for 300 s"):
        apt.Apt(scripted).install(["docker.io"])
    assert "waiting for apt-get (process 7)" in scripted.told


@pytest.mark.parametrize(
    ("prepare", "updates"),
    [
        (lambda lists: None, 1),
        (lambda lists: (lists / "mirror_main_binary-amd64_Packages.lz4").touch(), 0),
        (lambda lists: ((lists / "mirror_Packages").touch(), os.utime(lists, (time.time() - 90_000,) * 2)), 1),
    ],
    ids=["missing", "fresh", "old"],
)
def test_lists_are_fetched_when_missing_or_old(
    prepare: Callable[[Path], None], updates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "LISTS", str(tmp_path))
    prepare(tmp_path)
    scripted = Scripted(OK)
    apt.Apt(scripted).refresh()
    assert scripted.ran == ["apt-get update"] * updates
