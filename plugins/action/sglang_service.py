"""Hand secrets to the module `sglang_service`: read here, sent as no_log arguments, never in a variable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.action_inputs import files_of, plain, runtime_for, secrets_for, written
from sglang_ops.planning.beside import name_beside


class ActionModule(ActionBase):
    """`sglang_service` with the secrets of the planned services."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        arguments = plain(self._task.args)
        planned = [service for service in arguments.get("services", []) if service.get("secrets")]
        if planned and arguments.get("state", "present") == "present":
            every = written(files_of(task_vars or {}, self._templar))
            known = {item.service_name: item for item in every}
            known |= {item.gateway.service_name: item.gateway for item in every if item.gateway}
            known |= {name_beside(name): item for name, item in known.items()}
            pairs = [(service, known[service["name"]]) for service in planned]
            arguments["secrets"] = {service["name"]: secrets_for(service, item) for service, item in pairs}
            arguments["runtime"] = {service["name"]: runtime_for(service, item) for service, item in pairs}
        return result | self._execute_module("sglang_service", module_args=arguments, task_vars=task_vars)
