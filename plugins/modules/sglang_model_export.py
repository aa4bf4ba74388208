#!/usr/bin/python
"""Say which files make up a model of this host's cache."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_model_export
short_description: List the files of a model in the Hugging Face cache
description:
  - Looks, and changes nothing. The action plugin of the same name fetches the files that it lists.
options:
  hub:
    description: The cache's directory on the host.
    type: path
    required: true
  repo:
    description: The repository, C(organization/name).
    type: str
    required: true
  revision:
    description: Branch, tag or commit.
    type: str
    default: main
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: List the files of a model
  sglang_model_export:
    hub: /data/huggingface/hub
    repo: Qwen/Qwen3-8B
"""

RETURN = r"""
model:
  description: The model with C(commit) and C(files), each with C(name), C(blob), C(size), C(sha256) and C(path).
  returned: where the model is whole
  type: dict
"""

import os
import re

from ansible.module_utils import sglang_host_model as models
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_arrivals import checksum


def listed(home, snapshot, names):
    """The files of a snapshot; those that are no links into blobs/ are named by their content."""
    found = []
    for name in names:
        path = os.path.realpath(os.path.join(snapshot, name))
        blob = os.path.basename(path) if os.path.dirname(path) == os.path.realpath(os.path.join(home, "blobs")) else ""
        digest = blob if re.fullmatch("[0-9a-f]{64}", blob) else checksum(path)
        found.append({"name": name, "blob": blob or digest, "size": os.path.getsize(path), "sha256": digest,
                      "path": path})
    return found


def names_of(home, commit, snapshot):
    """The files that belong to the model: as recorded, else all that are there."""
    known, _ = models.files_of(home, commit)
    if known:
        return sorted(known)
    return sorted(os.path.relpath(os.path.join(parent, name), snapshot)
                  for parent, _, names in os.walk(snapshot) for name in names)


def main():
    module = AnsibleModule(
        argument_spec={
            "hub": {"type": "path", "required": True},
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
        },
        supports_check_mode=True,
    )
    hub, repo, revision = module.params["hub"], module.params["repo"], module.params["revision"]
    there = models.cached(hub, repo, revision)
    if not there["complete"]:
        module.exit_json(changed=False)
    home = models.directory(hub, repo)
    files = listed(home, there["path"], names_of(home, there["commit"], there["path"]))
    module.exit_json(changed=False, model={
        "repo": repo, "revision": revision, "commit": there["commit"], "files": files})


if __name__ == "__main__":
    main()
