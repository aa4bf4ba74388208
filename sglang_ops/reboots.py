"""Which hosts stop for a reboot, and how many at a time: those that serve a model together are one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sglang_ops.groups import Hostvars, joined
from sglang_ops.rollout import grouped_sizes

DRIVER = "__nvidia_driver_installed"  # what roles/nvidia_driver/tasks/install.yml registers


def rebooting(names: Sequence[str], hostvars: Hostvars) -> list[str]:
    """Of the hosts `names` those that must be rebooted, and all that serve a model together with one of them."""
    parts = _parts(names, hostvars)
    return [name for part in parts if any(_told(hostvars[one]).get("reboot") for one in part) for name in part]


def batches(names: Sequence[str], canary: int, batch: int | str, hostvars: Hostvars) -> list[int]:
    """How many of the hosts `names`, as `rebooting` has them, go at a time."""
    return grouped_sizes(_parts(names, hostvars), canary, batch, serving=True)


def _parts(names: Sequence[str], hostvars: Hostvars) -> list[list[str]]:
    shared = {name: _told(hostvars[name]).get("shared") or () for name in names}
    return joined(names, {name: [mate for item in shared[name] for mate in item["group"]] for name in names})


def _told(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    result = variables.get(DRIVER) or {}
    told: Mapping[str, Any] = {} if result.get("failed") else result.get("sglang_ops") or {}
    return told
