"""Read the services' journal and, on request, follow it over the same connection."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from ansible.module_utils import sglang_host_journal as journal
from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.action_inputs import plain

POLL_SECONDS = 1.0


class ActionModule(ActionBase):
    """`sglang_logs`; with `follow`, one light command a second instead of a module execution."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        arguments = plain(self._task.args)
        follow = arguments.pop("follow", False)
        result |= self._execute_module("sglang_logs", module_args=arguments, task_vars=task_vars)
        if follow and not result.get("failed") and not result.get("unreachable"):
            self._follow(str((task_vars or {})["inventory_hostname"]), result["sglang_ops"], arguments)
        return result

    def _follow(self, host: str, first: dict[str, Any], arguments: dict[str, Any]) -> None:
        cursor = first["cursor"]
        names = arguments.get("services") or sorted({line["service"] for line in first["lines"]})
        self._tell(host, first["lines"])
        while True:
            time.sleep(POLL_SECONDS)
            after = ["--after-cursor", cursor] if cursor else ["--since", "now"]
            output = self._low_level_execute_command(shlex.join([*journal.command(names), *after]))
            lines, new = journal.parse(output.get("stdout", ""))
            cursor = new or cursor
            self._tell(host, lines)

    def _tell(self, host: str, lines: list[dict[str, str]]) -> None:
        path = os.environ.get("SGLANG_OPS_PROGRESS")
        if path:
            with Path(path).open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps({"host": host, **line}) + "\n" for line in lines)
            return
        for line in lines:
            self._display.display(f"{host} {line['service']} | {line['text']}")
