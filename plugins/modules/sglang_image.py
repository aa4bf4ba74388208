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
  - Can ask images which arguments their SGLang accepts; an image is asked once per host.
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
  ask:
    description:
      - Images by digest that are to list the arguments which their SGLang accepts.
      - Each is started once, without network and GPUs, and its answer is kept under C(/var/lib/sglang-ops/arguments).
      - An image that does not answer is a warning. In check mode only what was asked before is known.
    type: list
    elements: str
    default: []
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
    ask:
      - lmsysorg/sglang@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
"""

RETURN = r"""
sglang_ops:
  description: >-
    The images with their digests and compressed sizes, and under C(arguments) what those of O(ask) listed:
    C(sglang) is the release, C(options) its options as in the files of sglang_ops/catalog.
  returned: always
  type: dict
"""

import shutil

from ansible.module_utils import sglang_host_arguments as arguments
from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils import sglang_host_image as images
from ansible.module_utils import sglang_host_loaded as loaded
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
        loaded.forget(image["ref"])  # from now on the tag is what the registry says


def check(engine, missing, check_mode):
    """Raise PullError for what can be seen beforehand; in check mode the engine may still be to come."""
    if not shutil.which(engine) and not check_mode:
        raise images.PullError("engine", "%s is not installed here; the role container_engine does that." % engine)
    root = engines.observe(engine).data_root
    for image in missing:
        images.check_space(image["ref"], image["size_bytes"], free_bytes(root), root)


def ask_all(engine, refs, progress):
    """Have the images list the arguments they accept, each once in its life here; returns why some do not."""
    unknown = [ref for ref in dict.fromkeys(refs) if arguments.known(ref) is None]
    if unknown:
        progress.report("asking SGLang for its arguments")
    return [why_not for why_not in (arguments.ask(engine, ref) for ref in unknown) if why_not]


def main():
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["docker", "podman"], "default": "docker"},
            "images": {"type": "list", "elements": "dict", "required": True, "options": {
                "ref": {"type": "str", "required": True},
                "digest_ref": {"type": "str", "required": True},
                "size_bytes": {"type": "int", "default": 0},
            }},
            "ask": {"type": "list", "elements": "str", "default": []},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    engine = module.params["engine"]
    wanted = list({image["digest_ref"]: image for image in module.params["images"]}.values())
    asked, warnings = module.params["ask"], []
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
        if (missing or asked) and not module.check_mode:
            with Progress(module.params["progress_token"], "image") as progress:
                pull_all(engine, missing, progress)
                warnings = ask_all(engine, asked, progress)
    except images.PullError as error:
        hint = {"exit_hint": 7} if error.cause in REFUSALS else {}
        module.fail_json(msg=str(error), sglang_ops=report, **hint)
    if asked:
        report["arguments"] = arguments.known_of(asked)
    module.exit_json(changed=bool(missing), diff=diff, sglang_ops=report, warnings=warnings)


if __name__ == "__main__":
    main()
