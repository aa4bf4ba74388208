"""What a cache holds, who uses it, and that pruning removes just what it says."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_holdings as holdings
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils import sglang_host_state as store

OLD, NEW = "a" * 40, "b" * 40
LONG_AGO = time.time() - 10 * models.ABANDONED_SECONDS


def place(hub: Path, repo: str, commit: str, files: dict[str, str], branch: str = "") -> Path:
    """A revision as huggingface_hub lays it out; `files` is {name: content}, blobs are named by their content."""
    home = hub / ("models--" + repo.replace("/", "--"))
    (home / "blobs").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = home / "blobs" / (content * 64)[:64]
        blob.write_text(content * 1000)
        os.utime(blob, (LONG_AGO, LONG_AGO))
        link = home / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if branch:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / branch).write_text(commit)
    return home


def look(hub: Path, *used: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = holdings.survey(str(hub), list(used), time.time())
    return found


def use(repo: str, commit: str | None, service: str = "sglang-one", text: str = "") -> dict[str, Any]:
    return {"service": service, "repo": repo, "commit": commit, "text": text}


def prune(hub: Path, *used: dict[str, Any], keep: tuple[str, ...] = ()) -> int:
    gone = holdings.unused(look(hub, *used), keep)
    for item in gone:
        holdings.remove(item)
    return sum(item["bytes"] for item in gone)


def tree(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if ".locks" not in path.parts)


@pytest.mark.parametrize(
    ("used", "services"),
    [
        (use("org/a", NEW), ["sglang-one"]),
        (use("org/a", OLD), []),
        (use("org/a", None), ["sglang-one"]),  # it follows a branch
        (use("org/b", OLD, text='["--speculative-draft-model-path", "org/a"]'), ["sglang-one"]),
        (use("org/b", OLD, text='["--lora-paths", "org/a-lora", "more.org/a"]'), []),
        (use("", "", text='"/data/hub/models--org--a/snapshots/main"'), ["sglang-one"]),  # checkpoint_path
    ],
)
def test_who_uses_a_revision(used: dict[str, Any], services: list[str]) -> None:
    assert holdings.users("org/a", NEW, [used]) == services


def test_what_runs_and_what_it_would_be_rolled_back_to_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "STATE", str(tmp_path))
    for release, commit in (("r1", OLD), ("r2", NEW), ("r3", "c" * 40)):
        record = {"content": {"model": {"repo": "org/a", "commit": commit}, "argv": ["--x", "org/draft"]}}
        store.write_release("sglang-one", release, "", record, {})
    store.write_state("sglang-one", {"release": "r2", "stable": "r1"})
    found = holdings.uses()
    assert [(item["repo"], item["commit"]) for item in found] == [("org/a", OLD), ("org/a", NEW)]
    assert holdings.users("org/draft", OLD, found) == ["sglang-one"]


def test_caches_are_found_by_what_units_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "my data" / "huggingface" / "hub"
    place(hub, "org/a", NEW, {"config.json": "1"})
    monkeypatch.setattr(store, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(store, "UNITS", str(tmp_path))
    store.write_state("sglang-one", {"release": "r", "stable": None})
    (tmp_path / "sglang-one.service").write_text(f'[Unit]\nRequiresMountsFor=/nowhere "{tmp_path}/my data"\n')
    assert holdings.hubs_of_units() == [str(hub)]


def test_a_model_is_described(tmp_path: Path) -> None:
    place(tmp_path, "org/a", NEW, {"config.json": "1", "sub/model.safetensors": "2"}, branch="main")
    (item,) = look(tmp_path, use("org/a", NEW))
    (revision,) = item["revisions"]
    assert (revision["commit"], revision["refs"], revision["bytes"], revision["complete"]) == (
        NEW,
        ["main"],
        2000,
        True,
    )
    assert (revision["used_by"], revision["missing"], item["foreign"]) == (["sglang-one"], 0, False)
    assert abs(revision["last_used"] - LONG_AGO) < 2


def test_what_is_missing_of_an_interrupted_download_is_known(tmp_path: Path) -> None:
    files = [{"name": "config.json", "size": 1000, "blob": "1"}, {"name": "w.safetensors", "size": 7000, "blob": "2"}]
    models.intend(str(tmp_path), "org/a", {"commit": NEW, "files": files})
    (revision,) = look(tmp_path)[0]["revisions"]
    assert (revision["complete"], revision["missing"], revision["bytes"]) == (False, 8000, 0)
    place(tmp_path, "org/a", NEW, {"config.json": "1"})
    (revision,) = look(tmp_path)[0]["revisions"]
    assert (revision["complete"], revision["missing"], revision["bytes"]) == (False, 7000, 1000)


class TestPrune:
    """Removing."""

    def test_a_model_that_nobody_uses_goes_as_a_whole(self, tmp_path: Path) -> None:
        place(tmp_path, "org/a", NEW, {"config.json": "1"}, branch="main")
        place(tmp_path, "org/b", NEW, {"config.json": "1"})
        before = tree(tmp_path / "models--org--b")
        assert prune(tmp_path, use("org/b", NEW)) == 4096
        assert tree(tmp_path / "models--org--b") == before
        assert not (tmp_path / "models--org--a").exists()
        assert prune(tmp_path, use("org/b", NEW)) == 0

    def test_a_revision_goes_and_what_it_shares_stays(self, tmp_path: Path) -> None:
        place(tmp_path, "org/a", OLD, {"config.json": "1", "old.safetensors": "2"}, branch="v1")
        home = place(tmp_path, "org/a", NEW, {"config.json": "1", "new.safetensors": "3"}, branch="main")
        models.remember(str(tmp_path), "org/a", OLD, {"commit": OLD, "files": []})
        assert prune(tmp_path, use("org/a", NEW)) == 4096
        assert tree(home / "blobs") == ["1" * 64, "3" * 64]
        assert tree(home / "refs") == ["main"]
        assert tree(home / "snapshots") == [NEW, f"{NEW}/config.json", f"{NEW}/new.safetensors"]
        assert tree(home / ".sglang-ops") == []

    def test_what_is_to_be_kept_stays(self, tmp_path: Path) -> None:
        place(tmp_path, "org/a", NEW, {"config.json": "1"})
        assert prune(tmp_path, keep=("org/a",)) == 0

    def test_what_downloads_have_left_goes_when_it_is_old(self, tmp_path: Path) -> None:
        home = place(tmp_path, "org/a", NEW, {"config.json": "1"})
        old = home / "blobs" / ("c" * 64 + ".0123abcd.incomplete")
        old.write_text("x" * 5000)
        os.utime(old, (LONG_AGO, LONG_AGO))
        assert holdings.busy(str(tmp_path), look(tmp_path)) == ""
        young = home / "blobs" / ("d" * 64 + ".0123abcd.incomplete")
        young.write_text("x")
        assert "org/a has a file that got data in the last 30 minutes" in holdings.busy(str(tmp_path), look(tmp_path))
        assert prune(tmp_path, use("org/a", NEW)) == 8192
        assert (old.exists(), young.exists()) == (False, True)

    def test_a_download_under_way_is_named(self, tmp_path: Path) -> None:
        place(tmp_path, "org/a", NEW, {"config.json": "1"})
        with claims.holding(str(tmp_path), "models--org--a"):
            assert holdings.busy(str(tmp_path), look(tmp_path)) == f"org/a is being downloaded by {os.uname().nodename}"
        assert holdings.busy(str(tmp_path), look(tmp_path)) == ""

    def test_no_link_leads_out_of_the_cache(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        hub = tmp_path / "hub"
        place(outside, "org/real", NEW, {"config.json": "1"})
        home = place(hub, "org/a", NEW, {"config.json": "1"})
        (outside / "weights").write_text("precious")
        (home / "snapshots" / NEW / "model.safetensors").symlink_to(outside / "weights")
        (home / "snapshots" / OLD).symlink_to(outside)
        (home / "refs").symlink_to(outside)
        (home / "blobs" / "link").symlink_to(outside / "weights")
        (hub / "models--org--linked").symlink_to(outside / "models--org--real")
        (hub / "datasets--org--data").mkdir()
        (hub / "models--org--half").mkdir()
        (hub / "models--org--half" / "blobs").symlink_to(outside)
        (hub / "models--org--half" / "snapshots").symlink_to(outside)
        before = tree(outside)
        prune(hub)
        assert tree(outside) == before
        assert (outside / "weights").read_text() == "precious"
        assert [item["repo"] for item in look(hub)] == ["org/half"], "it is not laid out as it should be: hands off"
        assert sorted(path.name for path in hub.iterdir()) == [
            ".locks", "datasets--org--data", "models--org--half", "models--org--linked"
        ]  # fmt: skip


def test_records_of_files_are_read_in_both_states(tmp_path: Path) -> None:
    source = {"commit": NEW, "files": [{"name": "a", "size": 1, "blob": "x"}]}
    models.intend(str(tmp_path), "org/a", source)
    home = models.directory(str(tmp_path), "org/a")
    assert models.files_of(home, NEW) == ({"a": 1}, False)
    models.remember(str(tmp_path), "org/a", "main", source)
    assert models.files_of(home, NEW) == ({"a": 1}, True)
    assert json.loads((Path(home) / ".sglang-ops" / f"{NEW}.json").read_text()) == {"a": 1}
    assert not (Path(home) / ".sglang-ops" / f"{NEW}.wanted").exists()
