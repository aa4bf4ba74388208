#!/usr/bin/python
"""Who is at work on a host, and how a lock is taken from somebody by force."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_lock
short_description: Lock a host for one run, tell who has the lock, or release it
description:
  - With C(state=held) the action plugin of the same name does the work. It keeps a process on the host that has the
    lock for as long as ansible-playbook lives; this module is not executed then.
options:
  state:
    description: Take the lock for this run, only tell who has it, or end the process that holds it.
    type: str
    choices: [held, query, released]
    default: query
  run:
    description: With C(state=released), release only the lock of this run; empty for whichever holds it.
    type: str
    default: ""
  wait:
    description: With C(state=held), seconds to wait for somebody else to end.
    type: float
    default: 0
  settle:
    description: With C(state=held), seconds to wait for modules of a run that ended without them.
    type: float
    default: 0
  hosts:
    description: With C(state=held), the hosts that will ask for their lock in this run, in the order in which they get
      it.
    type: list
    elements: str
    default: []
  planned:
    description: With C(state=held), the generation of the lock when the host was looked at; C(moved) says whether
      somebody has had the lock since.
    type: str
    default: ""
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: See who is at work
  sglang_lock:
    state: query
"""

RETURN = r"""
sglang_ops:
  description: C(holder) says who has, or had, the lock; empty if nobody.
  returned: always
  type: dict
"""

from ansible.module_utils import sglang_host_lock as lock
from ansible.module_utils.basic import AnsibleModule


def plan(holder, run):
    """Whether a lock held by `holder` ({} for nobody) shall be released by somebody who means the run `run`."""
    return bool(holder) and run in ("", holder.get("run"))


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "default": "query", "choices": ["held", "query", "released"]},
            "run": {"type": "str", "default": ""},
            "wait": {"type": "float", "default": 0},
            "settle": {"type": "float", "default": 0},
            "hosts": {"type": "list", "elements": "str", "default": []},
            "planned": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    holder = lock.current()
    release = module.params["state"] == "released" and plan(holder, module.params["run"])
    if release and not module.check_mode:
        try:
            lock.release()
        except OSError as error:
            module.fail_json(msg="the lock cannot be released: %s" % error)
    own = {"kind": "lock", "holder": holder, "released": release}
    diff = {"before": "locked by %s\n" % holder.get("who"), "after": "free\n"} if release else []
    module.exit_json(changed=release, diff=diff, sglang_ops=own)


if __name__ == "__main__":
    main()
