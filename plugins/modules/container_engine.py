#!/usr/bin/python
"""Make docker or podman present and ready on a host, without disturbing what runs there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_engine
short_description: Make docker or podman present and ready
description:
  - Installs docker or podman where it is missing, from the distribution or from Docker's repository. An engine that is
    there, however it came, is kept.
  - Merges what is needed into C(/etc/docker/daemon.json), or writes a drop-in of its own for podman.
  - Installs NVIDIA's container toolkit where it is asked for, at one version that is held, and keeps the CDI
    specification of the GPUs current.
  - Never restarts a docker that runs containers, unless O(restart) allows it; it says what is to be done instead.
options:
  engine:
    description: The container engine.
    type: str
    choices: [docker, podman]
    default: docker
  insecure_registries:
    description: Registries (C(host:port)) that the engine must accept without TLS.
    type: list
    elements: str
    default: []
  wants_cdi:
    description: Whether the engine must resolve CDI device names, as GPUs need. Implied by O(toolkit).
    type: bool
    default: false
  source:
    description: Where an engine that is missing comes from. V(docker) is Docker's own repository, for docker only.
    type: str
    choices: [distribution, docker]
    default: distribution
  repository:
    description: Docker's repository, or a mirror with the same layout.
    type: str
    default: https://download.docker.com/linux
  repository_key:
    description: URL of the key that signs it; without one, C(gpg) in the distribution's folder of the repository.
    type: str
    default: ""
  version:
    description: Version of the engine, 28.5.1 say, which is then held.
    type: str
    default: ""
  replace:
    description: Whether a docker of other packages is exchanged for Docker's own.
    type: bool
    default: false
  daemon:
    description: Settings to be merged into C(/etc/docker/daemon.json).
    type: dict
    default: {}
  restart:
    description: Whether docker may be restarted, and exchanged, while it runs containers. This stops them.
    type: bool
    default: false
  toolkit:
    description: Whether to have NVIDIA's container toolkit. V(auto) means where there is an NVIDIA GPU.
    type: str
    choices: [auto, "true", "false"]
    default: "false"
  toolkit_version:
    description: Its version. A newer one that is there stays.
    type: str
    default: 1.20.1-1
  toolkit_repository:
    description: Its repository, or a mirror with the same layout.
    type: str
    default: https://nvidia.github.io/libnvidia-container/stable
  toolkit_repository_key:
    description: URL of the key that signs it.
    type: str
    default: https://nvidia.github.io/libnvidia-container/gpgkey
  progress_token:
    description: Name under which the module reports its progress on the host.
    type: str
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Have podman, which accepts the registry of the lab
  container_engine:
    engine: podman
    insecure_registries: ["198.18.0.2:5000"]

- name: Have Docker's docker, and the toolkit where there are GPUs
  container_engine:
    source: docker
    version: 28.5.1
    toolkit: auto
    daemon:
      log-opts: {max-size: 50m}
"""

RETURN = r"""
sglang_ops:
  description: The state of engine and toolkit in a few words, what was or would be done, and what needs attention.
  returned: always
  type: dict
"""

from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils import sglang_host_engine_setup as setup
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_engine_packages import DOCKER_URL, Origin
from ansible.module_utils.sglang_host_packages import PackageError
from ansible.module_utils.sglang_host_progress import Progress
from ansible.module_utils.sglang_host_toolkit import KEY, URL, VERSION, Wanted


def wish(asked):
    """The parameters as planning takes them."""
    desired = engines.Desired(asked["engine"], tuple(asked["insecure_registries"]), asked["wants_cdi"],
                              asked["daemon"], asked["restart"])
    origin = Origin(asked["source"], asked["repository"], asked["repository_key"], asked["version"],
                    asked["replace"], asked["restart"])
    toolkit = Wanted(asked["toolkit_version"], asked["toolkit_repository"], asked["toolkit_repository_key"])
    return setup.Wish(desired, origin, asked["toolkit"], toolkit)


def ready(seen, toolkit):
    """What there is now, in a few words."""
    words = ["%s ready" % (seen.current.version or "")]
    if seen.toolkit:
        words.append("container toolkit %s" % toolkit.version)
    return ", ".join(words)


def main():
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["docker", "podman"], "default": "docker"},
            "insecure_registries": {"type": "list", "elements": "str", "default": []},
            "wants_cdi": {"type": "bool", "default": False},
            "source": {"type": "str", "choices": ["distribution", "docker"], "default": "distribution"},
            "repository": {"type": "str", "default": DOCKER_URL},
            "repository_key": {"type": "str", "default": "", "no_log": False},
            "version": {"type": "str", "default": ""},
            "replace": {"type": "bool", "default": False},
            "daemon": {"type": "dict", "default": {}},
            "restart": {"type": "bool", "default": False},
            "toolkit": {"type": "str", "choices": ["auto", "true", "false"], "default": "false"},
            "toolkit_version": {"type": "str", "default": VERSION},
            "toolkit_repository": {"type": "str", "default": URL},
            "toolkit_repository_key": {"type": "str", "default": KEY, "no_log": False},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    wanted = wish(module.params)
    engine = wanted.desired.engine
    seen = setup.see(wanted)
    planned = setup.decide(seen, wanted)

    def leave(detail, **result):
        end = module.fail_json if "msg" in result else module.exit_json
        end(sglang_ops={"kind": "engine", "detail": detail, "steps": list(planned.steps),
                        "warnings": list(planned.notes)}, **result)

    refusal = planned.refusal or setup.invalid(planned.engine)
    if refusal:
        leave("refused", msg=refusal, exit_hint=7)
    for note in planned.notes:
        module.warn(note)
    if module.check_mode and planned.changed:
        leave("would " + ", ".join(planned.steps), changed=True, diff=planned.diff)
    diff = planned.diff
    if planned.changed:
        try:
            with Progress(module.params["progress_token"], "engine") as progress:
                planned = setup.apply(planned, seen, wanted, progress)
                seen = setup.see(wanted)
        except (PackageError, setup.Failure, OSError) as error:
            leave("failed", msg="%s cannot be made ready: %s" % (engine, error), diff=diff)
    leave("%s %s" % (engine, ready(seen, planned.toolkit)), changed=planned.changed, diff=diff)


if __name__ == "__main__":
    main()
