"""Compiled kernels that hosts get from each other, as a run's events tell. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sglang_ops.events import HostState


def foreseen(host: HostState, hosts: Iterable[HostState]) -> Iterator[tuple[str, str, str]]:
    """(step, subject, why) for each cache that the host lacks, its service about to start, and that another one has."""
    others = [other for other in hosts if other is not host]
    for wanted in _of(host, "kernels"):
        given = [other.name for other in others for item in _of(other, "compiled") if _same(item, wanted)]
        if given:
            yield "kernels", str(wanted["key"]), f"none here, compiled on {given[0]}"


def brought(host: HostState) -> tuple[Mapping[str, Any], ...]:
    """What came: {"key", "giver", "files", "bytes"}."""
    return tuple(item for result in host.results.get("model", ()) for item in result.get("kernels") or ())


def _of(host: HostState, name: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = (host.result("plan").get("plan") or {}).get(name) or []
    return found


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("key", "machine"))
