#!/usr/bin/python
"""Hand models and compiled kernels of a host to the other hosts of the run, for a while."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_share
short_description: Let the other hosts of the run have the models and compiled kernels of this host
description:
  - Starts a transient unit, C(sglang-ops-peers), which serves these files over HTTPS to whoever has the
    certificate of the run, and ends when nobody has asked for a minute.
  - Nothing is kept on the host. Where it cannot be started the result says so in C(warnings), and nothing fails.
options:
  peers:
    description: What is shared, and how; the action plugin of the same name fills it in.
    type: dict
    required: true
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Have hosts that hold a model share it
  sglang_share:
    peers: {port: 7437}
  loop: "{{ ansible_play_hosts | sglang_seeds(hostvars, ansible_play_batch, 7437) }}"
  delegate_to: "{{ item }}"
  run_once: true
"""

RETURN = r"""
sglang_ops:
  description: What did not work.
  returned: always
  type: dict
"""

from ansible.module_utils import sglang_host_peers as peers
from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec={"peers": dict(peers.ARGUMENT, required=True)}, supports_check_mode=True)
    warnings = [] if module.check_mode else peers.serve(module.params["peers"])
    module.exit_json(changed=False, sglang_ops={"kind": "share", "warnings": warnings})


if __name__ == "__main__":
    main()
