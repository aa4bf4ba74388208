"""Images as files: the OCI image layout, which skopeo, podman and newer dockers read and write too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang_ops import registry
from sglang_ops.bundle import Bundle, BundleError, write
from sglang_ops.errors import UsageError

INDEX = "index.json"
LAYOUT = "oci-layout"
NAME = "org.opencontainers.image.ref.name"  # a tag or a whole name; skopeo and podman go by it
FULL_NAME = "io.containerd.image.name"  # a whole name
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Blob:
    """A file by its SHA-256; `diff_id` is that of a layer unpacked, by which engines know what they have."""

    digest: str
    size: int
    diff_id: str = ""

    @property
    def name(self) -> str:
        return blob_name(self.digest)


@dataclass(frozen=True)
class Image:
    """An image of a bundle: its name with its registry spelled out and a tag or digest, and all of its files."""

    name: str
    digest: str
    platform: str
    blobs: tuple[Blob, ...]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(blob.size for blob in self.blobs)

    def as_sent(self, mirrors: Mapping[str, str]) -> dict[str, Any]:
        """The image for the module `sglang_image_load`, under the name by which deploy looks for it."""
        ref = registry.mirrored(self.name, mirrors)
        digest_ref = f"{registry.parse(ref).repository}@{self.digest}"
        return {"ref": ref, "digest_ref": digest_ref, "blobs": [asdict(blob) for blob in self.blobs]}


def blob_name(digest: str) -> str:
    """Where a layout keeps a blob. Raises BundleError for what is no digest: it becomes a path, here and on hosts."""
    if not _DIGEST.fullmatch(digest):
        raise BundleError(f"'{digest[:80]}' is no SHA-256 digest.", fix="Make the bundle again.")
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def full_name(image: str) -> str:
    """A name as a bundle keeps it: docker.io/lmsysorg/sglang:v0.5.23; by digest where it has no tag."""
    reference = registry.parse(image)
    tail = f":{reference.tag}" if reference.tag else f"@{reference.digest}"
    return f"{reference.host}/{reference.path}{tail}"


def images(bundle: Bundle, name: str | None = None, platform: str = "linux/amd64") -> tuple[Image, ...]:
    """What is in a layout. `name` is the image's where the layout does not say. Raises BundleError."""
    if INDEX not in bundle.pieces:
        if LAYOUT in bundle.pieces or any(item.startswith("blobs/") for item in bundle.pieces):
            fix = "Run the `images save` that made it again; it goes on where it stopped."
            raise BundleError(f"{bundle.path} is not finished: it has no {INDEX}.", fix=fix)
        raise BundleError(f"{bundle.path} holds no images: it has no {INDEX}.", fix="Make it with `images save`.")
    entries = _json(bundle, INDEX).get("manifests") or []
    if name and len(entries) != 1:
        raise BundleError(f"{bundle.path} holds {len(entries)} images; --as names one.")
    try:
        return tuple(_image(bundle, entry, name, platform) for entry in entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it holds something that is not described as an image is ({type(error).__name__}: {error})"
        raise BundleError(f"{bundle.path} cannot be used: {reason}.", fix="Make the bundle again.") from error


def _image(bundle: Bundle, entry: Mapping[str, Any], name: str | None, platform: str) -> Image:
    digest = str(entry["digest"])
    manifests, manifest = [digest], _json(bundle, blob_name(digest))
    if "manifests" in manifest:
        inner = choose(manifest, platform, f"{bundle.path}")
        manifests.append(inner)
        manifest = _json(bundle, blob_name(inner))
    config = _json(bundle, blob_name(manifest["config"]["digest"]))
    found = f"{config.get('os', '')}/{config.get('architecture', '')}"
    if found != platform:
        fix = f"Save it for {platform}, or load it with --platform {found}."
        raise BundleError(f"{bundle.path} holds an image for {found}, and {platform} is wanted.", fix=fix)
    layers = zip(manifest["layers"], config.get("rootfs", {}).get("diff_ids", []), strict=True)
    blobs = [Blob(item, bundle.size(blob_name(item))) for item in manifests]
    blobs.append(Blob(manifest["config"]["digest"], manifest["config"]["size"]))
    blobs += [Blob(layer["digest"], layer["size"], diff_id) for layer, diff_id in layers]
    for blob in blobs:
        held = bundle.size(blob.name)
        if held != blob.size:
            fix = "Make the bundle again, or copy it again."
            what = f"{blob.name} has {held} of {blob.size} bytes" if held >= 0 else f"{blob.name} is missing"
            raise BundleError(f"{bundle.path}: {what}.", fix=fix)
    return Image(_name(entry, name, digest, bundle.path), digest, found, tuple(dict.fromkeys(blobs)))


def _name(entry: Mapping[str, Any], given: str | None, digest: str, path: Path) -> str:
    known = entry.get("annotations") or {}
    for image in (given, known.get(FULL_NAME), known.get(NAME)):
        if image and ("/" in image or image == given):
            return full_name(image)
    fix = "Name it: --as lmsysorg/sglang:v0.5.23"
    raise BundleError(f"{path} does not say which image {digest[:19]} is.", fix=fix)


def choose(index: Mapping[str, Any], platform: str, what: str) -> str:
    """The digest of the manifest for `platform`. Raises BundleError."""
    known = {registry.platform_of(entry): str(entry["digest"]) for entry in reversed(index["manifests"])}
    known.pop("unknown/unknown", None)  # attestations, not images
    if platform not in known:
        there = ", ".join(sorted(known)) or "none"
        raise BundleError(
            f"{what} is not to be had for {platform}; it is for {there}.", fix="Name one with --platform."
        )
    return known[platform]


def _json(bundle: Bundle, name: str) -> dict[str, Any]:
    if name not in bundle.pieces:
        fix = "Make the bundle again, or copy it again."
        raise BundleError(f"{bundle.path} lacks {name}.", fix=fix)
    try:
        found = json.loads(bundle.read(name))
    except ValueError as error:
        raise BundleError(f"{bundle.path}: {name} is damaged: {error}.", fix="Make the bundle again.") from error
    if not isinstance(found, dict):
        raise BundleError(f"{bundle.path}: {name} is damaged.", fix="Make the bundle again.")
    return found


def begin(directory: Path) -> dict[str, dict[str, Any]]:
    """Make `directory` a layout, or go on with the one that it is: the entries of its index by name.

    Raises UsageError where it holds something else.
    """
    known: dict[str, dict[str, Any]] = {}
    if (directory / INDEX).exists():
        entries = _json(Bundle.open(directory), INDEX).get("manifests") or []
        known = {_name(entry, None, str(entry["digest"]), directory): entry for entry in entries}
    elif not (directory / LAYOUT).exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty and holds no images.", fix="Name another place with --to.")
    write(directory / LAYOUT, json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
    return known


def entry(name: str, digest: str, media_type: str, size: int) -> dict[str, Any]:
    """One image in the index of a layout."""
    annotations = {NAME: name, FULL_NAME: name}
    return {"mediaType": media_type, "digest": digest, "size": size, "annotations": annotations}


def finish(directory: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the index, with which a layout is complete."""
    index = {"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": [entries[name] for name in sorted(entries)]}
    write(directory / INDEX, json.dumps(index, indent=1).encode())
