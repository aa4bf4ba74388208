"""Models as files: a cache with a list beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_model as host

from sglang_ops import bundle_models
from sglang_ops.bundle import Bundle, BundleError
from sglang_ops.bundle_models import File, Model, models, split
from sglang_ops.errors import UsageError

COMMIT = "c" * 40
CONTENT = {"config.json": b"{}", "model.safetensors": b"weights", "onnx/deep/model.bin": b"more"}


def file(name: str, content: bytes) -> File:
    digest = hashlib.sha256(content).hexdigest()
    return File(name, digest, len(content), digest)


MODEL = Model("team/tiny", "main", COMMIT, tuple(file(name, content) for name, content in CONTENT.items()))


def arrived(directory: Path, model: Model = MODEL) -> None:
    """All blobs of a model, as an export leaves them before it enters the model."""
    for item in model.files:
        blob = directory / model.blob_name(item.blob)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(CONTENT[item.name])


@pytest.mark.parametrize(
    ("handle", "parts"),
    [
        ("Qwen/Qwen3-8B", ("Qwen/Qwen3-8B", "main")),
        ("gpt2@refs/pr/1", ("gpt2", "refs/pr/1")),
        (f"a/b@{COMMIT}", ("a/b", COMMIT)),
    ],
)
def test_handles(handle: str, parts: tuple[str, str]) -> None:
    assert split(handle) == parts


@pytest.mark.parametrize("handle", ["", "a/b/c", "../x/y", "a b", "@main", "a/b@x y", "/etc/passwd"])
def test_what_is_no_handle(handle: str) -> None:
    with pytest.raises(UsageError, match="is not a model"):
        split(handle)


class TestBundle:
    """Written and read again."""

    def test_a_model_is_a_cache_that_hosts_read(self, tmp_path: Path) -> None:
        arrived(tmp_path)
        bundle_models.add(tmp_path, MODEL)
        assert models(Bundle.open(tmp_path)) == (MODEL,)
        cached = host.cached(str(tmp_path), "team/tiny", "main")
        assert (cached["complete"], cached["commit"], cached["bytes"]) == (True, COMMIT, MODEL.size)
        assert (Path(cached["path"]) / "onnx" / "deep" / "model.bin").read_bytes() == b"more"

    def test_another_is_added_and_the_same_replaced(self, tmp_path: Path) -> None:
        newer = replace(MODEL, commit="d" * 40, files=MODEL.files[:2])
        other = replace(MODEL, repo="team/other")
        for model in (MODEL, other, newer):
            arrived(tmp_path, model)
            bundle_models.add(tmp_path, model)
        assert models(Bundle.open(tmp_path)) == (other, newer)

    def test_an_unfinished_one_says_so(self, tmp_path: Path) -> None:
        arrived(tmp_path)
        with pytest.raises(BundleError, match="is not finished"):
            models(Bundle.open(tmp_path))

    def test_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("Dear all")
        with pytest.raises(BundleError, match="holds no models"):
            models(Bundle.open(tmp_path))
        with pytest.raises(UsageError, match="is not empty and holds no models"):
            bundle_models.check_place(tmp_path)

    def test_a_file_that_was_cut_off(self, tmp_path: Path) -> None:
        arrived(tmp_path)
        bundle_models.add(tmp_path, MODEL)
        blob = tmp_path / MODEL.blob_name(MODEL.files[1].blob)
        blob.write_bytes(b"wei")
        with pytest.raises(BundleError, match=r"model\.safetensors of team/tiny has 3 of 7 bytes"):
            models(Bundle.open(tmp_path))
        blob.unlink()
        with pytest.raises(BundleError, match=r"model\.safetensors of team/tiny is missing"):
            models(Bundle.open(tmp_path))

    @pytest.mark.parametrize(
        "change",
        [
            {"repo": "../../etc"},
            {"revision": "../../etc"},
            {"commit": "main"},
            {"files": []},
            {"files": [{"name": "../x", "blob": "b", "size": 1, "sha256": "0" * 64}]},
            {"files": [{"name": "/etc/x", "blob": "b", "size": 1, "sha256": "0" * 64}]},
            {"files": [{"name": "x", "blob": "../b", "size": 1, "sha256": "0" * 64}]},
            {"files": [{"name": "x", "blob": "b", "size": 1, "sha256": "0"}]},
            {"files": [{"name": "x"}]},
        ],
    )
    def test_a_list_that_leads_elsewhere(self, tmp_path: Path, change: dict[str, Any]) -> None:
        listed = {"format": 1, "models": [json.loads(json.dumps(asdict(MODEL))) | change]}
        (tmp_path / "models.json").write_text(json.dumps(listed))
        with pytest.raises(BundleError, match=r"models\.json is damaged"):
            models(Bundle.open(tmp_path))
