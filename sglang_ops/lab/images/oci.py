"""Container images as bytes: layers from directory trees, image configurations, manifests, a registry's storage.

The same tree gives the same layer, byte for byte. Layers are not compressed: a lab pulls over a virtual
cable, where the time goes into unpacking. Media types are Docker's (schema 2), which every Docker from 20.10
and every podman understands.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang_ops.errors import OpsError

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"

EPOCH = 1577836800  # of every file and image, 2020-01-01 in UTC: when something was built is no content
_CREATED = "2020-01-01T00:00:00Z"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Layer:
    """A layer that lies ready as an uncompressed tar; so its digest is its diff id too."""

    digest: str
    size: int
    path: Path


@dataclass(frozen=True)
class Image:
    """An image: its name in the registry, its layers from the lowest up, and how it runs."""

    repository: str
    tag: str
    layers: tuple[Layer, ...]
    environment: Mapping[str, str]
    labels: Mapping[str, str]


def write_layer(tree: Path, target: Path) -> Layer:
    """Pack `tree` into the file `target`. Owners and modes are kept, times and order are made uniform."""
    command = [
        "tar", "--create", "--format=gnu", "--sort=name", f"--mtime=@{EPOCH}", "--numeric-owner",
        "--directory", str(tree), ".",
    ]  # fmt: skip
    with target.open("wb+") as file:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise OpsError(f"tar could not pack {tree}: {done.stderr.decode(errors='replace').strip()}")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Layer(f"sha256:{digest}", target.stat().st_size, target)


def add_image(storage: Path, image: Image) -> str:
    """Put an image into the storage tree of a registry (its `rootdirectory`); returns the manifest's digest.

    Layers are hard links to the files they were packed into, so they cost no space twice.
    """
    registry = _Storage(storage, image.repository)
    config = registry.put(_dumps(_config(image)))
    for layer in image.layers:
        registry.link_blob(layer)
    manifest = registry.put(_dumps(_manifest(image, config)))
    registry.tag(image.tag, manifest["digest"])
    return str(manifest["digest"])


def _config(image: Image) -> dict[str, Any]:
    return {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": _CREATED,
        "config": {
            "Env": [f"{name}={value}" for name, value in image.environment.items()],
            "Cmd": ["/bin/sh"],
            "WorkingDir": "/root",
            "Labels": dict(image.labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in image.layers]},
        "history": [{"created": _CREATED, "created_by": "sglang-ops lab"} for _ in image.layers],
    }


def _manifest(image: Image, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, **config},
        "layers": [{"mediaType": _LAYER_TYPE, "size": layer.size, "digest": layer.digest} for layer in image.layers],
    }


def described(image: Image) -> tuple[bytes, bytes]:
    """The image's configuration and its manifest, as they are pushed to a registry."""
    config = _dumps(_config(image))
    named = {"size": len(config), "digest": f"sha256:{hashlib.sha256(config).hexdigest()}"}
    return config, _dumps(_manifest(image, named))


def _dumps(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


class _Storage:
    """The file layout of the registry (`docker/registry/v2`), for one repository."""

    def __init__(self, root: Path, repository: str) -> None:
        self._blobs = root / "docker/registry/v2/blobs/sha256"
        self._repository = root / "docker/registry/v2/repositories" / repository

    def put(self, content: bytes) -> dict[str, Any]:
        """Store a blob; its descriptor without the media type."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        data = self._data(digest)
        data.write_bytes(content)
        self._link(self._repository / "_layers", digest)
        return {"size": len(content), "digest": digest}

    def link_blob(self, layer: Layer) -> None:
        data = self._data(layer.digest)
        if not data.exists():
            os.link(layer.path, data)
        self._link(self._repository / "_layers", layer.digest)

    def tag(self, name: str, digest: str) -> None:
        self._link(self._repository / "_manifests/revisions", digest)
        self._link(self._repository / "_manifests/tags" / name / "index", digest)
        current = self._repository / "_manifests/tags" / name / "current/link"
        current.parent.mkdir(parents=True, exist_ok=True)
        current.write_text(digest)

    def _data(self, digest: str) -> Path:
        hexadecimal = digest.removeprefix("sha256:")
        directory = self._blobs / hexadecimal[:2] / hexadecimal
        directory.mkdir(parents=True, exist_ok=True)
        return directory / "data"

    @staticmethod
    def _link(directory: Path, digest: str) -> None:
        link = directory / "sha256" / digest.removeprefix("sha256:") / "link"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(digest)


def layer_description(layer: Layer) -> str:
    """What must be remembered of a layer beside its file, as JSON."""
    return json.dumps({key: value for key, value in asdict(layer).items() if key != "path"})


def layer_from(description: str, path: Path) -> Layer:
    """The layer of `layer_description`, whose file is `path`."""
    return Layer(**json.loads(description), path=path)
