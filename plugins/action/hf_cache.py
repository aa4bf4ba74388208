"""Prepare the cache with the module of the same name, showing its progress and what it found on devices."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.utils.display import Display

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.ansible_action import ProgressAction

COLUMNS = ("path", "size", "model", "serial", "verdict", "reason")


class ActionModule(ProgressAction):
    """The module `hf_cache`; wherever something changes or is refused, the table of devices comes before it."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        devices = result.get("sglang_ops", {}).get("devices", [])
        if devices and (result.get("changed") or result.get("failed")):
            host = (task_vars or {}).get("inventory_hostname", "")
            steps = result["sglang_ops"]["steps"] if self._task.check_mode else []
            lines = [*table(devices), *(f"would {step}" for step in steps)]
            Display().display("\n".join(f"{host}  {line}" for line in lines))
        return result


def table(devices: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines of a table of devices, columns in line."""
    cells = [COLUMNS, *(tuple(device[name] for name in COLUMNS) for device in devices)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in cells]
