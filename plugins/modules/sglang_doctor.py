#!/usr/bin/python
"""Everything by which `doctor` judges a host, in one read-only execution."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_doctor
short_description: Report what decides whether a host is fit to serve
description:
  - Read-only, in check mode as in any other, and without an opinion. What is a problem is decided on the controller.
options:
  asked:
    description: What M(sglang_facts) is asked, except for its tokens and loads.
    type: dict
    required: true
  tokens:
    description: Hub tokens in the order of the models in O(asked), used only where a model is not in the cache.
    type: list
    elements: str
    default: []
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Look at the host as doctor does
  sglang_doctor:
    asked:
      engine: docker
      insecure_registries: []
      wants_cdi: true
      images: []
      arguments_of: []
      models: []
      checkpoints: []
      ports: [8000]
      disks: [/var/lib/sglang-ops/huggingface/hub]
      runtime: []
"""

RETURN = r"""
facts:
  description: The host's facts, as sglang_ops.planning.facts.HostFacts reads them.
  returned: always
  type: dict
machine:
  description: The rest, as sglang_ops.planning.doctor_facts.Machine reads it.
  returned: always
  type: dict
"""

from ansible.module_utils import sglang_host_facts as host
from ansible.module_utils import sglang_host_machine as machine
from ansible.module_utils import sglang_host_nvidia as nvidia
from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(
        argument_spec={
            "asked": {"type": "dict", "required": True},
            "tokens": {"type": "list", "elements": "str", "default": [], "no_log": True},
        },
        supports_check_mode=True,
    )
    asked = module.params["asked"]
    facts = host.gather(dict(asked, tokens=module.params["tokens"], loads=False))
    found = {
        "system": machine.system(),
        "limits": machine.limits(),
        "cgroups": machine.cgroups(asked["engine"]),
        "storage": [machine.storage(path) for path in asked["disks"]],
        "network": machine.network(),
        "firewall": machine.firewall(asked["ports"]),
        "nvidia": nvidia.gather(facts["cdi"]),
        "clock": machine.clock(),  # last, so that the controller's comparison has little to allow for
    }
    module.exit_json(changed=False, facts=facts, machine=found)


if __name__ == "__main__":
    main()
