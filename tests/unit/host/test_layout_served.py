"""The registry that a host is to itself, asked over HTTP as engines ask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from ansible.module_utils import sglang_host_layout as layout

INDEX = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
LAYER = bytes(range(256)) * 1000


def name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    for content in (INDEX, LAYER):
        (tmp_path / name(content)).write_bytes(content)
    (tmp_path / "secret").write_text("not served")
    with layout.served(str(tmp_path), "127.0.0.1") as at:
        yield f"http://{at}/v2"


def test_the_base_answers(served: str) -> None:
    assert urlopen(f"{served}/").read() == b"{}"


def test_manifests_say_what_they_are(served: str) -> None:
    answer = urlopen(f"{served}/lmsysorg/sglang/manifests/sha256:{name(INDEX)}")
    assert answer.headers["Content-Type"] == "application/vnd.oci.image.index.v1+json"
    assert answer.headers["Docker-Content-Digest"] == f"sha256:{name(INDEX)}"
    assert answer.read() == INDEX
    asked = Request(f"{served}/a/manifests/sha256:{name(INDEX)}", method="HEAD")
    assert urlopen(asked).headers["Content-Length"] == str(len(INDEX))


@pytest.mark.parametrize(
    ("manifest", "kind"),
    [
        ({"config": {}}, "application/vnd.oci.image.manifest.v1+json"),
        ({"mediaType": "application/vnd.docker.distribution.manifest.v2+json"}, None),
    ],
)
def test_media_types(manifest: dict[str, str], kind: str | None) -> None:
    assert layout.media_type(json.dumps(manifest).encode()) == (kind or manifest["mediaType"])


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [(None, 200, LAYER), ("bytes=1000-", 206, LAYER[1000:]), ("bytes=5-9", 206, LAYER[5:10])],
)
def test_blobs_and_parts_of_them(served: str, asked: str | None, status: int, content: bytes) -> None:
    headers = {"Range": asked} if asked else {}
    answer = urlopen(Request(f"{served}/a/b/blobs/sha256:{name(LAYER)}", headers=headers))
    assert answer.status == status
    assert answer.read() == content


@pytest.mark.parametrize(
    "route",
    ["a/blobs/sha256:" + "0" * 64, "a/blobs/secret", "a/manifests/v1", "a/blobs/sha256:../secret", "a/tags/list"],
)
def test_nothing_else_is_served(served: str, route: str) -> None:
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"{served}/{route}")


def test_beyond_the_end(served: str) -> None:
    asked = Request(f"{served}/a/blobs/sha256:{name(LAYER)}", headers={"Range": "bytes=999999999-"})
    with pytest.raises(HTTPError, match="416"):
        urlopen(asked)
