"""Images fetched from a registry that breaks off, lies and asks for logins."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sglang_ops import bundle_images
from sglang_ops.bundle import Bundle, DamagedError
from sglang_ops.errors import UsageError
from sglang_ops.registry_client import ImageNotFound, RegistryUnreachable
from sglang_ops.saving import Saved, save, shown

LAYER = bytes(range(256)) * 20_000  # 5.1 MB


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Registry:
    """One image, amd64 in an index, and ways to fail."""

    def __init__(self) -> None:
        diff_ids = {"type": "layers", "diff_ids": [sha256(b"unpacked")]}
        self.config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": diff_ids}).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "config": {"digest": sha256(self.config), "size": len(self.config)},
                "layers": [{"digest": sha256(LAYER), "size": len(LAYER)}],
            }
        ).encode()
        entry = {
            "digest": sha256(manifest),
            "size": len(manifest),
            "platform": {"os": "linux", "architecture": "amd64"},
        }
        self.index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        self.manifests = {"v1": self.index, sha256(self.index): self.index, sha256(manifest): manifest}
        self.blobs = {sha256(self.config): self.config, sha256(LAYER): LAYER}
        self.asked: list[tuple[str, str]] = []
        self.most = 0  # bytes of a blob that one answer gives; 0 is all
        self.ranges = True
        self.token = ""  # what blobs want to see

    def handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, name = self.path.split("/")[-2:]
                if self.path.startswith("/token"):
                    return self.answer(200, json.dumps({"token": registry.token}).encode())
                if kind == "manifests":
                    body = registry.manifests.get(name)
                    return self.answer(200 if body else 404, body or b"{}")
                registry.asked.append((name, self.headers.get("Range", "")))
                if registry.token and self.headers.get("Authorization") != f"Bearer {registry.token}":
                    where = f'Bearer realm="http://{self.headers["Host"]}/token/x",service="s"'
                    return self.answer(401, b"", **{"WWW-Authenticate": where})
                body, start = registry.blobs[name], 0
                if registry.ranges and self.headers.get("Range"):
                    start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                return self.answer(206 if start else 200, body[start:], registry.most or len(body))

            def answer(self, status: int, body: bytes, most: int | None = None, **headers: str) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body[:most])

            def log_message(self, *_: Any) -> None:
                """Tests print nothing."""

        return Handler


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    with ThreadingHTTPServer(("127.0.0.1", 0), made.handler()) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        made.host = f"127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
        yield made
        server.shutdown()


def fetch(
    registry: Any, target: Path, image: str = "team/sglang:v1", platform: str = "linux/amd64"
) -> tuple[Saved, ...]:
    mirrors = {"docker.io": registry.host}
    return save([image], target, platform=platform, mirrors=mirrors, insecure=[], report=lambda _: None)


def test_saved_whole_under_its_own_name(registry: Registry, tmp_path: Path) -> None:
    (saved,) = fetch(registry, tmp_path / "out")
    assert saved.name == "docker.io/team/sglang:v1"
    assert saved.digest == sha256(registry.index)
    assert saved.fetched == len(LAYER) + len(registry.config)
    (found,) = bundle_images.images(Bundle.open(tmp_path / "out"))
    assert (found.name, found.digest, found.size) == (saved.name, saved.digest, saved.bytes)


def test_a_second_time_nothing_is_fetched(registry: Registry, tmp_path: Path) -> None:
    fetch(registry, tmp_path / "out")
    registry.asked.clear()
    (again,) = fetch(registry, tmp_path / "out")
    assert again.fetched == 0
    assert registry.asked == []


def test_an_image_is_added_to_those_that_are_there(registry: Registry, tmp_path: Path) -> None:
    fetch(registry, tmp_path / "out")
    fetch(registry, tmp_path / "out", f"team/other@{sha256(registry.index)}")
    names = [found.name for found in bundle_images.images(Bundle.open(tmp_path / "out"))]
    assert names == ["docker.io/team/other@" + sha256(registry.index), "docker.io/team/sglang:v1"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_registry_that_breaks_off_is_asked_for_the_rest(registry: Registry, tmp_path: Path, ranges: bool) -> None:
    registry.ranges = ranges
    registry.most = 2_000_000 if ranges else 0
    place = tmp_path / "out" / bundle_images.blob_name(sha256(LAYER))
    place.parent.mkdir(parents=True)
    place.with_name(place.name + ".part").write_bytes(LAYER[:1_000_000])
    (tmp_path / "out" / "oci-layout").write_text("{}")
    (saved,) = fetch(registry, tmp_path / "out")
    starts = [asked for name, asked in registry.asked if name == sha256(LAYER)]
    assert starts == (["bytes=1000000-", "bytes=3000000-", "bytes=5000000-"] if ranges else ["bytes=1000000-"])
    assert place.read_bytes() == LAYER
    assert saved.fetched == len(LAYER) + len(registry.config)


def test_one_that_gives_nothing_more_is_given_up(registry: Registry, tmp_path: Path) -> None:
    registry.blobs[sha256(LAYER)] = LAYER[:4_000_000]
    with pytest.raises(DamagedError, match="broke off after 4000000 of 5120000 bytes"):
        fetch(registry, tmp_path / "out")
    with pytest.raises(UsageError, match="is not finished"):
        bundle_images.images(Bundle.open(tmp_path / "out"))
    registry.blobs[sha256(LAYER)] = LAYER
    registry.asked.clear()
    fetch(registry, tmp_path / "out")
    assert (sha256(LAYER), "bytes=4000000-") in registry.asked


def test_other_content_is_not_taken(registry: Registry, tmp_path: Path) -> None:
    registry.blobs[sha256(LAYER)] = b"x" + LAYER[1:]
    with pytest.raises(DamagedError, match="other content than its checksum says"):
        fetch(registry, tmp_path / "out")
    registry.manifests[sha256(registry.index)] = registry.index + b" "
    with pytest.raises(DamagedError, match="gave sha256:"):
        fetch(registry, tmp_path / "two", f"team/sglang@{sha256(registry.index)}")


def test_a_token_that_expired_is_asked_for_anew(registry: Registry, tmp_path: Path) -> None:
    registry.token = "fresh"
    (saved,) = fetch(registry, tmp_path / "out")
    assert saved.fetched == len(LAYER) + len(registry.config)


def test_a_tar(registry: Registry, tmp_path: Path) -> None:
    fetch(registry, tmp_path / "out.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["out.tar"]
    registry.asked.clear()
    (again,) = fetch(registry, tmp_path / "out.tar")
    assert again.fetched == 0
    assert registry.asked == []
    with pytest.raises(UsageError, match=r"out\.tar exists already, without docker\.io/team/other"):
        fetch(registry, tmp_path / "out.tar", f"team/other@{sha256(registry.index)}")


def test_refusals(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        fetch(registry, tmp_path / "a", "team/sglang:v2")
    with pytest.raises(UsageError, match="not to be had for linux/arm64"):
        fetch(registry, tmp_path / "b", platform="linux/arm64")
    registry.manifests["v1"] = b"<html>Please log in</html>"
    with pytest.raises(UsageError, match="is no manifest: b'<html>Please"):
        fetch(registry, tmp_path / "d")
    registry.host = "127.0.0.1:9"  # type: ignore[attr-defined]
    with pytest.raises(RegistryUnreachable):
        fetch(registry, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [(0, 700, "0 / 1 kB"), (412e6, 700e6, "412 / 700 MB"), (31e8, 149e8, "3.1 / 14.9 GB")],
)
def test_progress_in_bytes(done: float, total: float, text: str) -> None:
    assert shown(int(done), int(total)) == text
