"""Read the services' journal and, on request, follow it: one light command a time over the same connection."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops import journal
from sglang_ops.action_inputs import plain

POLL_SECONDS = 1.0


class ActionModule(ActionBase):
    """`sglang_logs`: services, lines, since, follow; returns the lines as `sglang_ops.lines`."""

    TRANSFERS_FILES = False
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        arguments = plain(self._task.args)
        services = arguments.get("services") or []
        since = ["--since", arguments["since"]] if arguments.get("since") else []
        first = self._low_level_execute_command(
            journal.command(services, "--lines", str(arguments.get("lines", 100)), *since)
        )
        if first.get("rc"):
            return result | {"failed": True, "msg": f"journalctl says: {first.get('stderr', '').strip()}"}
        lines, cursor = journal.parse(first["stdout"])
        if arguments.get("follow"):
            self._follow(str((task_vars or {})["inventory_hostname"]), services, lines, cursor)
        return result | {"changed": False, "sglang_ops": {"kind": "logs", "lines": lines, "cursor": cursor}}

    def _follow(self, host: str, services: list[str], lines: list[dict[str, str]], cursor: str) -> None:
        """Tell new lines until the run is interrupted."""
        while True:
            self._tell(host, lines)
            time.sleep(POLL_SECONDS)
            after = ["--after-cursor", cursor] if cursor else ["--since", "now"]
            output = self._low_level_execute_command(journal.command(services, *after))
            lines, latest = journal.parse(output.get("stdout", ""))
            cursor = latest or cursor

    def _tell(self, host: str, lines: list[dict[str, str]]) -> None:
        path = os.environ.get("SGLANG_OPS_PROGRESS")
        if path:
            with Path(path).open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps({"host": host, **line}) + "\n" for line in lines)
            return
        for line in lines:
            self._display.display(f"{host} {line['service']} | {line['text']}")
