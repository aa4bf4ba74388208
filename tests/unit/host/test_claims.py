"""One writer for each model: processes that race, die, and stand still."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_claims as claims

NAME = "models--lab--tiny"


def directory(hub: Path) -> Path:
    return hub / ".locks" / ".sglang-ops" / NAME


def plant(hub: Path, **owner: Any) -> Path:
    """A claim as another process leaves it."""
    directory(hub).mkdir(parents=True)
    mark = directory(hub) / "feedfacefeedface"
    mark.write_text(json.dumps({"host": "far", "boot": "b", "pid": 1, "started": "1", "beats": 1} | owner))
    return mark


def work(hub: str, go: Event, log: str) -> None:
    """Hold the claim a few times, noting when."""
    go.wait(10)
    for _ in range(10):
        with claims.holding(hub, NAME, lambda _host: None):
            for word in ("in", "out"):
                with open(log, "a") as out:  # noqa: PTH123
                    out.write(f"{os.getpid()} {word}\n")
                time.sleep(0.002)


def test_processes_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_LOOK_SECONDS", 0.001)
    fork = multiprocessing.get_context("fork")
    go, log = fork.Event(), tmp_path / "log"
    workers = [fork.Process(target=work, args=(str(tmp_path), go, str(log))) for _ in range(4)]
    for worker in workers:
        worker.start()
    go.set()
    for worker in workers:
        worker.join(60)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 80
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert (entered[1], left[1], entered[0]) == ("in", "out", left[0]), "somebody came in between"
    assert not directory(tmp_path).exists()
    assert os.listdir(directory(tmp_path).parent) == []  # noqa: PTH208


def test_within_a_block_of_its_own_a_process_has_it(tmp_path: Path) -> None:
    with claims.holding(str(tmp_path), NAME) as outer, claims.holding(str(tmp_path), NAME) as inner:
        assert inner is outer
    assert claims.holders(str(tmp_path)) == {}


def test_who_does_not_wait_is_told_who_has_it(tmp_path: Path) -> None:
    plant(tmp_path)
    with pytest.raises(claims.Busy, match="far is at work on it"), claims.holding(str(tmp_path), NAME):
        pytest.fail("two owners")
    assert claims.holders(str(tmp_path)) == {NAME: "far"}


def test_an_owner_of_this_host_that_died_is_followed_at_once(tmp_path: Path) -> None:
    me = claims._self()
    plant(tmp_path, **me | {"pid": 2**22 + 1})
    assert claims.holders(str(tmp_path)) == {}
    with claims.holding(str(tmp_path), NAME):
        assert list(claims.holders(str(tmp_path))) == [NAME]


def test_a_claim_that_was_forgotten_long_ago_is_nobodys(tmp_path: Path) -> None:
    mark = plant(tmp_path)
    os.utime(mark, (time.time() - 2 * claims._FORGOTTEN_SECONDS,) * 2)
    assert claims.holders(str(tmp_path)) == {}
    with claims.holding(str(tmp_path), NAME):
        assert not mark.exists()


@pytest.mark.parametrize(
    ("owner", "gone"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),
        ({"started": "0"}, True),  # a later process with its number
        ({"boot": "before"}, True),
        ({"host": "far", "boot": "before"}, False),  # nothing is known of it
    ],
)
def test_what_can_be_known_of_an_owner(owner: dict[str, Any], gone: bool) -> None:
    me = claims._self()
    assert claims.gone(me | owner, me) is gone


def test_an_owner_that_stands_still_is_followed_one_that_beats_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(claims, "_LOOK_SECONDS", 0.05)
    mark = plant(tmp_path)
    until = time.monotonic() + 1.2
    waited: list[str] = []

    def beat() -> None:
        number = 1
        while time.monotonic() < until:
            number += 1
            mark.write_text(json.dumps({"host": "far", "beats": number}))
            time.sleep(0.1)

    thread = threading.Thread(target=beat)
    thread.start()
    with claims.holding(str(tmp_path), NAME, waited.append):
        assert time.monotonic() - until > 0.3
        assert not mark.exists()
    thread.join()
    assert "far" in waited


def test_who_was_followed_is_told_and_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)
    with claims.holding(str(tmp_path), NAME) as claim:
        claim.check()
        seen = claims.owner(str(tmp_path), NAME)
        other = claims.Claim(str(tmp_path), NAME)
        assert other.take_over(seen[0])
        assert not claims.Claim(str(tmp_path), NAME).take_over(seen[0]), "the owner that was seen is no longer it"
        time.sleep(0.3)
        with pytest.raises(claims.Lost):
            claim.check()
    assert claims.owner(str(tmp_path), NAME)[0] == other._mark
    other.release()
    assert claims.owner(str(tmp_path), NAME) is None


def test_the_owner_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)
    with claims.holding(str(tmp_path), NAME):
        first = claims.owner(str(tmp_path), NAME)[1]["beats"]
        time.sleep(0.4)
        assert claims.owner(str(tmp_path), NAME)[1]["beats"] > first


MOUNTS = """\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
30 21 0:50 / /data rw - nfs4 server:/export rw
31 30 8:2 / /data/local rw - xfs /dev/sdb rw
32 21 0:51 / /fuse rw - fuse.glusterfs vol rw
"""


@pytest.mark.parametrize(
    ("hub", "shared"),
    [
        ("/var/hub", []),
        ("/data/hub", ["other hosts"]),
        ("/data/local/hub", []),
        ("/data2/hub", []),
        ("/fuse", ["other hosts"]),
    ],
)
def test_a_network_file_system_is_shared(hub: str, shared: list[str]) -> None:
    assert claims.sharing(hub, MOUNTS, "me") == shared


def test_hosts_that_left_their_mark_share_the_cache(tmp_path: Path) -> None:
    (tmp_path / claims.HOSTS).mkdir()
    (tmp_path / claims.HOSTS / "me").touch()
    assert claims.sharing(str(tmp_path / "hub"), "", "me") == []
    (tmp_path / claims.HOSTS / "you").touch()
    assert claims.sharing(str(tmp_path / "hub"), "", "me") == ["you"]


def test_this_host_was_switched_on_before_now_and_after_its_machine() -> None:
    booted = int(
        next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime")).split()[1]
    )
    assert booted <= claims.switched_on() <= time.time()
