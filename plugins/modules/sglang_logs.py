#!/usr/bin/python
"""Read the journal of SGLang services."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_logs
short_description: Read the journal of SGLang services
description:
  - Read-only. Lines come oldest first, with a cursor from which to read on.
options:
  services:
    description: Names of the services; an empty list means every service deployed on the host.
    type: list
    elements: str
    default: []
  lines:
    description: At most so many lines.
    type: int
    default: 100
  since:
    description: No lines before this time, as C(journalctl --since) reads it.
    type: str
    default: ""
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Read the last ten lines
  sglang_logs:
    lines: 10
"""

RETURN = r"""
sglang_ops:
  description: The lines, and the cursor after the last one.
  returned: always
  type: dict
"""

from ansible.module_utils import sglang_host_journal as journal
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_command import run


def main():
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "str", "default": []},
            "lines": {"type": "int", "default": 100},
            "since": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    names = module.params["services"] or store.names()
    since = ["--since", module.params["since"]] if module.params["since"] else []
    done = run(*journal.command(names), "--lines", str(module.params["lines"]), *since)
    if not done.ok:
        module.fail_json(msg="journalctl says: %s" % done.error)
    lines, cursor = journal.parse(done.stdout)
    module.exit_json(changed=False, sglang_ops={"kind": "logs", "lines": lines, "cursor": cursor})


if __name__ == "__main__":
    main()
