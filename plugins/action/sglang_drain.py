"""Drain a host with the module of the same name, which is told which gateways the deployment file has in front."""

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
from sglang_ops.errors import OpsError
from sglang_ops.gateways import entries_of


class ActionModule(ActionBase):
    """The module `sglang_drain`. Without a deployment file the host's own records tell which gateways there are."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = plain(self._task.args)
        variables = task_vars or {}
        try:
            arguments["gateways"] = entries_of(variables, self._templar)
        except OpsError as error:
            message = f"{error.message} {error.fix or ''}".strip()
            return result | {"failed": True, "msg": message, "exit_hint": 7}
        return result | self._execute_module(module_args=arguments, task_vars=variables)
