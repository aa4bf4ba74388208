#!/usr/bin/python
"""Install NVIDIA's driver, hold it, and ask whether it works."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver
short_description: Install NVIDIA's driver and keep it as it is
description:
  - Installs the driver from NVIDIA's repository, a mirror of it or the distribution, pinned to a branch and held, with
    the kernel modules that the GPUs need; keeps nouveau out; starts persistence daemon and fabric manager; loads the
    kernel module and asks nvidia-smi.
  - Never boots the host. It says whether that is needed, and why.
options:
  mode:
    description: Whether to install, or only to ask whether the driver works.
    type: str
    choices: [install, verify]
    default: install
  source:
    description: Where the driver comes from; with V(preinstalled) it is only judged.
    type: str
    choices: [nvidia, distribution, preinstalled]
    default: nvidia
  branch:
    description: Driver branch, such as 580.
    type: str
    default: "580"
  version:
    description: Exact driver version, such as 580.95.05, instead of the branch's newest.
    type: str
    default: ""
  flavour:
    description: Kernel modules; V(auto) goes by the GPUs' generation.
    type: str
    choices: [auto, open, proprietary]
    default: auto
  compute_only:
    description: Whether to leave out what only displays need.
    type: bool
    default: false
  repository:
    description: URL of a mirror of NVIDIA's repository for this distribution and architecture.
    type: str
    default: ""
  key:
    description: URL of the key that signs the repository.
    type: str
    default: ""
  fabric_manager:
    description: Whether the fabric manager is needed; V(auto) goes by the NVSwitches found.
    type: str
    choices: [auto, "true", "false"]
    default: auto
  persistenced:
    description: Whether the persistence daemon runs.
    type: bool
    default: true
  mok:
    description: What to do where Secure Boot is on and the module is built on the host.
    type: str
    choices: [refuse, enrol]
    default: refuse
  mok_password:
    description: One-time password that the firmware asks for when a person confirms the key.
    type: str
    default: ""
  hold:
    description: Whether the driver's packages are held, so that nothing but this module changes them.
    type: bool
    default: true
  require_gpu:
    description: Whether a host without an NVIDIA GPU is refused.
    type: bool
    default: true
  under_load:
    description: Whether the driver may be changed while services or other programs use it.
    type: bool
    default: false
  services:
    description: With O(mode=verify), units that ran before the reboot and have to run again.
    type: list
    elements: str
    default: []
  progress_token:
    description: Name under which the module reports its progress on the host.
    type: str
author: [sglang-ops contributors]
"""

EXAMPLES = r"""
- name: Branch 580 from a mirror
  nvidia_driver:
    branch: "580"
    repository: https://mirror.example/cuda/repos/ubuntu2404/x86_64
"""

RETURN = r"""
sglang_ops:
  description: The driver's version and flavour, whether a reboot is needed and why, services that run, services
    that other hosts run together with this one.
  returned: always
  type: dict
"""

import os

from ansible.module_utils import sglang_host_driver as driver
from ansible.module_utils import sglang_host_driver_packages as catalogue
from ansible.module_utils import sglang_host_driver_work as work
from ansible.module_utils import sglang_host_group as group
from ansible.module_utils import sglang_host_state as state
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sglang_host_packages import PackageError, Packages
from ansible.module_utils.sglang_host_progress import Progress

NEEDS_HANDS = 4
REFUSED = 7


