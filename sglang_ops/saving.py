"""Images from their registry into an OCI image layout, without any container engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang_ops import bundle, bundle_images, registry
from sglang_ops.bundle_images import Blob
from sglang_ops.errors import UsageError
from sglang_ops.registry_client import Registry, RegistryUnreachable

ATTEMPTS = 5  # without a new byte


@dataclass(frozen=True)
class Saved:
    """One image that is in the bundle now. Sizes in bytes; `fetched` is what this run moved."""

    name: str
    digest: str
    bytes: int
    fetched: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Found:
    """An image as its registry describes it: manifests with their content, and the blobs that they name."""

    name: str
    digest: str
    media_type: str
    registry: Registry
    manifests: Mapping[str, bytes]
    blobs: tuple[Blob, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.manifests.values())) + sum(blob.size for blob in self.blobs)


def save(
    images: Sequence[str],
    target: Path,
    *,
    platform: str,
    mirrors: Mapping[str, str],
    insecure: Sequence[str],
    report: Callable[[str], None],
) -> tuple[Saved, ...]:
    """Have `images` in the bundle `target` (a directory, or FILE.tar). What is there already is not fetched again.

    `report` is told what is going on. Raises UsageError, RegistryError, DamagedError; an interrupted save is gone on
    with by the same call.
    """
    report("asking the registry")
    found = [_find(image, platform, mirrors, insecure) for image in dict.fromkeys(images)]
    if target.suffix == ".tar" and target.exists():
        _same(target, found, platform)
        return tuple(Saved(item.name, item.digest, item.size, 0) for item in found)
    directory = bundle.staging(target)
    entries = bundle_images.begin(directory)
    missing = {blob.digest: blob.size for item in found for blob in item.blobs if not _has(directory, blob)}
    bundle.check_space(directory, sum(missing.values()) - _begun(directory, missing))
    progress = _Progress(sum(missing.values()), report)
    saved = [_fetch(item, directory, progress) for item in found]
    for item in found:
        size = len(item.manifests[item.digest])
        entries[item.name] = bundle_images.entry(item.name, item.digest, item.media_type, size)
    bundle_images.finish(directory, entries)
    bundle.finish(target, directory, report)
    return tuple(saved)


def _find(image: str, platform: str, mirrors: Mapping[str, str], insecure: Sequence[str]) -> _Found:
    """Ask for the manifests of one platform. The digest is the one that `registry.resolve` gives."""
    name = bundle_images.full_name(image)
    reference = registry.parse(registry.mirrored(image, mirrors))
    source = Registry(reference, insecure)
    manifests: dict[str, bytes] = {}
    first = source.manifest(reference.digest or str(reference.tag)).body
    digest = _add(manifests, first, reference.digest)
    manifest = _parsed(first, image)
    if "manifests" in manifest:
        inner = bundle_images.choose(manifest, platform, image)
        body = source.manifest(inner).body
        _add(manifests, body, inner)
        media_type = str(manifest.get("mediaType") or "application/vnd.oci.image.index.v1+json")
        manifest = _parsed(body, image)
    else:
        media_type = str(manifest.get("mediaType") or "application/vnd.oci.image.manifest.v1+json")
    if "config" not in manifest:
        raise UsageError(
            f"{image} is of a kind that is not supported: {media_type}.", fix="Push it again as OCI image."
        )
    parts = [manifest["config"], *manifest["layers"]]
    blobs = tuple(dict.fromkeys(Blob(part["digest"], part["size"]) for part in parts))
    return _Found(name, digest, media_type, source, manifests, blobs)


def _parsed(body: bytes, image: str) -> dict[str, Any]:
    try:
        manifest = json.loads(body)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        fix = "Is there a proxy that answers in its place?"
        raise UsageError(f"the registry's answer for {image} is no manifest: {body[:60]!r}.", fix=fix)
    return manifest


def _add(manifests: dict[str, bytes], body: bytes, expected: str | None) -> str:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if expected and digest != expected:
        raise bundle.DamagedError(f"the registry gave {digest} for {expected}.")
    manifests[digest] = body
    return digest


def _same(target: Path, found: Sequence[_Found], platform: str) -> None:
    """A finished tar is not added to: raises UsageError unless all that is wanted is in it."""
    there = {item.name: item.digest for item in bundle_images.images(bundle.Bundle.open(target), platform=platform)}
    for item in found:
        if there.get(item.name) != item.digest:
            fix = "Remove it, or name another file with --to."
            raise UsageError(f"{target} exists already, without {item.name} of today ({item.digest[:19]}).", fix=fix)


def _has(directory: Path, blob: Blob) -> bool:
    file = directory / blob.name
    return file.exists() and file.stat().st_size == blob.size


def _begun(directory: Path, missing: Mapping[str, int]) -> int:
    parts = (directory / f"{bundle_images.blob_name(digest)}.part" for digest in missing)
    return sum(part.stat().st_size for part in parts if part.exists())


class _Progress:
    """Bytes of all blobs together."""

    def __init__(self, total: int, report: Callable[[str], None]) -> None:
        self.total, self.done, self.report = total, 0, report

    def show(self, count: int) -> None:
        self.report(shown(self.done + count, self.total))


def shown(done: int, total: int) -> str:
    """Progress in bytes: 412 / 700 MB."""
    unit, scale, digits = ("GB", 1e9, 1) if total >= 1e9 else ("MB", 1e6, 0) if total >= 1e6 else ("kB", 1e3, 0)
    return f"{done / scale:.{digits}f} / {total / scale:.{digits}f} {unit}"


def _fetch(item: _Found, directory: Path, progress: _Progress) -> Saved:
    for digest, body in item.manifests.items():
        bundle.write(directory / bundle_images.blob_name(digest), body)
    fetched = 0
    for blob in item.blobs:
        if not _has(directory, blob):
            _receive(item.registry, blob, directory / blob.name, progress)
            progress.done += blob.size
            fetched += blob.size
    return Saved(item.name, item.digest, item.size, fetched)


def _receive(source: Registry, blob: Blob, path: Path, progress: _Progress) -> None:
    """Fetch one blob; a connection that breaks off is made anew as long as each brings something."""
    last, left = -1, ATTEMPTS

    def pieces(offset: int) -> Iterator[bytes]:
        nonlocal last, left
        left = ATTEMPTS if offset > last else left - 1
        last = offset
        return source.blob(blob.digest, offset)

    while True:
        try:
            bundle.receive(path, blob.size, blob.digest.removeprefix("sha256:"), pieces, progress.show)
        except (bundle.Short, RegistryUnreachable):
            if left <= 0:
                raise
        else:
            return
