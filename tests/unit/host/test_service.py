"""The decisions of the module sglang_service, and the records that it keeps."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import sglang_host_state as store

from sglang_ops.planning.settings import fingerprint

MODULES = Path(__file__).resolve().parents[3] / "plugins" / "modules"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, MODULES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


service = module("sglang_service")
WANTED = {"name": "sglang-m", "release": "new", "unit": "unit new", "action": "start"}


@pytest.mark.parametrize(
    ("current", "action", "write", "stop", "start"),
    [
        ({"unit": None, "release": None, "state": "inactive"}, "start", True, False, True),
        ({"unit": "unit new", "release": "new", "state": "active"}, "none", False, False, False),
        ({"unit": "unit old", "release": "old", "state": "active"}, "restart", True, True, True),
        ({"unit": "unit new", "release": "old", "state": "active"}, "restart", False, True, True),
        ({"unit": "edited", "release": "new", "state": "active"}, "restart", True, True, True),
        ({"unit": "unit new", "release": "new", "state": "failed"}, "start", False, False, True),
        ({"unit": "unit new", "release": "new", "state": "restarting"}, "start", False, False, False),
    ],
)
def test_only_what_differs_is_done(current: dict[str, Any], action: str, write: bool, stop: bool, start: bool) -> None:
    step = service.plan(WANTED | {"action": action}, current)
    assert (step["write"], step["stop"], step["start"]) == (write, stop, start)
    assert step["changed"] == (write or start or current["release"] != "new")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "STATE", str(tmp_path))
    return tmp_path


def test_release_is_kept_whole_and_its_secrets_are_roots_alone(state: Path) -> None:
    store.write_release("sglang-m", "r1", "unit", {"port": 8000}, {"KEY": "it's $(x)\n`y`"})
    secrets = state / "sglang-m" / "releases" / "r1" / "secrets.env"
    assert secrets.stat().st_mode & 0o777 == 0o600
    assert store.release_unit("sglang-m", "r1") == "unit"
    assert store.read_record("sglang-m", "r1") == {"port": 8000}


def test_secrets_reach_the_shell_byte_for_byte(state: Path) -> None:
    value = "it's \"$(id)\" `id` \\ %n {{ x }} ü\nsecond line"
    store.write_release("sglang-m", "r1", "unit", {}, {"KEY": value})
    path = state / "sglang-m" / "releases" / "r1" / "secrets.env"
    output = subprocess.check_output(["sh", "-c", f". {path} && printf %s \"$KEY\""], text=True)
    assert output == value


def test_only_the_newest_releases_stay_and_the_stable_one_always(state: Path) -> None:
    for number in range(8):
        store.write_release("sglang-m", f"r{number}", "unit", {}, {})
        os.utime(state / "sglang-m" / "releases" / f"r{number}", (number, number))
    store.prune_releases("sglang-m", keep={"r0"})
    kept = {path.name for path in (state / "sglang-m" / "releases").iterdir()}
    assert kept == {"r0", "r3", "r4", "r5", "r6", "r7"}


def test_interrupted_write_leaves_the_old_file(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = state / "file"
    store.write_atomic(str(path), "old")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        store.write_atomic(str(path), "new")
    assert path.read_text() == "old"
    assert [item.name for item in state.iterdir()] == ["file"]


def test_runtime_environment_of_the_host(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = state / "runtime.env"
    path.write_text("# note\nA=plain text\nB='quoted one'\nC=\nnonsense\n")
    monkeypatch.setattr(store, "RUNTIME_ENV", str(path))
    assert store.runtime_environment() == {"A": "plain text", "B": "quoted one", "C": ""}


def test_fingerprints_agree_on_both_sides() -> None:
    assert store.fingerprint("secret") == fingerprint("secret") != fingerprint("secreT")


def test_a_secret_is_read_back_whatever_it_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "STATE", str(tmp_path))
    secrets = {"A": "two lines\nwith 'quotes\" and = and \\", "KEY": "export B=no", "EMPTY": ""}
    store.write_release("sglang-m", "r1", "unit", {}, secrets)
    assert {name: store.secret("sglang-m", "r1", name) for name in secrets} == secrets
    assert store.secret("sglang-m", "r1", "B") == store.secret("sglang-m", "none", "A") == ""
