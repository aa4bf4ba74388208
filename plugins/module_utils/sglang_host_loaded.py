"""Which digest each tag had when it was loaded from files: what a registry would say, where there is none.

Kept in /var/lib/sglang-ops/images.json, by name with its registry spelled out. Python 3.8, standard library.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os

from ansible.module_utils.sglang_host_image import full_name
from ansible.module_utils.sglang_host_state import read_text, write_atomic

RECORD = "/var/lib/sglang-ops/images.json"


def names(record: str = RECORD) -> dict:
    """{full name with tag: digest}."""
    text = read_text(record)
    return json.loads(text) if text else {}


def digest_ref(ref: str, record: str = RECORD) -> str | None:
    """``name@sha256:…`` of a name with a tag, as it was loaded last; None where it never was."""
    digest = names(record).get(full_name(ref))
    return "%s@%s" % (ref[:ref.rindex(":")], digest) if digest else None


def change(known: dict, images) -> dict:
    """The names after `images` ({"ref", "digest_ref"}) were loaded; those without a tag have nothing to say. Pure."""
    tagged = [image for image in images if "@" not in image["ref"]]
    return dict(known, **{full_name(image["ref"]): image["digest_ref"].partition("@")[2] for image in tagged})


def remember(known: dict, record: str = RECORD) -> None:
    write_atomic(record, json.dumps(known, indent=1, sort_keys=True) + "\n")


def forget(ref: str, record: str = RECORD) -> None:
    """The tag has come from its registry since."""
    known = names(record)
    if known.pop(full_name(ref), None):
        remember(known, record)


def layers_there(engine: str, root: str, layers) -> set:
    """Digests of the `layers` ({"digest", "diff_id"}, lowest first) that the engine has and will not ask for."""
    return _docker_has(root, layers) if engine == "docker" else _podman_has(root, layers)


def _docker_has(root: str, layers) -> set:
    """Docker takes a layer as it is where all below it are the same too, and where it knows which blob made it."""
    found = set()
    chain = ""
    for layer in layers:
        chain = hashlib.sha256((chain + " " + layer["diff_id"]).encode()).hexdigest() if chain else layer["diff_id"][7:]
        known = glob.glob(os.path.join(root, "image/*/distribution/diffid-by-digest/sha256", layer["digest"][7:]))
        if not any(read_text(path) == layer["diff_id"] for path in known):
            break
        if not glob.glob(os.path.join(root, "image/*/layerdb/sha256", chain)):
            break
        found.add(layer["digest"])
        chain = "sha256:" + chain
    return found


def _podman_has(root: str, layers) -> set:
    known = set()
    for path in glob.glob(os.path.join(root, "*-layers", "layers.json")):
        try:
            known |= {entry.get("compressed-diff-digest") for entry in json.loads(read_text(path) or "[]")}
        except ValueError:
            continue
    return {layer["digest"] for layer in layers} & known
