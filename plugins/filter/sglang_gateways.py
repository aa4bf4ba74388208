"""Which gateways are told about which servers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops import turns


def gateways(entries: Iterable[Any]) -> list[dict[str, Any]]:
    """[{"host", "service", "workers": [url, …]}] from a plan's entries {"host", "service", "url"}, in any nesting.

    One for each gateway on each of its hosts, in the order in which they come first.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for entry in _flat(entries):
        urls = found.setdefault((str(entry["host"]), str(entry["service"])), [])
        if entry["url"] not in urls:
            urls.append(str(entry["url"]))
    return [{"host": host, "service": service, "workers": urls} for (host, service), urls in found.items()]


def _flat(entries: Iterable[Any]) -> Iterable[Mapping[str, Any]]:
    for entry in entries:
        if isinstance(entry, Mapping):
            yield entry
        else:
            yield from _flat(entry)


def changing(services: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    """The planned services of one kind, "server" or "gateway", about which something is to be done."""

    def due(service: Mapping[str, Any]) -> bool:
        members = service.get("members") or {}
        return bool(service["action"] != "none" or members.get("join") or members.get("leave"))

    return [service for service in services if service["kind"] == kind and due(service)]


def only(plan: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The plan of a host with its services of one kind."""
    return {**plan, "services": [service for service in plan["services"] if service["kind"] == kind]}


class FilterModule:
    """What the tasks ask of a plan with gateways."""

    def filters(self) -> dict[str, Any]:
        return {
            "sglang_gateways": gateways,
            "sglang_changing": changing,
            "sglang_only": only,
            "sglang_turns": turns.turns,
            "sglang_leaving": turns.leaving,
            "sglang_copies": turns.copies,
            "sglang_back": turns.back,
            "sglang_returned": turns.returned,
            "sglang_surging": turns.surging,
            "sglang_asides": turns.asides,
            "sglang_tried": turns.tried,
        }
