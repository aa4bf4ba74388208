"""The module that lists, verifies and prunes a cache: what it answers, and what it leaves alone."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_holdings as holdings
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils import sglang_host_state as store
from module_testing import load, run

module = load("sglang_models")
COMMIT, CONTENT = "c" * 40, b"w" * 5000
BLOB = hashlib.sha256(CONTENT).hexdigest()
LONG_AGO = time.time() - 10 * models.ABANDONED_SECONDS


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without services, whose caches are its own; nobody is to be nice to."""
    monkeypatch.setattr(store, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(os, "nice", lambda _by: 0)
    monkeypatch.setattr(claims, "sharing", lambda _hub: [])


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    place(tmp_path / "hub", "org/a")
    return tmp_path / "hub"


def place(hub: Path, repo: str) -> Path:
    home = hub / ("models--" + repo.replace("/", "--"))
    blob, link = home / "blobs" / BLOB, home / "snapshots" / COMMIT / "model.safetensors"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    os.utime(blob, (LONG_AGO, LONG_AGO))
    link.symlink_to(f"../../blobs/{BLOB}")
    (link.parent / "config.json").write_text("{}")  # no link, so it has no checksum
    return home


def deployed(repo: str) -> None:
    store.write_release("sglang-one", "r1", "", {"content": {"model": {"repo": repo, "commit": COMMIT}}}, {})
    store.write_state("sglang-one", {"release": "r1", "stable": None})


def test_list(hub: Path) -> None:
    deployed("org/a")
    left = run(module, hubs=[str(hub), str(hub), "/nowhere"])
    assert (left.failed, left.result["changed"]) == (False, False)
    told = left.result["sglang_ops"]
    (model,) = told["models"]
    (revision,) = model["revisions"]
    assert (told["kind"], model["repo"], revision["used_by"]) == ("models", "org/a", ["sglang-one"])
    assert revision["bytes"] == 5002
    assert "blobs" not in revision


def test_a_model_that_is_not_there_is_named(hub: Path) -> None:
    left = run(module, hubs=[str(hub)], do="verify", repos=["org/a", "org/none"])
    assert (left.failed, left.result["exit_hint"]) == (True, 7)
    assert f"org/none is not in the cache of this host ({hub}, /nowhere)." not in left.result["msg"]
    assert f"org/none is not in the cache of this host ({hub})." in left.result["msg"]


class TestVerify:
    """Reading everything."""

    def test_all_right(self, hub: Path) -> None:
        told = run(module, hubs=[str(hub)], do="verify").result["sglang_ops"]
        assert (told["bad"], told["checked_bytes"], told["unnamed"]) == ([], 5000, ["org/a: config.json"])

    def test_a_bad_file_is_named_and_left(self, hub: Path) -> None:
        blob = hub / "models--org--a" / "blobs" / BLOB
        blob.write_bytes(CONTENT[:-1] + b"x")
        left = run(module, hubs=[str(hub)], do="verify")
        assert left.failed
        assert "exit_hint" not in left.result
        assert "Wrong content: model.safetensors of org/a (its SHA-256 is " in left.result["msg"]
        (bad,) = left.result["sglang_ops"]["bad"]
        assert (bad["repo"], bad["files"], bad["path"]) == ("org/a", ["model.safetensors"], str(blob))
        assert blob.exists()

    @pytest.mark.parametrize("check", [True, False])
    def test_repair_deletes_it_and_the_model_is_known_to_lack_it(self, hub: Path, check: bool) -> None:
        blob = hub / "models--org--a" / "blobs" / BLOB
        blob.write_bytes(b"x" + CONTENT[1:])
        assert models.cached(str(hub), "org/a", COMMIT)["complete"]
        left = run(module, check=check, hubs=[str(hub)], do="verify", repair=True)
        assert (left.failed, left.result["changed"], blob.exists()) == (False, True, check)
        assert models.cached(str(hub), "org/a", COMMIT)["complete"] is check
        assert run(module, hubs=[str(hub)], do="verify").failed is check


class TestPrune:
    """Removing what nobody uses."""

    def test_check_mode_says_what_and_how_much(self, hub: Path) -> None:
        left = run(module, check=True, hubs=[str(hub)], do="prune")
        assert left.result["changed"]
        assert left.result["diff"]["before"] == "org/a cccccccccccc: 12 kB\n"
        (removed,) = left.result["sglang_ops"]["removed"]
        assert removed == {"repo": "org/a", "hub": str(hub), "commits": [COMMIT], "bytes": 3 * 4096}
        assert (hub / "models--org--a" / "blobs" / BLOB).exists()

    def test_it_is_done_once(self, hub: Path) -> None:
        place(hub, "org/b")
        deployed("org/b")
        assert run(module, hubs=[str(hub)], do="prune").result["changed"]
        assert [item["repo"] for item in run(module, hubs=[str(hub)]).result["sglang_ops"]["models"]] == ["org/b"]
        assert not run(module, hubs=[str(hub)], do="prune").result["changed"]

    def test_it_refuses_while_something_is_downloaded(self, hub: Path) -> None:
        with claims.holding(str(hub), "models--org--z"):
            left = run(module, hubs=[str(hub)], do="prune")
        assert (left.failed, left.result["exit_hint"]) == (True, 7)
        assert f"org/z is being downloaded by {os.uname().nodename}. Prune when that is over." in left.result["msg"]
        assert (hub / "models--org--a").exists()

    def test_it_refuses_a_shared_cache_unless_told(self, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(claims, "sharing", lambda _hub: ["other-host"])
        left = run(module, hubs=[str(hub)], do="prune")
        assert (left.failed, left.result["exit_hint"]) == (True, 7)
        assert "is shared with other-host, whose services this host does not know." in left.result["msg"]
        assert run(module, hubs=[str(hub)], do="prune", shared=True, keep=["org/a"]).result["changed"] is False
        assert run(module, hubs=[str(hub)], do="prune", shared=True).result["changed"]

    def test_another_that_begins_in_the_meantime_wins(self, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(holdings, "busy", lambda *_: "")
        monkeypatch.setattr(claims, "gone", lambda *_: False)
        other = claims.Claim(str(hub), "models--org--a")
        assert other.take()
        left = run(module, hubs=[str(hub)], do="prune")
        assert left.failed
        assert "is at work on it" in left.result["msg"]
        assert (hub / "models--org--a" / "blobs" / BLOB).exists()


def test_what_was_asked_for_is_told_from_what_is_not_there() -> None:
    found: list[dict[str, Any]] = [{"repo": "org/a"}, {"repo": "org/b"}]
    assert module.asked_for(found, []) == (found, [])
    assert module.asked_for(found, ["org/b", "org/c"]) == ([{"repo": "org/b"}], ["org/c"])
