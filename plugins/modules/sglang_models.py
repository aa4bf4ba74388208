#!/usr/bin/python
"""Look at a host's cache of hub models, check its content, remove what no service uses."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_models
short_description: List, verify and prune the models in the Hugging Face cache of a host
description:
  - C(list) tells what is in the cache, whether it is whole, and which deployed services use it.
  - C(verify) reads every file and compares it with the hash that is its name.
  - C(prune) removes revisions that no deployed service uses, neither in what runs nor in what it would be rolled back
    to, and what abandoned downloads have left. It refuses while something is being downloaded, and touches nothing
    outside C(models--*) of the caches.
options:
  do:
    description: What to do.
    type: str
    choices: [list, verify, prune]
    default: list
  hubs:
    description: Directories of hub models. Those that the units of deployed services mount are looked at too.
    type: list
    elements: path
    required: true
  repos:
    description: Only these models, C(organization/name).
    type: list
    elements: str
    default: []
  keep:
    description: For C(prune), models that stay whoever uses them.
    type: list
    elements: str
    default: []
  repair:
    description: For C(verify), delete files with wrong content, so that the next download fetches them again.
    type: bool
    default: false
  shared:
    description: For C(prune), also prune a cache that other hosts use, whose services are not looked at.
    type: bool
    default: false
  progress_token:
    description: Name under which the module reports its progress on the host.
    type: str
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: What is in the cache
  sglang_models:
    hubs: [/var/lib/sglang-ops/huggingface/hub]

- name: Remove what no service uses
  sglang_models:
    do: prune
    hubs: [/data/huggingface/hub]
    keep: [Qwen/Qwen3-8B]
"""

RETURN = r"""
sglang_ops:
  description: The models, the files that are wrong, what was removed (in check mode what would be).
  returned: always
  type: dict
"""

import os
import time

from ansible.module_utils import sglang_host_checksums as checksums
from ansible.module_utils import sglang_host_claims as claims
from ansible.module_utils import sglang_host_holdings as holdings
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_command import size
from ansible.module_utils.sglang_host_progress import Progress

NICENESS = 10  # services come first


def shown(item):
    """One row for each revision of a model, and one for a model that has none."""
    rows = [{key: revision[key] for key in ("commit", "refs", "bytes", "complete", "missing", "last_used", "used_by")}
            for revision in item["revisions"]]
    return {"repo": item["repo"], "hub": item["hub"], "bytes": item["bytes"], "revisions": rows,
            "left_bytes": sum(item["left"].values()), "under_way": bool(item["young"])}


def asked_for(found, repos):
    """Those of the models that were asked for, and the names of which there is none. Pure."""
    there = [item for item in found if not repos or item["repo"] in repos]
    return there, sorted(set(repos) - {item["repo"] for item in there})


def check(found, report):
    """(bad files, bytes read, names of files that carry no hash). Reads everything."""
    named, names, plain = {}, {}, []
    for item in found:
        for revision in item["revisions"]:
            for path, aliases in revision["blobs"].items():
                if not os.path.exists(path):
                    continue  # lacking, not wrong
                if os.path.basename(os.path.dirname(path)) == "blobs" and checksums.kind(os.path.basename(path)):
                    named[path] = os.path.basename(path)
                    names.setdefault(path, {"repo": item["repo"], "hub": item["hub"], "files": set()})
                    names[path]["files"].update(aliases)
                else:
                    plain += ["%s: %s" % (item["repo"], name) for name in aliases]
    read = sum(os.path.getsize(path) for path in named)
    faults = checksums.wrong(named, report)
    bad = [dict(names[path], files=sorted(names[path]["files"]), path=path, why=why) for path, why in faults.items()]
    return sorted(bad, key=lambda item: (item["repo"], item["files"])), read, sorted(set(plain))


def verify(module, found, report):
    os.nice(NICENESS)
    with Progress(module.params["progress_token"], "models") as progress:
        bad, read, plain = check(found, progress.report)
    report.update(bad=bad, checked_bytes=read, unnamed=plain)
    if not bad:
        module.exit_json(changed=False, sglang_ops=report)
    words = ["%s of %s (%s)" % (" and ".join(item["files"]), item["repo"], item["why"]) for item in bad]
    if not module.params["repair"]:
        module.fail_json(msg="Wrong content: %s." % "; ".join(words), sglang_ops=report)
    if not module.check_mode:
        for item in bad:
            os.unlink(item["path"])
    report["repaired"] = not module.check_mode
    module.exit_json(changed=True, sglang_ops=report)


def prune(module, found, report):
    for hub in sorted({item["hub"] for item in found}):
        others = claims.sharing(hub)
        if others and not module.params["shared"]:
            module.fail_json(exit_hint=7, sglang_ops=report, msg=(
                "%s is shared with %s, whose services this host does not know. Prune it with --shared, and name what "
                "they use with --keep." % (hub, " and ".join(others))))
        under_way = holdings.busy(hub, [item for item in found if item["hub"] == hub])
        if under_way:
            module.fail_json(exit_hint=7, sglang_ops=report, msg="%s: %s. Prune when that is over." % (hub, under_way))
    gone = holdings.unused(found, module.params["keep"])
    report["removed"] = [{"repo": item["repo"], "hub": item["hub"], "commits": item["commits"], "bytes": item["bytes"]}
                         for item in gone]
    if not module.check_mode:
        for item in gone:
            try:
                holdings.remove(item)
            except claims.Busy as error:
                module.fail_json(sglang_ops=report, msg="%s: %s in %s. Run this again when that is over." % (
                    item["repo"], error, item["hub"]))
    lines = ["%s %s: %s\n" % (item["repo"], " ".join(name[:12] for name in item["commits"]) or "leftovers",
                              size(item["bytes"])) for item in gone]
    diff = {"before_header": "models", "after_header": "models", "before": "".join(lines), "after": ""}
    module.exit_json(changed=bool(gone), diff=diff, sglang_ops=report)


def main():
    module = AnsibleModule(
        argument_spec={
            "do": {"type": "str", "choices": ["list", "verify", "prune"], "default": "list"},
            "hubs": {"type": "list", "elements": "path", "required": True},
            "repos": {"type": "list", "elements": "str", "default": []},
            "keep": {"type": "list", "elements": "str", "default": []},
            "repair": {"type": "bool", "default": False},
            "shared": {"type": "bool", "default": False},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    hubs = sorted({os.path.realpath(path) for path in [*asked["hubs"], *holdings.hubs_of_units()]})
    used = holdings.uses()
    found = [item for hub in hubs for item in holdings.survey(hub, used, time.time())]
    there, absent = asked_for(found, asked["repos"])
    report = {"kind": "models", "do": asked["do"], "hubs": hubs, "models": list(map(shown, there))}
    if absent:
        module.fail_json(exit_hint=7, sglang_ops=report, msg="%s not in the cache of this host (%s)." % (
            "%s is" % absent[0] if len(absent) == 1 else "%s are" % " and ".join(absent), ", ".join(hubs)))
    if asked["do"] == "verify":
        verify(module, there, report)
    elif asked["do"] == "prune":
        prune(module, there, report)
    module.exit_json(changed=False, sglang_ops=report)


if __name__ == "__main__":
    main()
