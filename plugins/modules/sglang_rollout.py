#!/usr/bin/python
"""Keep and tell how far a roll-out is on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_rollout
short_description: Keep the record of a roll-out on its hosts, pause it, find the way back
description:
  - A roll-out that has not finished on a host has a record there, so that every controller can tell and pause it.
  - V(begin) writes the record before anything stops and says whether the roll-out is paused. V(pause) and V(resume)
    set and take away that mark, V(forget) drops the records, V(target) says to which release each service goes back,
    V(look) tells everything.
  - Supports check mode.
options:
  do:
    description: What to do.
    type: str
    choices: [begin, forget, look, pause, resume, target]
    default: look
  services:
    description: For V(begin), the record by service.
    type: dict
    default: {}
  batch:
    description: For V(begin), how many hosts had their turn before this one's batch; handed back in the result.
    type: str
    default: ""
  names:
    description: For V(target) and V(resume), names of services; an empty list means every service of the host.
    type: list
    elements: str
    default: []
  release:
    description: For V(target), the release to go back to; empty means the last stable one before the current.
    type: str
    default: ""
  undo:
    description: For V(target), roll-outs whose changes are taken back; services that they did not change stay.
    type: list
    elements: str
    default: []
  left_out:
    description: For V(target), hosts of the inventory that this run leaves out; a service of theirs, too, is refused.
    type: list
    elements: str
    default: []
  who:
    description: For V(pause), who pauses.
    type: str
    default: ""
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Pause the roll-out that is going on
  sglang_rollout:
    do: pause
    who: ops@control
"""

RETURN = r"""
sglang_ops:
  description: What the host keeps of roll-outs, as far as it was asked for.
  returned: always
  type: dict
"""

import time

from ansible.module_utils import sglang_host_group as group
from ansible.module_utils import sglang_host_rollout as rollouts
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_command import run

STAY = "stay"


def begin(module):
    """Write the records of the services that will change; the mark of a pause stays."""
    changed, paused = False, None
    for name, wanted in sorted(module.params["services"].items()):
        current = rollouts.read(name)
        record = rollouts.taken_up(current, wanted)
        paused = paused or record["paused"]
        if record != current:
            changed = True
            if not module.check_mode:
                rollouts.write(name, record)
    return changed, {"paused": paused, "batch": module.params["batch"]}


def pause(module):
    mark = {"who": module.params["who"], "since": round(time.time()), "why": "asked for"}
    return _mark(module, lambda record: dict(record, paused=record.get("paused") or mark))


def resume(module):
    """Go on; a service that the pause found finished is."""
    over = [name for name in _unfinished(module) if _finished(name)]
    for name in [] if module.check_mode else over:
        rollouts.finish(name)
    return _mark(module, lambda record: dict(record, paused=None))


def _unfinished(module):
    named = module.params["names"]
    return {name: record for name, record in rollouts.unfinished().items() if not named or name in named}


def forget(module):
    found = rollouts.unfinished()
    for name in [] if module.check_mode else found:
        rollouts.finish(name, undone=True)
    return bool(found), {"unfinished": []}


def _finished(name):
    state, changes = store.read_state(name), rollouts.history(name)
    return bool(changes) and changes[-1]["result"] == "stable" and changes[-1]["release"] == state["release"]


def _mark(module, change):
    changed, found = False, _unfinished(module)
    for name, record in found.items():
        new = change(record)
        if new != record:
            changed = True
            if not module.check_mode:
                rollouts.write(name, new)
    return changed, {"unfinished": [_brief(name, record) for name, record in found.items()]}


def look(_module):
    """Every service: what runs, which roll-out has not finished, every change of release that is remembered."""
    open_ones = rollouts.unfinished()
    services = []
    for name in sorted(set(store.names()) | set(open_ones)):
        state = store.read_state(name)
        changes = [dict(change, content=store.read_record(name, change["release"]).get("content"))
                   for change in rollouts.history(name)]
        services.append({"name": name, "release": state["release"], "stable": state["stable"], "history": changes,
                         "rollout": _brief(name, open_ones[name]) if name in open_ones else None})
    return False, {"services": services}


def _brief(name, record):
    return {"service": name, "id": record["id"], "who": record["who"], "started": record["started"],
            "ref": record.get("ref"), "image": record["image"], "paused": record.get("paused"),
            "options": record.get("options") or {}}


