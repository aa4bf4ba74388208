"""Hold a host that serves a model together with others where one of them fails. Nothing runs on the hosts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.action_inputs import plain
from sglang_ops.groups import apart, staying

UNREACHABLE = 6


class ActionModule(ActionBase):
    """`sglang_together`: fails where another member of a group has not come as far as this host.

    `services` are those of the plan, `after` the registers of the steps that are behind, `phase` the gate's one among
    them, `own` what the gate said here. With `leaving`, the step is that of leaving the gateways, and nothing has been
    stopped yet.
    """

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        given = plain(self._task.args)
        phase, after, leaving = given.get("phase") or "", given.get("after") or [], bool(given.get("leaving"))
        services = given.get("services") or []
        found = staying(services, task_vars) if leaving else apart(services, phase, after, task_vars)
        if not found:
            return result | {"changed": False, "sglang_ops": {"kind": "together", "executions": 0}}
        told = [f"{name} is served by several hosts together: {'; '.join(why)}." for name, why in found.items()]
        report: dict[str, Any] = {"kind": "gate" if after else "together", "executions": 0, "services": []}
        if after:
            report["services"] = [_of_gate(item, found) for item in _own(given.get("own"), found)]
        if leaving:
            report |= {"state": "left", "failed": True}
        failed: dict[str, Any] = {"failed": True, "changed": False, "msg": " ".join(told), "sglang_ops": report}
        away = not after and _unreachable(services, found, task_vars)
        return result | failed | ({"exit_hint": UNREACHABLE} if away else {})


def _own(gated: Any, found: dict[str, list[str]]) -> list[dict[str, Any]]:
    """What the gate said of this host's services; of those whose group failed, at least that they exist."""
    services = list((gated or {}).get("services") or [])
    known = {item["name"] for item in services}
    blank = {"release": None, "ok": False, "layers": [], "cause": None, "log": []}
    return services + [{"name": name, **blank} for name in found if name not in known]


def _of_gate(item: dict[str, Any], found: dict[str, list[str]]) -> dict[str, Any]:
    why = found.get(str(item["name"]))
    return item if why is None else {**item, "ok": False, "cause": "; ".join(why)}


def _unreachable(services: list[dict[str, Any]], found: dict[str, list[str]], task_vars: Any) -> bool:
    """Whether it is the way to another host that is missing."""
    mates = {host for service in services if service["name"] in found for host in service["group"]}
    told = [task_vars["hostvars"][host].get("__sglang_server_result") or {} for host in mates]
    return any(item.get("unreachable") for item in told)
