#!/usr/bin/python
"""Write, start, stop, roll back and remove the systemd units of SGLang services."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_service
short_description: Manage the systemd units of SGLang services and their release records
description:
  - Writes the release (unit, record, secrets) of each service, replaces its unit and starts it.
  - The old server keeps running until everything is written; systemd is reloaded only where a unit changed.
  - Supports check mode and returns the unit's diff.
options:
  state:
    description: V(present) deploys, V(rolled_back) returns to the release C(to) of a service, else its stable one.
    type: str
    choices: [present, restarted, stopped, absent, rolled_back]
    default: present
  services:
    description:
      - For V(present) and V(rolled_back), the services as planned.
    type: list
    elements: dict
    default: []
  names:
    description: For the other states, names of services; an empty list means every service of the host.
    type: list
    elements: str
    default: []
  secrets:
    description: Values by service and variable name, written to a file that only root can read.
    type: dict
    default: {}
  runtime:
    description: By service, variables to read from C(/etc/sglang-ops/runtime.env) on the host.
    type: dict
    default: {}
  change:
    description: Who changes a release, and in which roll-out, for the history of the host (C(who), C(rollout)).
    type: dict
    default: {}
  drain_timeout:
    description: Seconds for the requests in flight before a server is ended; C(0) leaves it to its unit.
    type: int
    default: 0
  failed:
    description:
      - With V(stopped), whether the services have failed. They serve nobody, and may hang; after a few seconds they are
        killed. V(rolled_back) knows by itself which have.
    type: bool
    default: false
  again:
    description:
      - With V(stopped), seconds after which the services are started again, unless somebody does before; V(0) never.
    type: int
    default: 0
  left_out:
    description: Hosts of the inventory that this run leaves out; a service that one of them serves, too, is refused.
    type: list
    elements: str
    default: []
  purge:
    description: With V(absent), also delete what the services alone used (images, compiled kernels).
    type: bool
    default: false
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Restart every SGLang service of the host
  sglang_service:
    state: restarted
"""

RETURN = r"""
sglang_ops:
  description: What was done to each service.
  returned: always
  type: dict
"""

import os

from ansible.module_utils import sglang_host_evaluating as evaluating
from ansible.module_utils import sglang_host_gateway as gateways
from ansible.module_utils import sglang_host_group as group
from ansible.module_utils import sglang_host_jit as jit
from ansible.module_utils import sglang_host_lock as lock
from ansible.module_utils import sglang_host_rollout as rollouts
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_units import Host

# Stopping waits for requests in flight; systemd itself ends it at the unit's TimeoutStopSec.
RECORD = ("kind", "name", "release", "image", "image_digest", "gpus", "port", "endpoint", "content", "gate", "memory",
          "jit", "gateways")
ACTIVE = ("active", "activating", "deactivating", "reloading", "restarting")


def plan(service, current):
    """What to do about one service: pure, so that check mode and the change cannot disagree.

    `service` is what is wanted; `current` is {"unit": text or None, "release": id or None, "state": word}.
    """
    write = current["unit"] != service["unit"]
    record = current["release"] != service["release"]
    running = current["state"] in ACTIVE
    restart = service["action"] == "restart" or (running and (write or record))
    start = not running or restart
    return {"write": write, "record": record, "stop": running and restart, "start": start,
            "changed": write or record or start}


def observe(names):
    """What is there now, by service name."""
    shown = systemd.show(names)
    return {
        name: dict(store.read_state(name), unit=store.read_text(store.unit_path(name)),
                   state=systemd.state(shown.get(name, {})))
        for name in names
    }


def present(host, services, secrets, runtime):
    """Deploy: releases are written first, then all stop, then all start; what runs is recorded last.

    An interruption leaves the recorded release different from the wanted one, so the next run starts again.
    """
    now = observe([service["name"] for service in services])
    steps = {service["name"]: plan(service, now[service["name"]]) for service in services}
    changing = [service for service in services if steps[service["name"]]["changed"]]
    for service in changing:
        keep_release(host, service, secrets, runtime)
    for service in changing:
        if steps[service["name"]]["record"]:
            host.note(service["name"], now[service["name"]]["release"], service["release"], "deploy")
    if not host.check:
        evaluating.replaced({service["name"]: service["release"] for service in changing})
    host.stop([service["name"] for service in changing if steps[service["name"]]["stop"]])
    for service in changing:
        if steps[service["name"]]["write"]:
            host.write_unit(service["name"], now[service["name"]]["unit"], service["unit"])
    host.daemon_reload()
    for service in changing:
        if steps[service["name"]]["start"]:
            host.start(service["name"], service["gate"])
        host.record(service["name"], service["release"], now[service["name"]]["stable"])
    return [{"name": service["name"], "release": service["release"],
             "action": _word(steps[service["name"]], service["action"])} for service in services]


def keep_release(host, service, secrets, runtime):
    """Write the release directory, secrets included, and make the directories that the container mounts."""
    name = service["name"]
    values = dict(secrets.get(name, {}), **_from_host(host, name, runtime.get(name, [])))
    record = dict({key: service.get(key) for key in RECORD}, engine=service["gate"]["engine"])
    if host.check:
        return
    store.write_release(name, service["release"], service["unit"], record, values, service.get("files"))
    if service.get("kind") == "gateway":
        gateways.prepare(name)
    for directory in service["directories"]:
        os.makedirs(directory, mode=0o755, exist_ok=True)