def target(module):
    """What each service goes back to. Refuses what is unknown here, or cannot run, before anything stops."""
    problems, services = [], []
    for name in store.names():
        state = store.read_state(name)
        if not _meant(name, state, module.params["names"], module.params["undo"]):
            continue
        problems += filter(None, [group.cut([name], module.params["left_out"])])
        release, problem = _chosen(name, state, module.params["release"], module.params["undo"])
        if not problem and release != STAY and release:
            problem = missing(name, release, store.read_record(name, release))
        if problem:
            problems.append(problem)
        elif release != STAY:
            services.append(dict(_return(name, state, release), undo=bool(module.params["undo"])))
    if problems:
        module.fail_json(msg=" ".join(problems), exit_hint=7, sglang_ops={"kind": "target", "services": []})
    return False, {"services": services}


def _meant(name, state, names, undo):
    """Whether a service is to go back: those that are named, else all but gateways, which serve no release."""
    kind = store.read_record(name, state["release"]).get("kind")
    return name in names if names else bool(undo) or kind not in ("gateway", "surge")


def _chosen(name, state, asked, undo):
    """(release to go back to, None for none at all, STAY for no change; why that cannot be)."""
    if undo:
        return _before(name, state, undo), ""
    if asked:
        known = store.releases(name)
        matching = [release for release in known if release.startswith(asked)]
        if len(matching) != 1:
            return None, "%s has no release %s here; it keeps %s." % (name, asked, ", ".join(known) or "none")
        return (STAY if matching[0] == state["release"] == state["stable"] else matching[0]), ""
    last = rollouts.newest(name)
    if last.get("verb") == "rollback" and last["result"] == "begun" and last["release"] == state["stable"]:
        return state["stable"], ""  # on the way back there, the server did not start
    release = rollouts.last_stable(name, state)
    return release, "" if release else "%s has no other release here that was ever stable." % name


def _return(name, state, release):
    record, current = store.read_record(name, release), store.read_record(name, state["release"])
    told = {key: record.get(key) for key in ("image", "image_digest", "endpoint", "port", "gate")}
    return dict(told, name=name, release=release, to=release, deployed_release=state["release"],
                action="restart" if release else "stop", gpus=record.get("gpus", []),
                gateways=current.get("gateways") or [], group=(current.get("gate") or {}).get("group") or [])


def _before(name, state, undo):
    """The release that ran before these roll-outs, None where none did, STAY where they did not change the service."""
    changes = rollouts.history(name)
    mine = [change for change in changes if change["rollout"] in undo and change["verb"] == "deploy"]
    if not mine:
        return STAY
    last, before = changes[-1], mine[0]["before"]
    if last["verb"] == "rollback" and last["result"] == "begun" and last["release"] == before:
        return before  # on the way back there, the server did not start or did not serve
    return before if last is mine[-1] and state["release"] == last["release"] else STAY


def missing(name, release, record):
    """Why a release that is known cannot run again, "" where it can."""
    if not record or store.release_unit(name, release) is None:
        return "The record of release %s of %s is gone." % (release, name)
    image = record["content"]["image"]
    if not run(record["engine"], "image", "inspect", image).ok:
        return ("The image of release %s of %s is gone from this host (%s). Pull it with `%s pull %s`."
                % (release, name, record["image"], record["engine"], image))
    return ""


def main():
    module = AnsibleModule(
        argument_spec={
            "do": {"type": "str", "default": "look",
                   "choices": ["begin", "forget", "look", "pause", "resume", "target"]},
            "services": {"type": "dict", "default": {}},
            "batch": {"type": "str", "default": ""},
            "names": {"type": "list", "elements": "str", "default": []},
            "release": {"type": "str", "default": ""},
            "undo": {"type": "list", "elements": "str", "default": []},
            "who": {"type": "str", "default": ""},
            "left_out": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    acts = {"begin": begin, "forget": forget, "look": look, "pause": pause, "resume": resume, "target": target}
    changed, found = acts[module.params["do"]](module)
    kind = {"target": "target", "begin": "turn"}.get(module.params["do"], "rollout")
    module.exit_json(changed=changed, sglang_ops=dict(found, kind=kind))


if __name__ == "__main__":
    main()
