"""Whose list of arguments counts for an image: its own, its release's, or that of the nearest releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sglang_ops.catalog import Catalogue, catalogue, from_image, neighbours, releases
from sglang_ops.catalog.options import Option


@dataclass(frozen=True)
class Grounds:
    """The list to judge by, and how far it can be trusted.

    `exact` is False where the list is not of the image's own release; `caution` then says so. `complete` is True
    where the image has listed itself: plugins and platforms may add choices that the catalogue lacks. `only` has
    the flags that one of two neighbours lacks, with the release that has them.
    """

    catalogue: Catalogue
    name: str
    exact: bool = True
    complete: bool = False
    caution: str | None = None
    only: Mapping[str, str] = field(default_factory=dict)


def grounds(release: str | None, image_list: Mapping[str, Any] | None) -> Grounds:
    """By what to judge; `release` None is an image whose tag names none."""
    if image_list is not None:
        listed = from_image(image_list)
        return Grounds(listed, f"the image itself (SGLang {listed.release})", complete=True)
    if release in releases():
        return Grounds(catalogue(release), f"SGLang {release}")
    newest = releases()[-1]
    if release is None:
        caution = (
            "The image's tag names no SGLang release: the arguments are judged by those of "
            f"{newest}, the newest known here. Name the release in the tag, like v{newest}."
        )
        return Grounds(catalogue(newest), f"SGLang {newest}, the newest known", exact=False, caution=caution)
    nearest = [catalogue(known) for known in neighbours(release)]
    names = " and ".join(near.release for near in nearest)
    caution = f"SGLang {release} is not in the catalogue: the arguments are judged by those of {names}."
    merged, only = _merged(*nearest) if len(nearest) == 2 else (nearest[0], {})
    return Grounds(merged, f"SGLang {names}", exact=False, caution=caution, only=only)


def _merged(older: Catalogue, newer: Catalogue) -> tuple[Catalogue, dict[str, str]]:
    """What one of the two accepts, and which flags only one has."""
    options = [_wider(option, older.flags.get(option.flags[0])) for option in newer.options]
    for option in older.options:
        gone = tuple(flag for flag in option.flags if flag not in newer.flags)
        options += [replace(option, flags=gone)] if gone else []
    only = {flag: older.release for flag in older.flags if flag not in newer.flags}
    only |= {flag: newer.release for flag in newer.flags if flag not in older.flags}
    return Catalogue(f"{older.release} or {newer.release}", tuple(options)), only


def _wider(option: Option, other: Option | None) -> Option:
    """The option with the choices of both."""
    if other is None or option.choices is None:
        return option
    if other.choices is None:
        return replace(option, choices=None)
    added = tuple(choice for choice in other.choices if choice not in option.choices)
    return replace(option, choices=(*option.choices, *added))
