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
    return [entry for item in services if not _stays(item) for entry in item.get("gateways") or ()]


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
