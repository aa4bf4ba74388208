"""Caches of compiled kernels on a host, one directory for each image, kind of GPU and model.

Python 3.8, standard library. Planning decides on them (`sglang_ops.planning.jit`), release records name them.
"""

from __future__ import annotations

import json
import os
import re
import shutil

from ansible.module_utils import sglang_host_state as store
from ansible.module_utils.sglang_host_command import run

_KEY = re.compile(r"([0-9a-f]{12})-[A-Za-z0-9.-]+")  # the image's digest comes first


def named_by(services):
    """The directories that the kept releases of these services use."""
    found = set()
    for service in services:
        for release in store.releases(service):
            found.add(store.read_record(service, release).get("jit"))
    return found - {None, ""}


def digests(engine):
    """The first 12 digits of the digests of all images that the engine has; None where it does not tell."""
    listed = run(engine, "image", "ls", "--quiet", "--no-trunc")
    images = sorted(set(listed.stdout.split()))
    told = run(engine, "image", "inspect", "--format", "{{json .RepoDigests}}", *images) if images else listed
    if not (listed.ok and told.ok):
        return None
    names = [name for line in told.stdout.splitlines() for name in json.loads(line) or []]
    return {name.partition("@sha256:")[2][:12] for name in names}


def unused(names, removed, kept, present):
    """Of the entries `names` of a cache's root, those to delete. Pure.

    `removed` and `kept` are entries that removed and remaining releases use, `present` the digests of images that
    the host still has, or None. An entry that is not named like one of these caches is never deleted.
    """
    matched = [match for match in map(_KEY.fullmatch, names) if match and match.group() not in kept]
    gone = [match for match in matched if present is not None and match.group(1) not in present]
    return sorted({match.group() for match in matched if match.group() in removed or match in gone})


def prune(removed, engine):
    """Delete the caches `removed` that no remaining release uses and, beside them, those whose image is gone."""
    kept = named_by(store.names())
    present = digests(engine)
    for root in {os.path.dirname(path) for path in removed if os.path.isdir(path)}:
        own, others = ({os.path.basename(path) for path in paths if os.path.dirname(path) == root}
                       for paths in (removed, kept))
        for name in unused(os.listdir(root), own, others, present):
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)
