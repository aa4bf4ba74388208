"""Models from files: what is noted before a byte is sent, and who may write meanwhile."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_model as models
from module_testing import Left, load, run

module = load("sglang_model_import")
REPO, COMMIT = "lab/tiny", "c" * 40
CONTENT = {"config.json": b"{}", "model.safetensors": b"w" * 5000}
FILES = [
    {
        "name": name,
        "size": len(text),
        "blob": hashlib.sha256(text).hexdigest(),
        "sha256": hashlib.sha256(text).hexdigest(),
    }
    for name, text in CONTENT.items()
]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def asked(hub: Path, **more: Any) -> dict[str, Any]:
    model = {"hub": str(hub), "repo": REPO, "revision": "main", "commit": COMMIT, "files": FILES}
    return {"models": [model], **more}


def send(left: Left) -> None:
    """What the action plugin does between the two executions."""
    for item in left.result["send"]:
        part = Path(item["part"])
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(next(CONTENT[str(file["name"])] for file in FILES if str(file["blob"]) in item["name"]))


def cached(hub: Path) -> bool:
    return bool(models.cached(str(hub), REPO, "main")["complete"])


def test_what_shall_come_is_noted_first(hub: Path) -> None:
    left = run(module, **asked(hub))
    assert [item["size"] for item in left.result["send"]] == [2, 5000]
    assert models.files_of(models.directory(str(hub), REPO), COMMIT) == (
        {name: len(text) for name, text in CONTENT.items()}, False,
    )  # fmt: skip


def test_a_dry_run_writes_nothing(hub: Path) -> None:
    left = run(module, check=True, **asked(hub))
    assert left.result["changed"]
    assert not hub.exists()


def test_what_arrived_is_taken_once(hub: Path) -> None:
    send(run(module, **asked(hub)))
    assert not cached(hub), "files that nobody has checked yet are no model"
    left = run(module, **asked(hub, arrived=True))
    assert not left.failed
    assert cached(hub)
    again = run(module, **asked(hub))
    assert (again.result["changed"], again.result["send"]) == (False, [])


@pytest.mark.parametrize("arrived", [False, True])
def test_another_writer_of_the_same_cache_is_waited_for(hub: Path, arrived: bool) -> None:
    if arrived:
        send(run(module, **asked(hub)))
    other = claims.Claim(str(hub), Path(models.directory(str(hub), REPO)).name)
    other.acquire()
    seen: list[bool] = []

    def leave() -> None:
        seen.append(cached(hub))
        other.release()

    threading.Timer(0.5, leave).start()
    left = run(module, **asked(hub, arrived=arrived))
    assert not left.failed
    assert seen == [False]
    assert cached(hub) == arrived
    assert json.dumps(claims.holders(str(hub))) == "{}"


def test_what_another_writer_brought_is_not_asked_for(hub: Path) -> None:
    send(run(module, **asked(hub)))
    other = claims.Claim(str(hub), Path(models.directory(str(hub), REPO)).name)
    other.acquire()

    def bring() -> None:
        for item in FILES:
            path = Path(models.blobs(str(hub), REPO)) / str(item["blob"])
            path.with_name(path.name + ".incomplete").rename(path)
        module.enter(asked(hub)["models"][0])
        other.release()

    threading.Timer(0.5, bring).start()
    assert run(module, **asked(hub)).result["send"] == []
    assert cached(hub)