class Run:
    """One execution: what was asked, what is found, what is said at the end."""

    def __init__(self, module):
        self.module = module
        asked = module.params
        self.options = catalogue.Options(**{name: asked[name] for name in (
            "source", "branch", "version", "flavour", "compute_only", "fabric_manager", "persistenced", "repository",
            "key")})
        self.policy = driver.Policy(asked["hold"], asked["require_gpu"], asked["mok"] == "enrol", asked["under_load"])
        self.wanted = catalogue.Wanted("")
        self.found = driver.Found(driver.system())
        self.pending = False  # a key waits for somebody to confirm it

    def observe(self, packages):
        devices, switches = driver.hardware()
        self.wanted = catalogue.wanted(self.found.system, self.options, devices, switches)
        self.found = driver.observe(self.found.system, self.wanted, devices, switches, packages,
                                    self.module.check_mode)

    def reasons(self):
        told = driver.reasons(self.found, self.wanted)
        return [*told, "the key for Secure Boot has to be confirmed on the console"] if self.pending else list(told)

    def leave(self, detail, planned=None, **result):
        for text in planned.warnings if planned else ():
            self.module.warn(text)
        reasons = [] if result.get("exit_hint") == REFUSED else self.reasons()
        end = self.module.fail_json if "msg" in result else self.module.exit_json
        end(sglang_ops={
            "kind": "driver", "detail": detail, "version": driver.version_of(self.found, self.wanted),
            "flavour": self.wanted.flavour, "reboot": bool(reasons), "reasons": reasons,
            "services": list(self.found.services),
            "shared": group.shared(state.names()),
        }, **result)

    def refuse(self, why):
        self.leave("refused", msg=why, exit_hint=REFUSED)

    def apply(self, planned, packages, progress):
        """Carry the plan out; what was to come after the packages is planned again with them in place."""
        work.install(self.found, self.wanted, self.options, planned, packages, progress)
        self.observe(packages)
        rest = driver.plan(self.found, self.wanted, self.options, self.policy)
        if rest.packages:
            raise work.Failure("after the installation there still is to %s." % ", ".join(rest.steps))
        if rest.hold:
            packages.hold(rest.hold)
        if self.found.secure_boot and self.wanted.builds and not self.found.loaded:
            self.pending = work.enrol(self.module.params["mok_password"])
        if rest.load and not self.pending:
            work.load(self.found, self.wanted, packages, progress)
        self.observe(packages)
        rest = driver.plan(self.found, self.wanted, self.options, self.policy)
        work.start(rest.services, bool(self.found.devices) and not self.reasons())

    def ask(self):
        """What nvidia-smi says, where it can answer already."""
        if self.found.devices and self.reasons():
            return "needs a reboot: " + ", ".join(self.reasons())
        return work.verify(self.found, self.wanted)


def diff(found, planned):
    """What changes, in the form that `--diff` shows."""
    shown = [{"before_header": path, "after_header": path, "before": "", "after": text}
             for path, text in found.files.items()]
    steps = [step for step in planned.steps if not step.startswith("write ")]
    if steps:
        shown.append({"before_header": "steps", "after_header": "steps", "before": "",
                      "after": "".join(step + "\n" for step in steps)})
    return shown


def main():
    module = AnsibleModule(
        argument_spec={
            "mode": {"type": "str", "choices": ["install", "verify"], "default": "install"},
            "source": {"type": "str", "choices": ["nvidia", "distribution", "preinstalled"], "default": "nvidia"},
            "branch": {"type": "str", "default": "580"},
            "version": {"type": "str", "default": ""},
            "flavour": {"type": "str", "choices": ["auto", "open", "proprietary"], "default": "auto"},
            "compute_only": {"type": "bool", "default": False},
            "repository": {"type": "str", "default": ""},
            "key": {"type": "str", "default": "", "no_log": False},
            "fabric_manager": {"type": "str", "choices": ["auto", "true", "false"], "default": "auto"},
            "persistenced": {"type": "bool", "default": True},
            "mok": {"type": "str", "choices": ["refuse", "enrol"], "default": "refuse"},
            "mok_password": {"type": "str", "default": "", "no_log": True},
            "hold": {"type": "bool", "default": True},
            "require_gpu": {"type": "bool", "default": True},
            "under_load": {"type": "bool", "default": False},
            "services": {"type": "list", "elements": "str", "default": []},
            "progress_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    asked = module.params
    doing = Run(module)
    with Progress(None if module.check_mode else asked["progress_token"], "driver") as progress:
        packages = Packages(doing.found.system.family, progress)
        try:
            doing.observe(packages)
        except catalogue.Unsupported as error:
            doing.refuse(str(error))
        try:
            if asked["mode"] == "verify":
                detail = work.verify(doing.found, doing.wanted)
                work.wait_for(asked["services"])
                doing.leave(detail, changed=False)
            planned = driver.plan(doing.found, doing.wanted, doing.options, doing.policy)
            if planned.refusal:
                doing.refuse(planned.refusal)
            before = doing.found
            if module.check_mode and planned.changed:
                doing.leave("would " + ", ".join(planned.steps), planned, changed=True, diff=diff(before, planned))
            if planned.changed:
                doing.apply(planned, packages, progress)
        except (PackageError, work.Failure, OSError) as error:
            doing.leave("failed", msg="The driver cannot be %s: %s" % (
                "installed" if asked["mode"] == "install" else "used", error))
        try:
            detail = doing.ask()
        except work.Failure as error:
            if asked["source"] == "preinstalled":
                doing.refuse("nvidia_driver_source is preinstalled, and %s Set it to nvidia or distribution." % error)
            doing.leave("failed", msg="The driver is installed, but does not work: %s" % error, exit_hint=NEEDS_HANDS)
        doing.leave(detail, planned, changed=planned.changed, diff=diff(before, planned))


if __name__ == "__main__":
    main()
