"""Fetch models with the module of the same name, showing its progress and handing it the hub's token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 (Ansible's own name for it)
from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.action_inputs import deployments_of, hub_token, plain
from sglang_ops.ansible_action import ProgressAction
from sglang_ops.fleet import told_to


class ActionModule(ProgressAction):
    """The module `sglang_model`; the tokens are read here and sent as a no_log argument."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        variables = task_vars or {}
        arguments = plain(self._task.args)
        known = {item.service_name: hub_token(item) for item in deployments_of(variables, self._templar)}
        arguments["tokens"] = [known.get(model.pop("service", ""), "") for model in arguments["models"]]
        arguments["peers"] = self._peers(arguments.get("peers") or {}, variables) or None
        return result | self.execute_with_progress(module_args=arguments, task_vars=variables)

    def _peers(self, options: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """From whom this host gets models and compiled kernels, and whether others get them from it."""
        return told_to(str(variables["inventory_hostname"]), variables, options, Path(C.DEFAULT_LOCAL_TMP))
