"""Tell a host that has what hosts of the run lack to hand it on for a while."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 (Ansible's own name for it)
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.action_inputs import plain
from sglang_ops.fleet import told_to


class ActionModule(ActionBase):
    """The module `sglang_share`. A host that cannot share is passed over: the others ask the next one."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        host = str(self._task.delegate_to or variables["inventory_hostname"])
        told = told_to(host, variables, plain(self._task.args["peers"]), Path(C.DEFAULT_LOCAL_TMP))
        if not told:
            return result | {"changed": False, "skipped": True}
        try:
            answer = self._execute_module(module_args={"peers": told}, task_vars=variables)
        except AnsibleConnectionFailure as error:
            answer = {"failed": True, "msg": str(error)}
        if answer.get("failed") or answer.get("unreachable"):
            warning = f"{host} does not share what it has: {answer.get('msg')}"
            answer = {"sglang_ops": {"kind": "share", "warnings": [warning]}}
        return result | {"changed": False} | answer
