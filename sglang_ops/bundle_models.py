"""Models as files: a Hugging Face cache with a list beside it, so that HF_HUB_CACHE may point at a bundle too."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sglang_ops.bundle import Bundle, BundleError, Piece, write
from sglang_ops.errors import UsageError

INDEX = "models.json"
_REPO = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[\w./-]+", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """One file of a model: `blob` is its name in the cache, `sha256` the checksum of its content, `size` in bytes."""

    name: str
    blob: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Model:
    """One revision of a repository, whole."""

    repo: str
    revision: str
    commit: str
    files: tuple[File, ...]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Model:
        """Read one. Raises ValueError for what is none: these names become paths on hosts."""
        files = tuple(File(**item) for item in data["files"])
        named = _REPO.fullmatch(data["repo"]) and _REVISION.fullmatch(data["revision"])
        named = named if re.fullmatch("[0-9a-f]{40}", data["commit"]) else None
        if not named or ".." in data["revision"].split("/") or not files or not all(map(_sound, files)):
            raise ValueError(f"{data['repo']} is described wrongly")
        return cls(data["repo"], data["revision"], data["commit"], files)

    @property
    def home(self) -> str:
        return f"models--{self.repo.replace('/', '--')}"

    @property
    def blobs(self) -> dict[str, File]:
        """The files of different content, by blob."""
        return {item.blob: item for item in self.files}

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(item.size for item in self.blobs.values())

    def blob_name(self, blob: str) -> str:
        return f"{self.home}/blobs/{blob}"

    def pieces(self, bundle: Bundle) -> dict[str, Piece]:
        """Where in the bundle each blob lies."""
        return {blob: bundle.pieces[self.blob_name(blob)] for blob in self.blobs}


def _sound(item: File) -> bool:
    parts = PurePosixPath(item.name).parts
    inside = bool(parts) and ".." not in parts and not item.name.startswith("/")
    return inside and bool(re.fullmatch(r"[\w.-]+", item.blob, re.ASCII)) and bool(_HASH.fullmatch(item.sha256))


def split(handle: str) -> tuple[str, str]:
    """REPO[@REVISION] as repository and revision, `main` where none is named. Raises UsageError."""
    repo, _, revision = handle.partition("@")
    if not _REPO.fullmatch(repo) or (revision and not _REVISION.fullmatch(revision)):
        raise UsageError(f"'{handle}' is not a model.", fix="Write it like Qwen/Qwen3-8B or Qwen/Qwen3-8B@main.")
    return repo, revision or "main"


def models(bundle: Bundle) -> tuple[Model, ...]:
    """The models of a bundle. Raises BundleError."""
    if INDEX not in bundle.pieces:
        if any(name.startswith("models--") for name in bundle.pieces):
            fix = "Run the `models export` that made it again; it goes on where it stopped."
            raise BundleError(f"{bundle.path} is not finished: it has no {INDEX}.", fix=fix)
        raise BundleError(f"{bundle.path} holds no models: it has no {INDEX}.", fix="Make it with `models export`.")
    try:
        found = tuple(Model.of(item) for item in json.loads(bundle.read(INDEX))["models"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{bundle.path}: {INDEX} is damaged ({error}).", fix="Make the bundle again.") from error
    for model in found:
        for blob, item in model.blobs.items():
            held = bundle.size(model.blob_name(blob))
            if held != item.size:
                fix = "Make the bundle again, or copy it again."
                what = f"has {held} of {item.size} bytes" if held >= 0 else "is missing"
                raise BundleError(f"{bundle.path}: {item.name} of {model.repo} {what}.", fix=fix)
    return found


def known(directory: Path) -> tuple[Model, ...]:
    """The models that are in a bundle under way."""
    return models(Bundle.open(directory)) if (directory / INDEX).exists() else ()


def check_place(directory: Path) -> None:
    """Raises UsageError where `directory` holds something else than models."""
    names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
    if names and INDEX not in names and not all(name.startswith(("models--", ".")) for name in names):
        raise UsageError(f"{directory} is not empty and holds no models.", fix="Name another place with --to.")


def add(directory: Path, model: Model) -> None:
    """Enter a model whose blobs are all there: its links, its branch, and last its entry in the list."""
    home = directory / model.home
    for item in model.files:
        link = home / "snapshots" / model.commit / item.name
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            link.unlink()
        link.symlink_to("../" * (len(PurePosixPath(item.name).parts) + 1) + f"blobs/{item.blob}")
    if model.revision != model.commit:
        write(home / "refs" / model.revision, model.commit.encode())
    with (directory / ".lock").open("w") as lock:  # several hosts may give one model each
        fcntl.flock(lock, fcntl.LOCK_EX)
        others = [item for item in known(directory) if (item.repo, item.revision) != (model.repo, model.revision)]
        data = {"format": 1, "models": [asdict(item) for item in (*others, model)]}
        write(directory / INDEX, json.dumps(data, indent=1).encode())
    (directory / ".lock").unlink(missing_ok=True)
