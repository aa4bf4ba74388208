"""Look after the cache of models with the module of the same name, where the host's deployments say it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.action_inputs import FILES_VARIABLE, SECTIONS, deployments_of, plain
from sglang_ops.ansible_action import ProgressAction
from sglang_ops.errors import OpsError
from sglang_ops.planning import Settings
from sglang_ops.planning.command import hub_cache
from sglang_ops.planning.questions import repository
from sglang_ops.spec import Deployment


class ActionModule(ProgressAction):
    """The module `sglang_models`: `hf_home` becomes `hubs`, and the models that deployments name are kept."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        variables = task_vars or {}
        arguments = plain(self._task.args)
        settings = Settings(hf_home=arguments.pop("hf_home"))
        try:
            deployments = self._deployments(variables)
        except OpsError as error:
            message = f"{error.message} {error.fix or ''}".strip()
            return result | {"failed": True, "msg": message, "exit_hint": 7, "sglang_ops": {"kind": "models"}}
        hubs = [hub_cache(item, settings) for item in deployments]
        wanted = [repo for repo, _ in map(repository, deployments) if repo]
        arguments["hubs"] = list(dict.fromkeys([f"{settings.hf_home}/hub", *hubs]))
        arguments["keep"] = [*arguments.get("keep", []), *wanted]
        return result | self.execute_with_progress(module_args=arguments, task_vars=variables)

    def _deployments(self, variables: Mapping[str, Any]) -> tuple[Deployment, ...]:
        """The deployments of this host; none where there is no file and its variables hold none."""
        if variables.get(FILES_VARIABLE) or variables.keys() & set(SECTIONS[:2]):
            return deployments_of(variables, self._templar)
        return ()
