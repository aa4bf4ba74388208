"""Take servers out of a gateway or bring them in, on the gateway's host, for the host whose servers they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.action_inputs import plain


class ActionModule(ActionBase):
    """The module `sglang_gateway`. A gateway whose host cannot be reached is the gateway's failure, not the server's.

    Servers may leave such a gateway, since it sends nothing; they cannot join it.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = plain(self._task.args)
        variables = task_vars or {}
        try:
            answer = self._execute_module(module_args=arguments, task_vars=variables)
        except AnsibleConnectionFailure as error:
            answer = {"unreachable": True, "msg": str(error)}
        if answer.get("unreachable"):
            host = self._task.delegate_to or variables.get("inventory_hostname")
            message = f"{host}, which runs {arguments['service']}, cannot be reached: {answer.get('msg')}"
            state = arguments.get("state", "joined")
            report = {"kind": "gateway", "service": arguments["service"], "workers": [], "warnings": [message]}
            if state in ("left", "drained", "gone"):
                return result | {"changed": False, "sglang_ops": report}
            report |= {"state": state, "failed": True, "warnings": []} | ({"exit_hint": 4} if state == "joined" else {})
            return result | {"failed": True, "changed": False, "msg": message, "sglang_ops": report}
        return result | answer
