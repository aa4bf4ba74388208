"""What the tasks of a run have registered, host by host, without everything else that Ansible knows of a host.

``hostvars[name]`` puts all variables of a host together each time, which takes milliseconds. Where every host asks that
about every other one, a fleet of a hundred costs minutes of the controller's time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

RESULT = "__sglang_server_result"  # what roles/sglang_server/tasks/{plan,target}.yml register


def plan_of(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plan of a host, made earlier in this run; {} where there is none."""
    result = variables.get(RESULT) or {}
    plan: Mapping[str, Any] = (result.get("sglang_ops") or {}).get("plan") or {}
    return plan


class Registered(Mapping[str, Mapping[str, Any]]):
    """`hostvars` with registered results and set facts alone; all of it where this Ansible keeps them elsewhere."""

    def __init__(self, hostvars: Mapping[str, Mapping[str, Any]]) -> None:
        self._hostvars = hostvars
        manager = getattr(hostvars, "_variable_manager", None)
        self._kept = getattr(manager, "_nonpersistent_fact_cache", None)

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        if isinstance(self._kept, Mapping):
            found: Mapping[str, Any] = self._kept.get(str(name)) or {}
            return found
        return self._hostvars[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hostvars)

    def __len__(self) -> int:
        return len(self._hostvars)


def cheaply(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The filters, given what hosts have registered where the caller writes `hostvars`."""
    return {name: _given_registered(function) for name, function in filters.items()}


def _given_registered(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*(Registered(item) if hasattr(item, "_variable_manager") else item for item in arguments))

    return call
