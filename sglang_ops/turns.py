"""In which order the services of one host change: what serves behind a gateway one by one, the rest together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Service = Mapping[str, Any]
RUNS = ("restart", "stop")  # actions on a service that runs until then


def turns(services: Sequence[Service]) -> list[list[Service]]:
    """The services about which something is to be done, in groups that change one after the other.

    First all that cannot be missed: those that do not run, are only to be asked, or have no gateway that could send
    their requests elsewhere. Then each of the others alone, so that the others take its requests.
    """
    due = [item for item in services if item["action"] != "none"]
    shared = {tuple(item.get("group") or ()) for item in due}
    if any(shared):  # the hosts of a group see the same turns: each service alone where all have the same hosts
        return [[item] for item in due] if len(shared) == 1 else [due]
    alone = [item for item in due if item["action"] in RUNS and item.get("gateways")]
    together = [item for item in due if item not in alone]
    return ([together] if together else []) + [[item] for item in alone]


def leaving(services: Sequence[Service]) -> list[Mapping[str, Any]]:
    """What gateways are told before these services change: one that answers, and is only asked again, stays."""
    gone = [item for item in services if not _stays(item)]
    return [entry for item in gone for key in ("gateways", "former") for entry in item.get(key) or ()]


def returned(services: Sequence[Service]) -> list[Mapping[str, Any]]:
    """By what gateways know these services once the release of before serves again."""
    return [entry for item in services for entry in item.get("former") or item.get("gateways") or ()]


def surging(services: Sequence[Service]) -> list[Service]:
    """The second servers that stand beside these services while they change."""
    return [item["surge"] for item in services if item.get("surge")]


def asides(services: Sequence[Service]) -> list[Mapping[str, Any]]:
    """What must be gone when these services have changed: second servers, of an earlier run too."""
    return [item["aside"] for item in services if item.get("aside")]


def tried(services: Sequence[Service], change: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For the history, the releases that were tried on second servers and never reached the services themselves."""
    return [
        {
            **change, "name": item["name"], "verb": "deploy", "release": item["release"], "image": item["image"],
            "image_digest": item["image_digest"], "model": _model(item),
        }
        for item in services
        if item.get("surge")
    ]  # fmt: skip


def _model(item: Service) -> str | None:
    source = item["content"].get("model") or {}
    return source.get("commit") or source.get("repo")


def _stays(item: Service) -> bool:
    return bool(item["action"] == "check" and item.get("healthy"))


def copies(services: Sequence[Service], before: int) -> list[Service]:
    """The services of turns that are over, the last first, that go back when that of the turn `before` fails.

    Those that serve the same model behind the same gateway: clients are to get one release from a host. What several
    hosts serve together stays.
    """
    made = turns(services)
    behind = {mark for item in made[before] for mark in _marks(item)}
    over = [item for turn in made[:before] for item in turn]
    return [item for item in reversed(over) if _changed(item) and behind & _marks(item)]


def _marks(item: Service) -> set[tuple[str, str]]:
    model = str((item.get("gate") or {}).get("served_model_name"))
    return {(str(entry["service"]), model) for entry in item.get("gateways") or ()}


def _changed(item: Service) -> bool:
    old = item.get("deployed_stable")
    return bool(item["action"] in ("start", "restart") and old and old != item["release"] and not item.get("group"))


def back(item: Service) -> dict[str, Any]:
    """The service as `sglang_service: rolled_back` takes it: to its last stable release before this run."""
    return {**item, "to": item["deployed_stable"]}
