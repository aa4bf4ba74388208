"""Send images from a bundle of this machine to a host, and have the module of the same name take them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops import bundle_images
from sglang_ops.action_inputs import plain
from sglang_ops.bundle import Bundle
from sglang_ops.errors import OpsError
from sglang_ops.sending import SendingAction


class ActionModule(SendingAction):
    """Arguments: `path` of the bundle, `name` and `platform` of its image, `engine`, `registry_mirrors`."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        variables = task_vars or {}
        given = plain(self._task.args)
        try:
            bundle = Bundle.open(Path(given["path"]))
            images = bundle_images.images(bundle, given.get("name") or None, given.get("platform") or "linux/amd64")
            sent = [image.as_sent(given.get("registry_mirrors") or {}) for image in images]
            asked = {"engine": given["engine"], "images": sent}
            pieces = {blob.digest: bundle.pieces[blob.name] for image in images for blob in image.blobs}
            return result | self.deliver("sglang_image_load", asked, pieces, variables)
        except OpsError as error:
            return result | self.failed(error)
