"""Send models from a bundle of this machine to a host, and have the module of the same name take them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops import bundle_models
from sglang_ops.action_inputs import hubs_of, plain
from sglang_ops.bundle import Bundle
from sglang_ops.errors import OpsError
from sglang_ops.sending import SendingAction


class ActionModule(SendingAction):
    """Arguments: `path` of the bundle; `hub`, the cache on the host. Without it, it is where the host's deployment
    of the model has its cache, else in `hf_home`."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        variables = task_vars or {}
        given = plain(self._task.args)
        try:
            bundle = Bundle.open(Path(given["path"]))
            hubs = hubs_of(variables, self._templar, given["hf_home"])
            usual = f"{given['hf_home']}/hub"
            models = [
                asdict(model) | {"hub": given.get("hub") or hubs.get(model.repo, usual)}
                for model in bundle_models.models(bundle)
            ]
            return result | self.deliver("sglang_model_import", {"models": models}, bundle.pieces, variables)
        except OpsError as error:
            return result | self.failed(error)
