"""From an image's tag to its digest, asked of the registry by the OCI distribution protocol.

The controller asks once, so that every host of the fleet gets the same image. Logins are those of
``docker login`` or ``podman login`` on this machine. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_ops.errors import UsageError
from sglang_ops.registry_client import (
    ImageNotFound,
    Reference,
    Registry,
    RegistryError,
    RegistryRefused,
    RegistryUnreachable,
)
from sglang_ops.registry_login import DOCKER_HUB

__all__ = [
    "ImageNotFound",
    "Reference",
    "RegistryError",
    "RegistryRefused",
    "RegistryUnreachable",
    "ResolvedImage",
    "mirrored",
    "parse",
    "platform_of",
    "resolve",
    "twin",
]
# The grammar of references: github.com/distribution/reference
_REFERENCE = re.compile(
    r"(?:(?P<host>localhost(?::\d+)?|[\w.-]+(?:\.[\w-]+|:\d+)|\[[\da-fA-F:]+\](?::\d+)?)/)?"
    r"(?P<path>[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class ResolvedImage:
    """What a tag stands for now. `digest` is the index's where there is one, so that every platform fits.

    `size_bytes` is the compressed size of one platform's config and layers, what a pull moves; None where the
    registry was not asked or did not say.
    """

    repository: str
    tag: str | None
    digest: str
    size_bytes: int | None = None
    platforms: tuple[str, ...] = ()

    @property
    def digest_ref(self) -> str:
        """The name under which an engine pulls exactly this image."""
        return f"{self.repository}@{self.digest}"


def parse(image: str) -> Reference:
    """Take an image name apart. Raises UsageError for what no engine would take."""
    match = _REFERENCE.fullmatch(image)
    if not match:
        fix = "Write it like lmsysorg/sglang:v0.5.23, in lower case."
        raise UsageError(f"'{image}' is not an image name.", fix=fix)
    host, path, tag, digest = match.group("host", "path", "tag", "digest")
    repository = f"{host}/{path}" if host else path
    host = host or DOCKER_HUB
    if host == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    return Reference(repository, host, path, tag or (None if digest else "latest"), digest)


def resolve(image: str, *, insecure: Sequence[str] = (), platform: str = "linux/amd64") -> ResolvedImage:
    """Find the digest that `image` stands for. An image that names its digest is taken as it is, unasked.

    `insecure` lists registries (``host:port``) that need no valid TLS; those on this machine never do.
    Raises UsageError, ImageNotFound, RegistryRefused, RegistryUnreachable.
    """
    reference = parse(image)
    if reference.digest:
        return ResolvedImage(reference.repository, reference.tag, reference.digest)
    registry = Registry(reference, insecure)
    digest = _digest(registry, str(reference.tag))
    try:
        size, platforms = _size(registry, digest, platform)
    except RegistryError:  # Docker Hub counts GET, not HEAD, towards its rate limit
        size, platforms = None, ()
    return ResolvedImage(reference.repository, reference.tag, digest, size, platforms)


def mirrored(image: str, mirrors: Mapping[str, str]) -> str:
    """`image` as the mirror of its registry has it: {"docker.io": "mirror:5000"} makes lmsysorg/sglang:v1 into
    mirror:5000/lmsysorg/sglang:v1. A registry without a mirror stays."""
    reference = parse(image)
    mirror = mirrors.get(reference.host)
    if mirror is None:
        return image
    tag = f":{reference.tag}" if reference.tag else ""
    digest = f"@{reference.digest}" if reference.digest else ""
    return f"{mirror.rstrip('/')}/{reference.path}{tag}{digest}"


def twin(image: str, digest: str, tags: Iterable[str], *, insecure: Sequence[str] = ()) -> str | None:
    """The first of `tags` in the repository of `image` that stands for the same digest: what `latest` really is."""
    registry = Registry(parse(image), insecure)
    for tag in tags:
        with contextlib.suppress(RegistryError):
            if _digest(registry, tag) == digest:
                return tag
    return None


def _digest(registry: Registry, tag: str) -> str:
    answer = registry.manifest(tag, "HEAD")
    named = answer.headers.get("docker-content-digest")  # allowed to be absent
    return named or f"sha256:{hashlib.sha256(registry.manifest(tag).body).hexdigest()}"


def _size(registry: Registry, digest: str, platform: str) -> tuple[int | None, tuple[str, ...]]:
    manifest = json.loads(registry.manifest(digest).body)
    entries = {platform_of(entry): entry["digest"] for entry in manifest.get("manifests", ())}
    entries.pop("unknown/unknown", None)  # attestations, not images
    if entries:
        manifest = json.loads(registry.manifest(entries.get(platform, next(iter(entries.values())))).body)
    blobs = [manifest.get("config", {}), *manifest.get("layers", ())]
    return sum(blob.get("size", 0) for blob in blobs) or None, tuple(entries)


def platform_of(entry: Mapping[str, Any]) -> str:
    platform = entry.get("platform") or {}
    return f"{platform.get('os', 'unknown')}/{platform.get('architecture', 'unknown')}"
