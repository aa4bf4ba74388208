"""In which order the hosts of a run are locked. Pure; `sglang_ops.lock_turns.Turns` says why there is one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sglang_ops.registered import RESULT


def ordered(names: Sequence[str]) -> list[str]:
    """By name, numbers by value: the same for whoever names the hosts alike, and most often the inventory's order."""
    return sorted(names, key=lambda name: ([_part(part) for part in re.split(r"(\d+)", name)], name))


def _part(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (0, text)


def locking(names: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The hosts that will ask for their lock, in its order: those that have something to do, or were not asked yet."""
    return ordered([name for name in names if _works(hostvars[name].get(RESULT) or {})])


def _works(result: Mapping[str, Any]) -> bool:
    told = result.get("sglang_ops") or {}
    return bool((told.get("plan") or {}).get("steps", True)) and bool(told.get("services", True))
