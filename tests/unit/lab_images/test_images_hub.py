"""The model source, asked by the real client, huggingface_hub and its `hf`."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from sglang_ops.lab.hub import HubServer, find_repository
from sglang_ops.lab.model import GATED_MODEL, OPEN_MODEL, ensure_model

TOKEN = "hf_lab_token"
FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_model(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def endpoint(root: Path) -> Iterator[str]:
    with HubServer(root, "127.0.0.1", 0, TOKEN) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def api(endpoint: str) -> huggingface_hub.HfApi:
    return huggingface_hub.HfApi(endpoint=endpoint, token=False)


def test_hf_download_fills_a_cache(endpoint: str, root: Path, tmp_path: Path) -> None:
    hf = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()"]
    done = subprocess.run(
        [*hf, "download", OPEN_MODEL],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    commit = find_repository(root, OPEN_MODEL).commit
    snapshot = tmp_path / "hub" / "models--lab--tiny-llama" / "snapshots" / commit
    assert done.returncode == 0, done.stderr
    assert str(snapshot) in done.stdout
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {
        name: (root / OPEN_MODEL / name).read_bytes() for name in FILES
    }


def test_information(api: huggingface_hub.HfApi, root: Path) -> None:
    information = api.model_info(OPEN_MODEL, files_metadata=True)
    assert information.sha == find_repository(root, OPEN_MODEL).commit
    assert information.gated is False
    sizes = {sibling.rfilename: sibling.size for sibling in information.siblings or []}
    assert sizes == {name: (root / OPEN_MODEL / name).stat().st_size for name in FILES}
    weights = next(sibling for sibling in information.siblings or [] if sibling.lfs)
    assert weights.lfs is not None
    assert weights.lfs.sha256 == hashlib.sha256((root / OPEN_MODEL / weights.rfilename).read_bytes()).hexdigest()
    assert api.list_repo_files(OPEN_MODEL) == FILES
    assert [branch.name for branch in api.list_repo_refs(OPEN_MODEL).branches] == ["main"]


@pytest.mark.parametrize(
    ("repository", "revision", "error"),
    [
        ("lab/absent", "main", RepositoryNotFoundError),
        ("lab/..", "main", HfHubHTTPError),
        (OPEN_MODEL, "v2", RevisionNotFoundError),
        (GATED_MODEL, "main", GatedRepoError),
    ],
)
def test_what_cannot_be_had(
    api: huggingface_hub.HfApi, tmp_path: Path, repository: str, revision: str, error: type[Exception]
) -> None:
    with pytest.raises((error, huggingface_hub.errors.HFValidationError)):
        api.snapshot_download(repository, revision=revision, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_token_opens_the_gated_model(endpoint: str, root: Path, tmp_path: Path) -> None:
    api = huggingface_hub.HfApi(endpoint=endpoint, token=TOKEN)
    assert api.whoami()["name"] == "lab"
    path = Path(api.snapshot_download(GATED_MODEL, cache_dir=tmp_path))
    assert (path / "config.json").read_bytes() == (root / GATED_MODEL / "config.json").read_bytes()
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        huggingface_hub.HfApi(endpoint=endpoint, token="hf_wrong").snapshot_download(
            GATED_MODEL, cache_dir=tmp_path / "2"
        )


def test_a_gated_model_without_any_token_stays_closed(root: Path) -> None:
    with HubServer(root, "127.0.0.1", 0, None) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{GATED_MODEL}/resolve/main/config.json"
        response = httpx.get(url, headers={"Authorization": f"Bearer {TOKEN}"})
        thread.join()
    assert (response.status_code, response.json()) == (401, {"error": "Invalid credentials in Authorization header"})


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=100-", 206, slice(100, None)),
        ("bytes=0-", 200, slice(0, None)),
        ("bytes=99999999-", 416, None),
        ("nonsense", 200, slice(0, None)),
    ],
)
def test_ranges(endpoint: str, root: Path, asked: str, status: int, part: slice | None) -> None:
    content = (root / OPEN_MODEL / "model.safetensors").read_bytes()
    response = httpx.get(f"{endpoint}/{OPEN_MODEL}/resolve/main/model.safetensors", headers={"Range": asked})
    assert response.status_code == status
    if part:
        assert response.content == content[part]


def test_head_names_content_and_commit(endpoint: str, root: Path) -> None:
    repository = find_repository(root, OPEN_MODEL)
    response = httpx.head(f"{endpoint}/{OPEN_MODEL}/resolve/{repository.commit}/model.safetensors")
    blob = repository.blobs["model.safetensors"]
    assert response.headers["etag"] == response.headers["x-linked-etag"] == f'"{blob.sha256}"'
    assert response.headers["x-repo-commit"] == repository.commit
    assert response.headers["content-length"] == response.headers["x-linked-size"] == str(blob.size)
    assert response.content == b""


def test_the_commit_follows_the_content(tmp_path: Path) -> None:
    directory = tmp_path / "lab" / "m"
    directory.mkdir(parents=True)
    (directory / "a").write_text("hello\n")
    first = find_repository(tmp_path, "lab/m")
    assert first.blobs["a"].git_id == "ce013625030ba8dba906f756967f9e9ca394464a"  # as `git hash-object` has it
    (directory / "a").write_text("hallo!\n")
    assert find_repository(tmp_path, "lab/m").commit != first.commit
    (directory / "a").write_text("hello\n")
    assert find_repository(tmp_path, "lab/m").commit == first.commit
