"""Hosts that serve one model together change together: what the plan of one means for the others. Pure.

A member that starts alone waits in vain: the others met long ago. So where one is to start, all of its group stop and
start; where one is only to be asked whether it serves, all are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Plan = Mapping[str, Any]

_STRENGTH = {"none": 0, "check": 1, "start": 2, "restart": 2}


class Due(NamedTuple):
    """What a member does because of `host`, another one of its group."""

    action: str
    host: str


NOTHING = Due("none", "")


def stronger(action: str, than: str) -> bool:
    """Whether `action` asks more of a group than another."""
    return _STRENGTH[action] > _STRENGTH[than]


def due(name: str, group: Sequence[str], host: str, plans: Mapping[str, Plan]) -> Due:
    """What the others of the group of `host` need of its service; `plans` are those of all hosts that have one.

    One whose plan had to be put off has no model yet, and so does not serve.
    """
    found = NOTHING
    for mate in group:
        plan = plans.get(mate) or {}
        action = _action(name, plan) if mate != host else "none"
        if stronger(action, found.action):
            found = Due("restart" if _STRENGTH[action] > 1 else action, mate)
    return found


def pulled(host: str, plan: Plan, plans: Mapping[str, Plan]) -> bool:
    """Whether another host of a group needs more of this one than its own plan has."""
    return any(
        stronger(due(service["name"], service["group"], host, plans).action, service["action"])
        for service in grouped(plan.get("services") or ())
    )


def grouped(services: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The services that other hosts serve together with this one."""
    return [service for service in services if service.get("group")]


def _action(name: str, plan: Plan) -> str:
    if plan.get("deferred"):
        return "start"
    return next((str(item["action"]) for item in plan.get("services") or () if item["name"] == name), "none")


class Mate(NamedTuple):
    """Another host of a group: whether it still changes, and what it said at the step that is asked about."""

    name: str
    playing: bool
    told: Mapping[str, Any]


def lost(mates: Sequence[Mate], phase: str) -> Iterator[str]:
    """Why a group cannot go on, one sentence for each member that did not come as far as this one.

    `phase` is what the step's report says of itself; "" where the step has none.
    """
    for mate in mates:
        report = mate.told.get("sglang_ops") or {}
        if mate.told.get("failed"):
            yield f"{mate.name} failed ({str(mate.told.get('msg') or 'it did not say why').rstrip('.')})"
        elif not mate.playing:
            yield f"{mate.name} has dropped out"
        elif not mate.told or (phase and report.get("phase") != phase):
            yield f"{mate.name} did not come that far"
