#!/usr/bin/python
"""Bring container images onto a host, by digest."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_image
short_description: Pull container images by digest
description:
  - Images that are on the host already, by digest, are left alone; the registry is then not asked.
  - Uses the login that root has on the host (C(docker login), C(podman login)).
  - Refuses before it begins where the disk is too small.
options:
  engine:
    description: The container engine.
    type: str
    choices: [docker, podman]
    default: docker
  images:
    description: The images that must be there.
    type: list
    elements: dict
    required: true
    suboptions:
      ref:
        description: The image as people name it; it becomes a tag of the pulled image.
        type: str
        required: true
      digest_ref:
        description: The image by digest, C(name@sha256:...).
        type: str
        required: true
      size_bytes:
        description: What the pull moves (compressed), for progress and for the check of the disk; 0 is unknown.
        type: int
        default: 0
  progress_token:
    description: Name under which the module reports its progress on the host.
    type: str
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Have the engine's image
  sglang_image:
    images:
      - ref: lmsysorg/sglang:v0.5.23
        digest_ref: lmsysorg/sglang@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
"""

RETURN = r"""
sglang_ops:
  description: The images with their digests and compressed sizes.
  returned: always
  type: dict
"""

import shutil

from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils import sglang_host_image as images
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_command import free_bytes
from ansible.module_utils.sglang_host_progress import Progress

REFUSALS = ("space", "login", "missing", "http", "certificate")  # another try would not help


def pull_all(engine, missing, progress):
    """Pull one after the other; images of one host mostly share their layers. Raises PullError."""
    for number, image in enumerate(missing, 1):
        prefix = "%d of %d: " % (number, len(missing)) if len(missing) > 1 else ""
        images.pull(engine, image["ref"], image["digest_ref"], image["size_bytes"],
                    lambda detail, prefix=prefix: progress.report(prefix + detail))


def check(engine, missing, check_mode):
    """Raise PullError for what can be seen beforehand; in check mode the engine may still be to come."""
    if not shutil.which(engine) and not check_mode:
        raise images.PullError("engine", "%s is not installed here; the role container_engine does that." % engine)
    root = engines.observe(engine).data_root
    for image in missing:
        images.check_space(image["ref"], image["size_bytes"], free_bytes(root), root)


def main():
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["docker", "podman"], "default": "docker"},
            "images": {"type": "list", "elements": "dict", "required": True, "options": {
                "ref": {"type": "str", "required": True},
                "digest_ref": {"type": "str", "required": True},
                "size_bytes": {"type": "int", "default": 0},
            }},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    engine = module.params["engine"]
    wanted = list({image["digest_ref"]: image for image in module.params["images"]}.values())
    there = images.present(engine, [image["digest_ref"] for image in wanted])
    missing = [image for image in wanted if not there[image["digest_ref"]]]
    report = {"kind": "image", "images": [
        {"ref": image["ref"], "digest": images.parts(image["digest_ref"])[1], "bytes": image["size_bytes"]}
        for image in wanted
    ]}
    diff = {
        "before_header": "images", "after_header": "images",
        "before": "".join(ref + "\n" for ref in there if there[ref]),
        "after": "".join(ref + "\n" for ref in there),
    }
    try:
        if missing:
            check(engine, missing, module.check_mode)
        if missing and not module.check_mode:
            with Progress(module.params["progress_token"], "image") as progress:
                pull_all(engine, missing, progress)
    except images.PullError as error:
        hint = {"exit_hint": 7} if error.cause in REFUSALS else {}
        module.fail_json(msg=str(error), sglang_ops=report, **hint)
    module.exit_json(changed=bool(missing), diff=diff, sglang_ops=report)


if __name__ == "__main__":
    main()
