#!/usr/bin/python
"""Make docker or podman present and ready on a host, without disturbing what runs there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_engine
short_description: Make docker or podman present and ready
description:
  - Installs the distribution's packages where the engine is missing (Debian, Ubuntu); an engine that is there,
    however it came, is kept.
  - Merges what is needed into C(/etc/docker/daemon.json), or writes a drop-in of its own for podman.
  - Never restarts a docker that runs containers; it says what is to be done instead.
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
    description: Whether the engine must resolve CDI device names, as GPUs need.
    type: bool
    default: false
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
"""

RETURN = r"""
sglang_ops:
  description: The engine's state in a few words.
  returned: always
  type: dict
"""

import time

from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_apt import Apt, AptError
from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_progress import Progress
from ansible.module_utils.sglang_host_state import write_atomic

READY_SECONDS = 90


class Failure(Exception):
    """The engine is not ready; the message says why and what to do."""


def diff(needed):
    """What changes, in the form that `--diff` shows."""
    shown = []
    if needed.after is not None:
        shown.append({"before_header": needed.path, "after_header": needed.path,
                      "before": needed.before or "", "after": needed.after})
    if needed.packages:
        shown.append({"before_header": "packages", "after_header": "packages",
                      "before": "", "after": "".join(name + "\n" for name in needed.packages)})
    return shown


def apply(needed, desired, progress):
    """Do what is needed; returns the plan that was carried out (fresh package lists can refine it)."""
    if needed.packages:
        Apt(progress).refresh()
        needed = engines.plan(engines.observe(desired.engine), desired)
        if needed.refusal:
            raise Failure(needed.refusal)
    if needed.after is not None:
        write_atomic(needed.path, needed.after)
    if needed.packages:
        Apt(progress).install(needed.packages)
    if needed.service:
        progress.report("waiting for docker")
        tell(needed.service)
    return needed


def tell(word):
    """Start, restart, reload or enable docker."""
    if word in ("start", "enable"):
        commands = [("enable", "--quiet", "docker.service"), ("start", "docker.service")]
    else:
        commands = [(word, "docker.service")]
    for command in commands:
        done = run("systemctl", *command, timeout=READY_SECONDS)
        if not done.ok:
            why = done.stderr.strip().split("\n")[0]
            raise Failure("systemctl %s says: %s See `journalctl -u docker` on the host." % (" ".join(command), why))


def wait_ready(desired):
    """Until the engine is there with everything in effect. Raises Failure."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        current = engines.observe(desired.engine)
        lacking = engines.plan(current, desired)
        if not lacking.changed and not lacking.refusal:
            return current
        if time.monotonic() > deadline:
            missing = lacking.refusal or ", ".join(lacking.steps)
            raise Failure("%s is not ready after %d s, still to do: %s. See `journalctl -u docker` on the host." % (
                desired.engine, READY_SECONDS, missing))
        time.sleep(0.5)


def main():
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["docker", "podman"], "default": "docker"},
            "insecure_registries": {"type": "list", "elements": "str", "default": []},
            "wants_cdi": {"type": "bool", "default": False},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    desired = engines.Desired(asked["engine"], tuple(asked["insecure_registries"]), asked["wants_cdi"])
    current = engines.observe(desired.engine)
    needed = engines.plan(current, desired)

    def leave(detail, **result):
        end = module.fail_json if "msg" in result else module.exit_json
        end(sglang_ops={"kind": "engine", "detail": detail}, **result)

    if needed.refusal:
        leave("refused", msg=needed.refusal, exit_hint=7)
    if module.check_mode and needed.changed:
        leave("would " + ", ".join(needed.steps), changed=True, diff=diff(needed))
    if needed.changed:
        try:
            with Progress(asked["progress_token"], "engine") as progress:
                needed = apply(needed, desired, progress)
                current = wait_ready(desired)
        except (AptError, Failure, OSError) as error:
            leave("failed", msg="%s cannot be made ready: %s" % (desired.engine, error), diff=diff(needed))
    leave("%s %s ready" % (desired.engine, current.version), changed=needed.changed, diff=diff(needed))


if __name__ == "__main__":
    main()
