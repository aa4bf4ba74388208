"""What a host keeps of roll-outs: the one that is not over here, and what each release came to. Python 3.8.

    /var/lib/sglang-ops/services/<service>/rollout.json   while a roll-out has not finished here
    /var/lib/sglang-ops/services/<service>/history.json   the newest changes of release, the last one last
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from ansible.module_utils import sglang_host_state as store

KEPT_CHANGES = 50


def _path(service, name):
    return os.path.join(store.STATE, service, name)


def read(service):
    """The record of the roll-out that has not finished here, None where there is none."""
    text = store.read_text(_path(service, "rollout.json"))
    return json.loads(text) if text else None


def write(service, record):
    store.write_atomic(_path(service, "rollout.json"), json.dumps(record, sort_keys=True) + "\n")


def take_back(service):
    """The service goes back, and its roll-out is over once all hosts that it changed have: until then it is known."""
    record = read(service)
    if record:
        write(service, dict(record, undo=True))


def finish(service, undone=False):
    """The roll-out is over for this service; one that is being taken back only as soon as that is done everywhere."""
    if not undone and (read(service) or {}).get("undo"):
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(service, "rollout.json"))


def unfinished():
    """{service: record} of every service that a roll-out has not finished with, deployed already or not."""
    try:
        names = sorted(os.listdir(store.STATE))
    except FileNotFoundError:
        return {}
    found = {name: read(name) for name in names}
    return {name: record for name, record in found.items() if record}


def taken_up(current, wanted):
    """The record to keep when a roll-out begins: it is the one of before if that wants the same. Pure."""
    if current and current.get("file") == wanted["file"] and current.get("image") == wanted["image"]:
        return dict(wanted, id=current["id"], started=current["started"], paused=current.get("paused"))
    return dict(wanted, paused=(current or {}).get("paused"))


def history(service):
    """The changes of release, the oldest first."""
    text = store.read_text(_path(service, "history.json"))
    return json.loads(text) if text else []


def note(service, change):
    """A release begins: {"release", "before", "verb", "who", "rollout", "image", "image_digest", "model"}."""
    changes = history(service)
    if changes and changes[-1]["release"] == change["release"] and changes[-1]["result"] == "begun":
        return  # a run that was killed began it already
    _keep(service, [*changes, dict(change, time=round(time.time()), result="begun")])


def failed(service):
    """The roll-outs whose release failed here."""
    return sorted({change["rollout"] for change in history(service)
                   if change["result"] == "failed" and change.get("rollout")})


def result(service, release, word):
    """What came of the newest change, if it was to `release`: stable, failed."""
    changes = history(service)
    if changes and changes[-1]["release"] == release and changes[-1]["result"] != word:
        changes[-1] = dict(changes[-1], result=word)
        _keep(service, changes)


def give_up(service, release):
    """The newest change failed: it was to `release`, or never came so far that its release was recorded."""
    changes = history(service)
    if changes and (changes[-1]["release"] == release or changes[-1]["result"] == "begun"):
        result(service, changes[-1]["release"], "failed")


def newest(service):
    """The newest change, {} where none is remembered."""
    return (history(service) or [{}])[-1]


def _keep(service, changes):
    text = json.dumps(changes[-KEPT_CHANGES:], sort_keys=True, indent=1)
    store.write_atomic(_path(service, "history.json"), text + "\n")


def _proven(changes):
    """The stable releases that nobody went back from, the newest last. Pure."""
    found = []
    for change in changes:
        gone = {change["release"]} | ({change.get("before")} if change.get("verb") == "rollback" else set())
        if change["result"] == "stable":
            found = [release for release in found if release not in gone] + [change["release"]]
    return found


def last_stable(service, state):
    """The newest release but the current that was stable here and is still kept; None where there is none.

    One that was left by going back is none any more: on all hosts of a fleet the way back leads through the same
    releases, whichever of them had a release that was undone.
    """
    proven = list(reversed(_proven(history(service))))
    if state["stable"]:
        proven.append(state["stable"])
    kept = set(store.releases(service))
    return next((release for release in proven if release != state["release"] and release in kept), None)
