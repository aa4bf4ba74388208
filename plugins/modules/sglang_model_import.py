#!/usr/bin/python
"""Take models that were sent to a host as files into its Hugging Face cache."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_model_import
short_description: Take models into the Hugging Face cache from files
description:
  - Looks which models a host lacks and which of their files must be sent (O(arrived=false)), and takes them once they
    have been sent. The action plugin of the same name does both, and the sending between them.
  - Files count only once their checksum is right; deploy then finds the model whole, and asks no hub.
options:
  models:
    description: The models that must be there.
    type: list
    elements: dict
    required: true
    suboptions:
      hub:
        description: The cache's directory on the host.
        type: path
        required: true
      repo:
        description: The repository, C(organization/name).
        type: str
        required: true
      revision:
        description: Branch, tag or commit by which deployments name it.
        type: str
        required: true
      commit:
        description: The commit.
        type: str
        required: true
      files:
        description: Its files, each with C(name), C(blob), C(size) and C(sha256).
        type: list
        elements: dict
        required: true
  arrived:
    description: Whether the files have been sent.
    type: bool
    default: false
  progress_token:
    description: Name under which the module reports its progress on the host.
    type: str
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Look which files must be sent
  sglang_model_import:
    models:
      - hub: /data/huggingface/hub
        repo: Qwen/Qwen3-8B
        revision: main
        commit: b968826d9c46dd6066d109eabc6255188de91218
        files:
          - name: config.json
            blob: 8bf5f9d0d8d7a30d5a2a1e2d1f9b8b6e1c9b1234
            size: 728
            sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
"""

RETURN = r"""
send:
  description: The files that must be sent, each with its C(name), C(part) (where to), C(offset) and C(size).
  returned: where O(arrived) is false
  type: list
  elements: dict
sglang_ops:
  description: The models with their commits, their sizes, and whether they are C(there) or need C(import).
  returned: always
  type: dict
"""

import os

from ansible.module_utils import sglang_host_arrivals as arrivals
from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_command import free_bytes, size
from ansible.module_utils.sglang_host_progress import Progress

SPARE_BYTES = 100 * 10**6


def is_there(model):
    """Whether deploy finds the model whole, by its revision and as the commit that the bundle has."""
    known = models.cached(model["hub"], model["repo"], model["revision"])
    return known["complete"] and known["commit"] == model["commit"]


def described(wanted, missing):
    """The models for the result. Pure."""
    return [
        {"name": model["repo"], "digest": model["commit"], "action": "import" if model in missing else "there",
         "bytes": sum({item["blob"]: item["size"] for item in model["files"]}.values())}
        for model in wanted
    ]


def coming(missing):
    """The blobs of the missing models, each once. What a download left unfinished is gone on with."""
    found = {}
    for model in missing:
        for item in model["files"]:
            path = os.path.join(models.blobs(model["hub"], model["repo"]), item["blob"])
            name = os.path.relpath(path, model["hub"])  # as the bundle names it too
            found[path] = arrivals.Arrival(name, path, path + ".incomplete", item["size"], item["sha256"])
    return list(found.values())


def refusal(missing):
    """Why the models do not fit, "" where they do."""
    for hub in sorted({model["hub"] for model in missing}):
        here = [model for model in missing if model["hub"] == hub]
        need, free = arrivals.remaining(coming(here)), free_bytes(hub)
        if need + SPARE_BYTES > free:
            return "%s needs %s more in %s, which has %s free. Free space there, or name a larger disk with --hub." % (
                " and ".join(model["repo"] for model in here), size(need), hub, size(free))
    return ""


def claimed(model, progress):
    """Nobody else writes this model into this cache within the block, on no host that shares it."""
    def waiting(host):
        progress.report("%s brings %s into this cache" % (host, model["repo"]))

    return claims.holding(model["hub"], os.path.basename(models.directory(model["hub"], model["repo"])), waiting)


def begin(missing, progress):
    """Note what shall come, so that what was cut off can be told from what is whole. Returns what is missing still."""
    for model in missing:
        with claimed(model, progress):
            if not is_there(model):  # whoever was at it may have brought it
                models.intend(model["hub"], model["repo"], model)
    return [model for model in missing if not is_there(model)]


def take(missing, progress):
    """Check what has arrived, put it in its place, and make the snapshots. Raises ArrivalError, OSError."""
    for model in missing:
        with claimed(model, progress) as claim:
            if is_there(model):
                continue
            arrivals.accept_all(coming([model]), progress.report)
            claim.check()
            enter(model)


def enter(model):
    """Make the snapshot of blobs that are there, and record that it is whole."""
    hub = model["hub"]
    home = models.directory(hub, model["repo"])
    for item in model["files"]:
        link = os.path.join(home, "snapshots", model["commit"], item["name"])
        target = os.path.relpath(os.path.join(home, "blobs", item["blob"]), os.path.dirname(link))
        if os.path.islink(link) and os.readlink(link) == target:
            continue
        os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
        temporary = link + ".new"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(target, temporary)
        os.replace(temporary, link)
    models.remember(hub, model["repo"], model["revision"], model)


def main():
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "dict", "required": True, "options": {
                "hub": {"type": "path", "required": True},
                "repo": {"type": "str", "required": True},
                "revision": {"type": "str", "required": True},
                "commit": {"type": "str", "required": True},
                "files": {"type": "list", "elements": "dict", "required": True},
            }},
            "arrived": {"type": "bool", "default": False},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    wanted = module.params["models"]
    missing = [model for model in wanted if not is_there(model)]
    report = {"kind": "bundle", "items": described(wanted, missing)}
    result = {"changed": bool(missing), "sglang_ops": report, "diff": {
        "before_header": "models", "after_header": "models", "before": "",
        "after": "".join("%s@%s\n" % (model["repo"], model["commit"][:12]) for model in missing)}}
    why_not = refusal(missing)
    if why_not:
        module.fail_json(exit_hint=7, sglang_ops=report, msg=why_not)
    if module.check_mode:
        module.exit_json(send=arrivals.wanted(coming(missing)), **result)
    try:
        with Progress(module.params["progress_token"], "model_import") as progress:
            if not module.params["arrived"]:
                module.exit_json(send=arrivals.wanted(coming(begin(missing, progress))), **result)
            take(missing, progress)
    except claims.Lost:
        module.fail_json(msg="This host stood still for more than %d s, and another one brings the model into the "
                         "cache. Run this again to see how far it is." % claims.STALE_SECONDS, sglang_ops=report)
    except (arrivals.ArrivalError, OSError) as error:
        module.fail_json(msg=str(error), sglang_ops=report)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
