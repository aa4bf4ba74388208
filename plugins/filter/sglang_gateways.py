"""Which gateways are told about which servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


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


class FilterModule:
    """`sglang_gateways`: from servers to the gateways in front of them."""

    def filters(self) -> dict[str, Any]:
        return {"sglang_gateways": gateways}
