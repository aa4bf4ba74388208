"""The arguments that SGLang releases accept, as their own parsers list them.

One file per release, made by `tools/catalogue.py` from the published packages: the last release of every minor
version from 0.4.0 on (0.4.1 cannot be listed without PyTorch). Standard library only: the simulator's image
carries this package too.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .options import Option

_DIRECTORY = Path(__file__).parent
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:rc(\d+))?(?:\.post(\d+))?")


@dataclass(frozen=True)
class Catalogue:
    """What one release accepts; `options` in the order in which SGLang registers them."""

    release: str
    options: tuple[Option, ...]

    @functools.cached_property
    def flags(self) -> Mapping[str, Option]:
        return {flag: option for option in self.options for flag in option.flags}

    def starting_with(self, prefix: str) -> tuple[str, ...]:
        """The flags that argparse would take `prefix` for."""
        return tuple(flag for flag in self.flags if flag.startswith(prefix))


@functools.cache
def releases() -> tuple[str, ...]:
    """The releases that are in the catalogue, oldest first."""
    return tuple(sorted((path.stem for path in _DIRECTORY.glob("*.json")), key=order))


def order(release: str) -> tuple[int, int, int, float, int]:
    """Sorts releases by age: 0.5.9 < 0.5.10rc0 < 0.5.10 < 0.5.10.post1. Raises ValueError for anything else."""
    matched = _VERSION.fullmatch(release)
    if not matched:
        raise ValueError(f"'{release}' is not a release like 0.5.23 or 0.5.10.post1")
    major, minor, patch, candidate, post = matched.groups()
    before_release = float(candidate) if candidate else float("inf")
    return int(major), int(minor), int(patch), before_release, int(post or 0)


def release_of(image: str) -> str | None:
    """The release that an image's tag names, None for `latest`, `dev-…`, other words and no tag at all.

    `lmsysorg/sglang:v0.5.23-cu129-runtime` is 0.5.23, `…:v0.5.6.post2-rocm700-mi35x` is 0.5.6.post2.
    """
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    matched = re.match(rf"v?({_VERSION.pattern})(?=$|[-_])", tag)
    return matched[1] if matched else None


@functools.cache
def catalogue(release: str) -> Catalogue:
    """The arguments of a release in the catalogue. Raises KeyError for others; see `neighbours`."""
    return from_image(_read(release))


def neighbours(release: str) -> tuple[str, ...]:
    """The releases by which one that is not in the catalogue is judged: the next older and the next newer.

    One of the two is missing for what is older or newer than all.
    """
    older = [known for known in releases() if order(known) < order(release)]
    newer = [known for known in releases() if order(known) > order(release)]
    return (*older[-1:], *newer[:1])


def from_image(data: Mapping[str, Any]) -> Catalogue:
    """The arguments that an image listed itself (the same shape as the catalogue's files)."""
    return Catalogue(str(data["sglang"]), tuple(Option.of(entry) for entry in data["options"]))


def last_with(flag: str) -> str | None:
    """The newest release that knows `flag` exactly, None where none does."""
    for release in reversed(releases()):
        if _knows(release, flag):
            return release
    return None


def first_with(flag: str) -> str | None:
    """The oldest release that knows `flag` exactly, None where none does."""
    for release in releases():
        if _knows(release, flag):
            return release
    return None


def _knows(release: str, flag: str) -> bool:
    return any(flag in entry["flags"] for entry in _read(release)["options"])


@functools.cache
def _read(release: str) -> Mapping[str, Any]:
    if release not in releases():
        raise KeyError(release)
    data: Mapping[str, Any] = json.loads((_DIRECTORY / f"{release}.json").read_text("utf-8"))
    return data
