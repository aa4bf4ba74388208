#!/usr/bin/python
"""Bring hub models into a host's cache."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_model
short_description: Download hub models into the Hugging Face cache of a host
description:
  - Runs the C(hf) of the engine's own image, so that the host needs no Python packages.
  - Compiled kernels that another host of the run has (O(peers)) are brought too, where there are none.
  - A model that is whole in the cache is left alone, and the hub is then not asked; a download that was
    interrupted is continued.
  - The token is handed to the container on standard input, never as an argument, variable or file of the host.
options:
  engine:
    description: The container engine.
    type: str
    choices: [docker, podman]
    default: docker
  models:
    description: The models that must be there.
    type: list
    elements: dict
    required: true
    suboptions:
      image:
        description: The image whose C(hf) is used, by digest; it must be on the host.
        type: str
        required: true
      repo:
        description: The repository, C(organization/name).
        type: str
        required: true
      revision:
        description: Branch, tag or commit.
        type: str
        default: main
      commit:
        description: The commit that O(models[].revision) stood for when the run was planned; empty asks the hub.
        type: str
        default: ""
      hub:
        description: The cache's directory on the host.
        type: path
        required: true
      endpoint:
        description: The hub's address; empty is the public one.
        type: str
        default: ""
      offered:
        description: Its size in bytes where the hub is out of reach and O(peers) have it; then only they are asked.
        type: int
        default: 0
  tokens:
    description: The hub's tokens for gated and private models, in the order of O(models); "" for none.
    type: list
    elements: str
    default: []
  peers:
    description:
      - Other hosts of the run from which the models can be had, and whether this host hands them on, so that the hub is
        asked once. A task says C(port) and C(address); the action plugin fills in the rest.
      - Without it every model comes from the hub, and nothing is started.
    type: dict
  stall_seconds:
    description: After how long without a byte a download is started anew.
    type: int
    default: 120
  progress_token:
    description: Name under which the module reports its progress on the host.
    type: str
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Have the model
  sglang_model:
    models:
      - repo: Qwen/Qwen3-8B
        image: lmsysorg/sglang@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
        hub: /data/huggingface/hub
"""

RETURN = r"""
sglang_ops:
  description: The models with their commits, snapshot paths and sizes, and the compiled kernels that came.
  returned: always
  type: dict
"""

import os

from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_fetch as fetching
from ansible.module_utils import sglang_host_image as images
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils import sglang_host_peer_kernels as kernels
from ansible.module_utils import sglang_host_peers as peers
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_command import size
from ansible.module_utils.sglang_host_progress import Progress


def described(model, commit, count):
    path = os.path.join(models.directory(model["hub"], model["repo"]), "snapshots", commit or "")
    return {"repo": model["repo"], "revision": commit, "path": path, "bytes": count}


def with_tokens(wanted, tokens):
    """Each model once, with its token. Pure."""
    pairs = map(lambda model, token: dict(model, token=token), wanted, tokens or [""] * len(wanted))
    return list({(model["hub"], model["repo"], model["revision"]): model for model in pairs}.values())


def survey(wanted, told, check):
    """[(model, source or None where it is cached, description)]. Raises SourceError, FetchError.

    `told` is the parameter `peers`. In check mode no other host serves.
    """
    found = []
    for model in wanted:
        there = models.cached(model["hub"], model["repo"], model["revision"])
        if there["complete"]:
            found.append((model, None, described(model, there["commit"], there["bytes"])))
            continue
        revision = model["commit"] or model["revision"]
        if model["offered"] and check:
            source = {"commit": revision, "files": [], "bytes": model["offered"]}
        elif model["offered"]:
            source = peers.listing(told, model)
        else:
            source = models.inspect_source(model["repo"], revision, model["endpoint"], model["token"] or None)
        fetching.check_space(model["hub"], model["repo"], source)
        found.append((model, source, described(model, source["commit"], source["bytes"])))
    return found


def fetch_all(asked, missing):
    """Get compiled kernels, then one model after the other, from peers where there are any. Returns what they gave.

    Raises FetchError.
    """
    engine = asked["engine"]
    for image, there in images.present(engine, [model["image"] for model, _ in missing]).items():
        if not there:
            raise fetching.FetchError("%s is not on the host; the module sglang_image brings it." % image)
    stall = asked["stall_seconds"]
    with Progress(asked["progress_token"], "model") as progress, peers.sharing(asked["peers"], missing, stall) as given:
        given.bring_kernels(progress)
        for model, source in missing:
            token = model["token"] or None
            # In a cache that hosts share, each would wait for the other: `fetch` lets one of them bring it for all.
            if model["offered"]:
                given.require(model, source, progress)
            elif claims.sharing(model["hub"]) or not given.follow(model, source, progress):
                given.origins[model["repo"]] = fetching.fetch(
                    engine, model["image"], model, source, token, stall, progress)
    return given


def main():
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["docker", "podman"], "default": "docker"},
            "models": {"type": "list", "elements": "dict", "required": True, "options": {
                "image": {"type": "str", "required": True},
                "repo": {"type": "str", "required": True},
                "revision": {"type": "str", "default": "main"},
                "commit": {"type": "str", "default": ""},
                "hub": {"type": "path", "required": True},
                "endpoint": {"type": "str", "default": ""},
                "offered": {"type": "int", "default": 0},
            }},
            "tokens": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "peers": peers.ARGUMENT,
            "stall_seconds": {"type": "int", "default": 120},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    report = {"kind": "model", "models": []}
    try:
        found = survey(with_tokens(asked["models"], asked["tokens"]), asked["peers"], module.check_mode)
    except models.SourceError as error:
        hint = {"exit_hint": 7} if error.kind in ("not-found", "needs-token") else {}
        module.fail_json(msg=str(error), sglang_ops=report, **hint)
    except fetching.FetchError as error:
        module.fail_json(msg=str(error), sglang_ops=report, exit_hint=7)
    report["models"] = [description for _, _, description in found]
    missing = [(model, source) for model, source, _ in found if source]
    lines = ["%s@%s: %s to download" % (model["repo"], source["commit"][:12],
                                        size(fetching.missing_bytes(model["hub"], model["repo"], source)))
             for model, source in missing]
    compiled = kernels.missing(asked["peers"])
    lines += ["%s: compiled kernels from %s" % (item["key"], item["sources"][0]["name"]) for item in compiled]
    diff = {"before_header": "models", "after_header": "models",
            "before": "", "after": "".join(line + "\n" for line in lines)}
    changed = bool(missing or compiled)
    if changed and not module.check_mode:
        try:
            given = fetch_all(asked, missing)
            report.update(warnings=given.warnings, peers=given.givers, origins=given.origins, kernels=given.kernels)
            changed = bool(missing or given.kernels)
        except (fetching.FetchError, OSError) as error:
            module.fail_json(msg=str(error), sglang_ops=report)
    module.exit_json(changed=changed, diff=diff, sglang_ops=report)


if __name__ == "__main__":
    main()
