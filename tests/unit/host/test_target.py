"""To which release a host goes back, and what it keeps of a roll-out that is taken back."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "modules"))
from module_testing import load, run

rollouts: Any = importlib.import_module("ansible.module_utils.sglang_host_rollout")
store: Any = importlib.import_module("ansible.module_utils.sglang_host_state")
module: Any = load("sglang_rollout")
units: Any = importlib.import_module("ansible.module_utils.sglang_host_units")
evaluating: Any = importlib.import_module("ansible.module_utils.sglang_host_evaluating")
service: Any = load("sglang_service")
NAME = "sglang-m"
IMAGE = "registry.example/sglang@sha256:" + "1" * 64


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "STATE", str(tmp_path / "state"))


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine that has the images whose names are in the file."""
    images, program = tmp_path / "images", tmp_path / "bin" / "docker"
    images.write_text(IMAGE + "\n")
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1 $2" = "image inspect" ] && grep -qxF "$3" {images}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return images


def deployed(*releases: str, result: str = "stable") -> None:
    """The releases, one after the other; the last one is of the roll-out r1 and came to `result`."""
    before = None
    for number, release in enumerate(releases, 1):
        record = {"content": {"image": IMAGE}, "image": "registry.example/sglang:v1", "engine": "docker", "gate": {}}
        store.write_release(NAME, release, f"unit {release}", record, {})
        identity = "r1" if number == len(releases) else f"old{number}"
        rollouts.note(NAME, {"release": release, "before": before, "verb": "deploy", "rollout": identity})
        rollouts.result(NAME, release, result if number == len(releases) else "stable")
        before = release
    store.write_state(NAME, {"release": before, "stable": before})


def back(word: str, release: str) -> None:
    """The way back from the last release, as far as `word`."""
    rollouts.note(NAME, {"release": release, "before": "new", "verb": "rollback", "rollout": "undo"})
    rollouts.result(NAME, release, word)


def target(**asked: Any) -> Any:
    return run(module, do="target", **asked)


def goes_to(left: Any) -> list[Any]:
    assert not left.failed, left.result
    return [(item["release"], item["deployed_release"], item["undo"]) for item in left.result["sglang_ops"]["services"]]


@pytest.mark.usefixtures("engine")
def test_a_roll_out_is_undone_where_it_changed_something() -> None:
    deployed("old", "new")
    assert goes_to(target(undo=["r1"])) == [("old", "new", True)]
    assert goes_to(target(undo=["other"])) == []
    assert goes_to(target()) == [("old", "new", False)]
    back("stable", "old")
    store.write_state(NAME, {"release": "old", "stable": "old"})
    assert goes_to(target(undo=["r1"])) == []


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("recorded", ["new", "old"])
def test_a_way_back_that_did_not_come_to_its_end_is_gone_again(recorded: str) -> None:
    """The server did not start (its release is not recorded then), or did not serve."""
    deployed("old", "new")
    back("begun", "old")
    store.write_state(NAME, {"release": recorded, "stable": "new"})
    assert goes_to(target(undo=["r1"])) == [("old", recorded, True)]


@pytest.mark.parametrize("asked", [{}, {"release": "old"}, {"undo": ["r1"]}])
def test_a_release_whose_image_is_gone_is_refused_and_the_pull_is_told(asked: dict[str, Any], engine: Path) -> None:
    deployed("old", "new")
    engine.write_text("another\n")
    left = target(**asked)
    assert (left.failed, left.result["exit_hint"]) == (True, 7)
    assert left.result["msg"] == (
        "The image of release old of sglang-m is gone from this host (registry.example/sglang:v1). "
        f"Pull it with `docker pull {IMAGE}`."
    )
    assert left.result["sglang_ops"]["services"] == []
    assert rollouts.newest(NAME)["release"] == "new"


@pytest.mark.usefixtures("engine")
def test_a_release_whose_unit_is_gone_is_refused() -> None:
    deployed("old", "new")
    (Path(store.release_directory(NAME, "old")) / "unit").unlink()
    left = target(release="old")
    assert (left.failed, left.result["msg"]) == (True, "The record of release old of sglang-m is gone.")


def test_what_is_taken_back_is_on_record_until_all_hosts_are_back() -> None:
    rollouts.write(NAME, {"id": "r1", "image": "i"})
    rollouts.take_back(NAME)
    rollouts.take_back("sglang-other")
    rollouts.finish(NAME)  # this host serves its old release
    assert set(rollouts.unfinished()) == {NAME}
    assert not run(module, do="forget").failed
    assert rollouts.unfinished() == {}
    rollouts.write(NAME, {"id": "r1", "image": "i", "undo": True, "file": {}, "started": 1})
    rollouts.write(NAME, rollouts.taken_up(rollouts.read(NAME), {"id": "r2", "image": "i", "file": {}}))
    rollouts.finish(NAME)  # deployed after all
    assert rollouts.unfinished() == {}


def test_a_server_that_does_not_start_on_the_way_back_is_told_as_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deployed("old", "new")
    monkeypatch.setattr(store, "UNITS", str(tmp_path))
    monkeypatch.setattr(evaluating, "replaced", lambda _releases: None)
    monkeypatch.setattr(units.systemd, "show", lambda _names: {})
    monkeypatch.setattr(units.systemd, "journal", lambda *_: ["the end of its log"])
    monkeypatch.setattr(units.systemd, "systemctl", lambda verb, *_, **__: "no" if verb == "start" else "")
    left = run(service, state="rolled_back", services=[{"name": NAME, "to": "old"}])
    assert left.failed
    assert left.result["sglang_ops"]["services"] == [{"name": NAME, "ok": False, "log": ["the end of its log"]}]
    assert (rollouts.newest(NAME)["release"], store.read_state(NAME)["release"]) == ("old", "new")


def test_only_the_services_that_are_named_go_on() -> None:
    mark, record = {"who": "x"}, {"who": "me", "started": 1, "image": "i"}
    for name in ("sglang-m", "sglang-n"):
        rollouts.write(name, {**record, "id": "r1", "paused": mark, "options": {"batch": 1}})
    left = run(module, do="resume", names=["sglang-m"])
    assert [item["service"] for item in left.result["sglang_ops"]["unfinished"]] == ["sglang-m"]
    assert left.result["sglang_ops"]["unfinished"][0]["options"] == {"batch": 1}
    assert [rollouts.read(name)["paused"] for name in ("sglang-m", "sglang-n")] == [None, mark]
