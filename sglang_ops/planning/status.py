"""Rows of `status` from a host's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def status(facts: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """One row a service: what is deployed, whether it serves, how busy it is. Memory in MiB, times in seconds."""
    return [_row(service, facts) for service in facts["services"] if not names or service["name"] in names]


_LOST = {"in": "lost"}  # a member that the router does not list


def gateways(facts: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The gateways of a host, each with the servers that it lists; None where its router does not answer."""
    return [
        {"service": item["name"], "endpoint": (item.get("record") or {}).get("endpoint"), "workers": _workers(item)}
        for item in facts["services"]
        if (not names or item["name"] in names) and (item.get("record") or {}).get("kind") == "gateway"
    ]


def _workers(gateway: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Servers that the router lists, and those that it was told to leave out."""
    if gateway.get("workers") is None:
        return None
    known = gateway.get("members") or {}
    listed = [{**worker, "state": "in"} for worker in gateway["workers"]]
    urls = {worker["url"] for worker in listed}
    out = [{"url": url, "healthy": False, "load": None, "state": state} for url, state in known.items()]
    return listed + [{**row, "state": _LOST.get(row["state"], row["state"])} for row in out if row["url"] not in urls]


def _row(service: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    record = service.get("record") or {}
    gpus = record.get("gpus", [])
    memory = [
        {"gpu": gpu["index"], "used_mib": gpu["memory_used_mib"], "total_mib": gpu["memory_total_mib"]}
        for gpu in facts.get("gpus", ())
        if gpu["index"] in gpus
    ]
    probe = service.get("probe") or {"ok": False, "layers": []}
    return {
        "name": service["name"],
        "kind": record.get("kind") or "server",
        "release": service.get("release"),
        "stable": service.get("stable") == service.get("release"),
        "endpoint": record.get("endpoint"),
        "healthy": bool(probe["ok"]),
        "state": service.get("state", "inactive"),
        "image": record.get("image"),
        "image_digest": record.get("image_digest"),
        "gpus": gpus,
        "uptime_seconds": service.get("uptime_seconds"),
        "restarts": service.get("restarts", 0),
        "running": service.get("running"),
        "queued": service.get("queued"),
        "tokens_per_second": service.get("tokens_per_second"),
        "gpu_memory": memory,
        "drained": bool(facts.get("drained")) and record.get("kind") != "gateway",
        "detail": _detail(service, probe),
        "changed_by_hand": _by_hand(service),
        "rollout": _rollout(service.get("rollout")),
        "rank": (record.get("gate") or {}).get("rank"),
        "group": (record.get("gate") or {}).get("group") or [],
    }


def _by_hand(service: Mapping[str, Any]) -> str:
    """What somebody else has done to the unit, "" where nothing."""
    if service.get("unit") is None:
        return "its unit file is gone"
    return "" if service["unit"] == service.get("released_unit", service["unit"]) else "its unit was changed by hand"


def _rollout(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The roll-out that has not finished here."""
    return {key: record.get(key) for key in ("id", "who", "started", "paused")} if record else None


def _detail(service: Mapping[str, Any], probe: Mapping[str, Any]) -> str:
    """Why the service does not serve, "" when it does."""
    if service.get("unit") is None:
        return "the unit file is gone; deploy again"
    failing = [layer for layer in probe["layers"] if not layer["ok"]]
    if failing:
        return f"{failing[0]['name']}: {failing[0]['detail']}"
    if service.get("state") == "failed":
        return "crash loop: the unit gave up after five starts; see `sglang-ops logs`"
    return "" if probe["ok"] else f"the unit is {service.get('state')}"
