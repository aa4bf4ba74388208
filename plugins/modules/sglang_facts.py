#!/usr/bin/python
"""Everything that planning needs to know of a host, in one read-only execution."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sglang_facts
short_description: Report GPUs, engine, image, model, ports, disks and deployed services of a host
description:
  - Read-only, in check mode as in any other.
  - Deployed services that are active are asked the gate's questions once, so that a converged host needs
    no second execution.
options:
  engine:
    description: The container engine to look at.
    type: str
    choices: [docker, podman]
    default: docker
  insecure_registries:
    description: Registries that the engine must accept without TLS.
    type: list
    elements: str
    default: []
  wants_cdi:
    description: Whether the engine must resolve CDI device names.
    type: bool
    default: false
  topology:
    description: Whether the links between GPUs are wanted; with two or fewer there is nothing to choose.
    type: bool
    default: false
  images:
    description: Image references by digest to look for.
    type: list
    elements: str
    default: []
  unresolved:
    description: Images by tag whose registry cannot be asked; which digest each had when it was loaded from files?
    type: list
    elements: str
    default: []
  arguments_of:
    description: Images by digest whose lists of arguments are wanted, as far as M(sglang_image) has asked for them.
    type: list
    elements: str
    default: []
  models:
    description:
      - Hub models to look for, with repo, revision, endpoint and the directory of the cache (hub).
      - With what another host has of it (offer; commit, bytes and files), the hub is not asked.
    type: list
    elements: dict
    default: []
  tokens:
    description: Hub tokens in the order of O(models), used only where a model is not in the cache.
    type: list
    elements: str
    default: []
  checkpoints:
    description: Local model directories to look for.
    type: list
    elements: str
    default: []
  ports:
    description: TCP ports whose listeners are to be named.
    type: list
    elements: int
    default: []
  disks:
    description: Paths whose free space is wanted, besides the engine's.
    type: list
    elements: str
    default: []
  jit_cache:
    description: The directory of compiled kernels; which of those below it hold any?
    type: str
    default: ""
  runtime:
    description: Names to look up in C(/etc/sglang-ops/runtime.env).
    type: list
    elements: str
    default: []
  toward:
    description: Address of another host, to which C(interface) shall lead.
    type: str
    default: ""
  loads:
    description: Also ask the services for their load and the GPUs for their use (for C(status)).
    type: bool
    default: false
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Look at the host
  sglang_facts:
    ports: [8000]
"""

RETURN = r"""
facts:
  description: The host's facts, as sglang_ops.planning.facts.HostFacts reads them.
  returned: always
  type: dict
"""

from ansible.module_utils import sglang_host_facts as host
from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["docker", "podman"], "default": "docker"},
            "insecure_registries": {"type": "list", "elements": "str", "default": []},
            "wants_cdi": {"type": "bool", "default": False},
            "topology": {"type": "bool", "default": False},
            "images": {"type": "list", "elements": "str", "default": []},
            "unresolved": {"type": "list", "elements": "str", "default": []},
            "arguments_of": {"type": "list", "elements": "str", "default": []},
            "models": {"type": "list", "elements": "dict", "default": []},
            "tokens": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "checkpoints": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "list", "elements": "int", "default": []},
            "disks": {"type": "list", "elements": "str", "default": []},
            "jit_cache": {"type": "str", "default": ""},
            "runtime": {"type": "list", "elements": "str", "default": []},
            "toward": {"type": "str", "default": ""},
            "loads": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, facts=host.gather(module.params))


if __name__ == "__main__":
    main()