def _word(step, asked):
    if not step["changed"]:
        return "none"
    return "restart" if step["stop"] or asked == "restart" else "start" if step["start"] else "write"


def _from_host(host, service, wanted):
    known = store.runtime_environment() if wanted else {}
    missing = [item["source"] for item in wanted if item["source"] not in known]
    if missing:
        host.module.fail_json(msg="%s does not set %s, which %s needs. Add a line %s=…"
                              % (store.RUNTIME_ENV, missing[0], service, missing[0]))
    return {item["name"]: known[item["source"]] for item in wanted}


def rolled_back(host, services):
    """Return to the release that is named, else the last stable one; without one a service is stopped and disabled.

    That of a service which only just failed does not wait for requests: whoever failed the gate serves nobody, and may
    hang.
    """
    done = []
    now = observe([service["name"] for service in services])
    if not host.check:
        evaluating.replaced({item["name"]: item.get("to", now[item["name"]]["stable"]) for item in services})
    running = [item for item in services if now[item["name"]]["state"] in ACTIVE]
    host.stop([item["name"] for item in running if "to" in item])
    host.end([item["name"] for item in running if "to" not in item])
    for service in services:
        name, current = service["name"], now[service["name"]]
        release = service.get("to", current["stable"])
        unit = store.release_unit(name, release) if release else None
        if not host.check:
            (rollouts.take_back if service.get("undo") else rollouts.finish)(name)
            if "to" not in service:
                rollouts.give_up(name, current["release"])
        host.systemctl("stop", name + ".service")
        if unit is None:
            host.systemctl("disable", "--quiet", name + ".service")
            done.append({"name": name, "release": None, "action": "stop"})
            continue
        if current["unit"] != unit:
            host.write_unit(name, current["unit"], unit)
        host.daemon_reload()
        if release != current["release"] or rollouts.newest(name).get("result") == "failed":
            host.note(name, current["release"], release, "rollback")
        host.start(name, store.read_record(name, release).get("gate"))
        host.record(name, release, current["stable"])
        done.append({"name": name, "release": release, "action": "restart"})
    return done


def restarted(host, names):
    for name in names:
        host.systemctl("stop", name + ".service")
    for name in names:
        host.start(name)
    return _done(names, "restart")


def stopped(host, names, again=0):
    now = observe(names)
    left = [name for name in names if now[name]["state"] in ACTIVE or now[name]["state"] == "failed"]
    for name in [] if host.check else names:
        group.arm(name, again) if again and name in left else group.disarm(name)
    (host.end if host.module.params["failed"] else host.stop)(left)
    for name in left:
        host.systemctl("reset-failed", name + ".service")
    return _done(names, "stop")


def absent(host, names, purge):
    """Stop and forget; with `purge`, images and compiled kernels that no other service uses are deleted too."""
    images = {}
    compiled = jit.named_by(names)
    if not host.check:
        evaluating.replaced(dict.fromkeys(names))
    host.stop(names if host.module.params["drain_timeout"] else [])
    for name in names:
        record = store.read_record(name, store.read_state(name)["release"])
        if record.get("image_digest"):
            images[record["content"]["image"]] = (record["engine"], record["image"])
        host.systemctl("disable", "--quiet", "--now", name + ".service")
        unit = store.read_text(store.unit_path(name))
        if unit is not None:
            host.write_unit(name, unit, None)
        host.changed = True
        if not host.check:
            store.forget(name)
    host.daemon_reload()
    if purge and not host.check:
        _purged(images, compiled)
    return _done(names, "remove")


def _purged(images, compiled):
    kept = [store.read_record(name, store.read_state(name)["release"]) for name in store.names()]
    used = {record["content"]["image"] for record in kept if record}
    for image, (engine, tag) in images.items():
        if image not in used:
            run(engine, "image", "rm", tag, image)
    for engine in {engine for engine, _ in images.values()}:
        jit.prune(compiled, engine)


def _done(names, action):
    return [{"name": name, "release": store.read_state(name)["release"], "action": action} for name in names]


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "default": "present",
                      "choices": ["present", "restarted", "stopped", "absent", "rolled_back"]},
            "services": {"type": "list", "elements": "dict", "default": []},
            "names": {"type": "list", "elements": "str", "default": []},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "runtime": {"type": "dict", "default": {}},
            "purge": {"type": "bool", "default": False},
            "change": {"type": "dict", "default": {}},
            "drain_timeout": {"type": "int", "default": 0},
            "failed": {"type": "bool", "default": False},
            "again": {"type": "int", "default": 0},
            "left_out": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    host, given, state = Host(module), module.params["services"], module.params["state"]
    wanted = [service["name"] for service in given] or module.params["names"]
    names = [name for name in store.names() if not wanted or name in wanted]
    refused = group.cut(names, module.params["left_out"])
    if refused:
        module.fail_json(msg=refused, exit_hint=7)
    with lock.working(unless=module.check_mode):
        if state == "present":
            done = present(host, given, module.params["secrets"], module.params["runtime"])
        elif state == "rolled_back":
            done = rolled_back(host, given)
        elif state == "restarted":
            done = restarted(host, names)
        elif state == "stopped":
            done = stopped(host, names, module.params["again"])
        else:
            done = absent(host, names, module.params["purge"])
    module.exit_json(changed=host.changed, diff=host.diffs, sglang_ops={"kind": "service", "services": done})


if __name__ == "__main__":
    main()
