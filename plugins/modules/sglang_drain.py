#!/usr/bin/python
"""Mark a host as drained or as in use again, and wait until its servers have nothing left to do."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_drain
short_description: Mark a host as drained, and wait for the requests that its servers still have
description:
  - While a host is marked, C(deploy) leaves its servers out of their gateways and C(status) shows it.
  - Which gateways are in front of its servers is what the caller says, else what was so when they were deployed.
options:
  state:
    description:
      - V(marked) and V(unmarked) set and take off the mark. V(listed) only tells which gateways there are.
      - V(idle) waits until no request runs or waits on any server of the host.
    type: str
    choices: [listed, marked, idle, unmarked]
    required: true
  gateways:
    description: What is in front of the servers, each with host, service and url.
    type: list
    elements: dict
    default: []
  left_out:
    description: Hosts of the inventory that this run leaves out; one that serves a model together with them is refused.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds that V(idle) waits at most.
    type: int
    default: 300
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Wait for the requests in flight
  sglang_drain:
    state: idle
"""

RETURN = r"""
sglang_ops:
  description: The servers of the host, and the gateways in front of them.
  returned: always
  type: dict
"""

import json
import os
import time

from ansible.module_utils import sglang_host_gateway as gateways
from ansible.module_utils import sglang_host_group as group
from ansible.module_utils import sglang_host_loads as loads
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd
from ansible.module_utils.basic import AnsibleModule

POLL_SECONDS = 0.5
QUIET_LOOKS = 2  # the engine's gauge of running requests lags


def servers():
    """{name: record} of the servers that are deployed here."""
    records = {name: store.read_record(name, store.read_state(name)["release"]) for name in store.names()}
    return {name: record for name, record in records.items() if record and record.get("kind") != "gateway"}


def busy(records):
    """{name: requests} of the servers that have some. One that does not say how many it has is taken for idle."""
    shown = systemd.show(list(records))
    told = {name: loads.of(record, shown.get(name, {}), True) for name, record in records.items()
            if systemd.state(shown.get(name, {})) == "active"}
    counts = {name: (now["running"] or 0) + (now["queued"] or 0) for name, now in told.items()}
    return {name: count for name, count in counts.items() if count}


def idle(records, timeout):
    """What is still busy when nothing has run for some looks, or when the time is over: {} or {name: requests}."""
    limit, quiet = time.monotonic() + timeout, 0
    while True:
        left = busy(records)
        quiet = 0 if left else quiet + 1
        if quiet >= QUIET_LOOKS or time.monotonic() > limit:
            return left
        time.sleep(POLL_SECONDS)


def mark(wanted):
    """Set the mark, or take it off."""
    if wanted:
        store.write_atomic(gateways.DRAINED, json.dumps({"since": int(time.time())}) + "\n")
    else:
        os.unlink(gateways.DRAINED)


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["listed", "marked", "idle", "unmarked"]},
            "gateways": {"type": "list", "elements": "dict", "default": []},
            "left_out": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    state, started = module.params["state"], time.monotonic()
    records = servers()
    refused = group.cut(list(records), module.params["left_out"])
    if refused:
        module.fail_json(msg=refused, exit_hint=7)
    recorded = [entry for record in records.values() for entry in record.get("gateways") or []]
    report = {"kind": "drain", "gateways": module.params["gateways"] or recorded, "drained": gateways.drained(),
              "servers": sorted(records)}
    changed = state in ("marked", "unmarked") and (state == "marked") != gateways.drained()
    if changed and not module.check_mode:
        mark(state == "marked")
    if state == "idle" and not module.check_mode:
        left = idle(records, module.params["timeout"])
        if left:
            said = ", ".join("%s has %d requests" % item for item in sorted(left.items()))
            module.fail_json(msg="after %d s %s. It gets no new ones; wait longer with --timeout, or stop it."
                             % (module.params["timeout"], said), sglang_ops=report)
    report["seconds"] = round(time.monotonic() - started, 2)
    module.exit_json(changed=changed, sglang_ops=report)


if __name__ == "__main__":
    main()
