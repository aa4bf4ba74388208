"""What every deployed service is doing: one read-only execution, told in the words of `status`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.action_inputs import plain
from sglang_ops.gateways import address_of
from sglang_ops.planning.status import gateways, status


def strangers(fronts: list[dict[str, Any]], task_vars: Mapping[str, Any]) -> None:
    """Mark the servers of gateways whose host is not in the inventory any more."""
    if not any(front["workers"] for front in fronts):
        return
    hostvars = task_vars["hostvars"]
    known = {address_of(str(host), hostvars[host]) for host in task_vars["groups"]["all"]}
    for worker in (worker for front in fronts for worker in front["workers"] or ()):
        worker["stranger"] = urlsplit(worker["url"]).hostname not in known


class ActionModule(ActionBase):
    """`sglang_status`: the module `sglang_facts` with loads, as one row a service."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        arguments = plain(self._task.args)
        asked = {"engine": arguments.get("container_engine", "docker"), "loads": True}
        answer = self._execute_module("sglang_facts", module_args=asked, task_vars=task_vars)
        if "facts" not in answer:
            return result | answer
        facts, names = answer["facts"], arguments.get("services") or []
        fronts = gateways(facts, names)
        strangers(fronts, task_vars or {})
        told = {"kind": "status", "services": status(facts, names), "gateways": fronts}
        return result | {"changed": False, "sglang_ops": told}
