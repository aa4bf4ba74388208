#!/usr/bin/python
"""Take container images that were sent to a host as files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_image_load
short_description: Load container images by digest from files
description:
  - Looks which images a host lacks and which of their files must be sent (O(arrived=false)), and takes them once
    they have been sent. The action plugin of the same name does both, and the sending between them.
  - The engine pulls the images from a registry on the loopback that lasts as long as the pull, so that they have their
    digests afterwards, as if they had been pulled from their own registry.
  - Which digest a tag stood for is kept in C(/var/lib/sglang-ops/images.json).
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
        description: The image by its tag; or by its digest, where it has no tag.
        type: str
        required: true
      digest_ref:
        description: The image by digest, C(name@sha256:...).
        type: str
        required: true
      blobs:
        description: Manifests, configuration and layers, each with C(digest), C(size) and, if a layer, C(diff_id).
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
  sglang_image_load:
    images:
      - ref: lmsysorg/sglang:v0.5.23
        digest_ref: lmsysorg/sglang@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
        blobs:
          - digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
            size: 714
"""

RETURN = r"""
send:
  description: The files that must be sent, each with its C(name), C(part) (where to), C(offset) and C(size).
  returned: where O(arrived) is false
  type: list
  elements: dict
sglang_ops:
  description: The images with their digests, their sizes, and whether they are C(there) or need C(load).
  returned: always
  type: dict
"""

import contextlib
import os
import shutil

from ansible.module_utils import sglang_host_arrivals as arrivals
from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils import sglang_host_image as images
from ansible.module_utils import sglang_host_loaded as loaded
from ansible.module_utils import sglang_host_redirect as redirect
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_command import free_bytes, size
from ansible.module_utils.sglang_host_progress import Progress

INCOMING = "sglang-ops-incoming"  # below the engine's data: the disk that is meant for images


def described(wanted, there):
    """The images for the result. Pure."""
    return [
        {"name": image["ref"], "digest": images.parts(image["digest_ref"])[1], "bytes": total(image),
         "action": "there" if there[image["digest_ref"]] else "load"}
        for image in wanted
    ]


def total(image):
    return sum(blob["size"] for blob in image["blobs"])


def coming(engine, root, missing):
    """The files of the missing images that the engine will ask for, each once."""
    found = {}
    for image in missing:
        layers = [blob for blob in image["blobs"] if blob.get("diff_id")]
        there = loaded.layers_there(engine, root, layers)
        for blob in image["blobs"]:
            if blob["digest"] not in there:
                path = os.path.join(root, INCOMING, blob["digest"][7:])
                found[blob["digest"]] = arrivals.Arrival(
                    blob["digest"], path, path + ".part", blob["size"], blob["digest"][7:])
    return list(found.values())


def refusal(engine, missing, files, root):
    """Why these images cannot be loaded here, "" where they can."""
    for image in missing:
        why_not = redirect.refusal(engine, image["ref"])
        if why_not:
            return why_not
    if not shutil.which(engine):
        return "%s is not installed here. Run `sglang-ops provision` first." % engine
    new = sum(item.size for item in files)
    need, free = int(arrivals.remaining(files) + new * images.UNPACKED_PER_PULLED), free_bytes(root)
    if missing and need > free:
        message = "%s needs about %s (%s compressed) in %s, which has %s free. Free space, or move the engine's data."
        return message % (missing[0]["ref"], size(need), size(new), root, size(free))
    return ""


def take(engine, root, missing, files, progress):
    """Check what was sent and have the engine pull it. Raises ArrivalError, RedirectError, PullError."""
    home = os.path.join(root, INCOMING)
    arrivals.accept_all(files, progress.report)
    for image in missing:
        name, _ = images.parts(image["digest_ref"])
        with redirect.redirected(engine, name, home):
            images.pull(engine, image["ref"], image["digest_ref"], total(image), progress.report)
    for item in files:
        os.unlink(item.path)
    with contextlib.suppress(OSError):  # of another load that was interrupted, the rest stays
        os.rmdir(home)


def main():
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["docker", "podman"], "default": "docker"},
            "images": {"type": "list", "elements": "dict", "required": True, "options": {
                "ref": {"type": "str", "required": True},
                "digest_ref": {"type": "str", "required": True},
                "blobs": {"type": "list", "elements": "dict", "required": True},
            }},
            "arrived": {"type": "bool", "default": False},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    engine, wanted = module.params["engine"], module.params["images"]
    root = engines.observe(engine).data_root
    there = images.present(engine, [image["digest_ref"] for image in wanted], root)
    missing = [image for image in wanted if not there[image["digest_ref"]]]
    files = coming(engine, root, missing)
    report = {"kind": "bundle", "items": described(wanted, there)}
    known = loaded.names()
    names = loaded.change(known, wanted)
    result = {
        "changed": bool(missing) or names != known, "sglang_ops": report,
        "diff": {"before_header": "images", "before": "".join(ref + "\n" for ref in there if there[ref]),
                 "after_header": "images", "after": "".join(ref + "\n" for ref in there)},
    }
    why_not = refusal(engine, missing, files, root)
    if why_not:
        module.fail_json(msg=why_not, exit_hint=7, sglang_ops=report)
    if module.check_mode or not module.params["arrived"]:
        module.exit_json(send=arrivals.wanted(files), **result)
    try:
        with Progress(module.params["progress_token"], "image_load") as progress:
            take(engine, root, missing, files, progress)
            loaded.remember(names)
    except (arrivals.ArrivalError, redirect.RedirectError, images.PullError) as error:
        module.fail_json(msg=str(error), sglang_ops=report)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
