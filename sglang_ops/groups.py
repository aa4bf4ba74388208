"""Hosts that serve one model together, as the plays know them: who they are, and whether all came as far as one did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sglang_ops.planning.nodes import Group
from sglang_ops.planning.together import Mate, grouped, lost, pulled
from sglang_ops.registered import RESULT, plan_of

Hostvars = Mapping[str, Mapping[str, Any]]

BACK = "__sglang_server_back"  # what the role sglang_server registers where a change failed, last of all
LEFT = "sglang_gateway_left"  # what roles/sglang_gateway/tasks/leave.yml registers


def services_of(variables: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What was planned for a host, or, where it goes back, what it goes back to."""
    told = (variables.get(RESULT) or {}).get("sglang_ops") or {}
    services: Sequence[Mapping[str, Any]] = (told.get("plan") or told).get("services") or ()
    return services


def members(service: Mapping[str, Any]) -> Sequence[str]:
    """The hosts that serve it together, () where one does alone; of a plan, or of what a host keeps of a release."""
    found: Sequence[str] = service.get("group") or (service.get("gate") or {}).get("group") or ()
    return found


def joined(names: Sequence[str], mates: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """`names`, each alone or with all that its `mates` lead to, in the place of their first one."""
    of: dict[str, list[str]] = {name: [name] for name in names}
    for name in names:
        for mate in mates.get(name, ()):
            if mate in of and of[mate] is not of[name]:
                of[name] += of[mate]
                of.update(dict.fromkeys(of[mate], of[name]))
    place = {name: position for position, name in enumerate(names)}
    first = {id(unit): unit for unit in of.values()}
    return sorted((sorted(unit, key=place.__getitem__) for unit in first.values()), key=lambda unit: place[unit[0]])


def units(names: Sequence[str], hostvars: Hostvars) -> list[list[str]]:
    """`names` as they change: a host alone, or all that serve a model together, in the place of their first one."""
    return joined(
        names, {name: [mate for item in services_of(hostvars[name]) for mate in members(item)] for name in names}
    )


def plans_of_mates(groups: Iterable[Group | None], task_vars: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The plans of the hosts with which this one serves something together."""
    mates = {host for group in groups if group for host in group.hosts} - {str(task_vars["inventory_hostname"])}
    return {mate: plan_of(task_vars["hostvars"][mate]) for mate in mates}


def pulled_by_mates(plan: Mapping[str, Any], hostvars: Hostvars) -> bool:
    """Whether another host of a group needs more of this one than its own plan has."""
    mates = {mate for service in grouped(plan.get("services") or ()) for mate in service["group"]}
    return bool(mates) and pulled(str(plan["host"]), plan, {mate: plan_of(hostvars[mate]) for mate in mates})


def apart(
    services: Iterable[Mapping[str, Any]], phase: str, registers: Sequence[str], task_vars: Mapping[str, Any]
) -> dict[str, list[str]]:
    """By service, why its group cannot go on; {} where all have come as far as this host.

    `registers` are the variables that hold what each said at the step, `phase` what its report must say of itself.
    """
    if not registers:
        return _held(services, phase, task_vars, lambda _: [{"failed": False}])
    return _held(services, phase, task_vars, lambda mate: [mate.get(register) or {} for register in registers])


def staying(services: Iterable[Mapping[str, Any]], task_vars: Mapping[str, Any]) -> dict[str, list[str]]:
    """By service, which members of its group could not leave their gateways, and so go on serving as they do.

    Of a group, only the host that is asked has gateways to leave: the others have nothing to say here.
    """
    return _held(services, "", task_vars, lambda mate: [_said(mate.get(LEFT))])


def _held(
    services: Iterable[Mapping[str, Any]],
    phase: str,
    task_vars: Mapping[str, Any],
    told: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
) -> dict[str, list[str]]:
    """By service, why its group cannot go on. `told` finds in the variables of a host what it said at the step.

    One that failed stays in the play, so that others may go on without it, and changes no more. Of one that has left,
    or was never in the inventory, nothing is read.
    """
    host, hostvars = str(task_vars["inventory_hostname"]), task_vars["hostvars"]
    here = set(map(str, task_vars["ansible_play_hosts"]))
    found = {}
    for service in services:
        mates = [
            Mate(name, name in here and BACK not in hostvars[name], said)
            for name in members(service)
            if name != host
            for said in (told(hostvars[name]) if name in here else [{}])
        ]
        reasons = list(dict.fromkeys(lost(mates, phase)))
        if reasons:
            found[str(service["name"])] = reasons
    return found


def _said(looped: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What a loop said: of its items, the first one that failed."""
    items = (looped or {}).get("results") or ()
    return next((item for item in items if item.get("failed")), {"failed": False})
