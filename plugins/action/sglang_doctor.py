"""Look at a host (one module execution) and judge, on the controller, whether it is fit to serve."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 (Ansible's own name for it)
from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops import catalog
from sglang_ops.action_inputs import FILES_VARIABLE, SECTIONS, deployments_of, group_for, hub_token, plain, resolve_once
from sglang_ops.addresses import address_of
from sglang_ops.errors import OpsError
from sglang_ops.gateways import gateways_of
from sglang_ops.planning import HostFacts, ResolvedImage, Secrets, Settings, Wanted, questions
from sglang_ops.planning.doctor import diagnose
from sglang_ops.planning.doctor_facts import Examined, Finding, Machine
from sglang_ops.planning.nodes import Group, placed
from sglang_ops.planning.questions import with_repository
from sglang_ops.registry import RegistryUnreachable
from sglang_ops.spec import Deployment


class ActionModule(ActionBase):
    """`sglang_doctor`: arguments are the settings of the role; returns the findings as `sglang_ops.problems` and
    `sglang_ops.warnings`."""

    TRANSFERS_FILES = False
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        task_vars = task_vars or {}
        settings = Settings.model_validate(plain(self._task.args))
        told: list[Finding] = []
        groups: dict[str, Group | None] = {}
        try:
            deployments, in_front = self._deployments(task_vars)
            groups = {item.service_name: group_for(item, task_vars, self._templar) for item in deployments}
        except OpsError as error:
            deployments, in_front = (), False
            told = [Finding("deployment", error.message, error.fix or "Correct the deployment file.")]
        images = {item.image: self._image(item.image, settings) for item in deployments}
        resolved = [image for image in images.values() if isinstance(image, ResolvedImage)]
        asked = questions(deployments, settings, resolved)
        asked["wants_cdi"] = bool(deployments) or not in_front
        asked["disks"] = asked["disks"] or [f"{settings.hf_home}/hub"]
        arguments = {"asked": asked, "tokens": [hub_token(item) for item in with_repository(deployments)]}
        started = time.time()
        answer = self._execute_module("sglang_doctor", module_args=arguments, task_vars=task_vars)
        ended = time.time()
        if answer.get("failed") or answer.get("unreachable") or "facts" not in answer:
            return result | dict(answer)
        host = str(task_vars["inventory_hostname"])
        address = address_of(host, task_vars)
        facts = HostFacts.model_validate(answer["facts"] | {"host": host, "address": address})
        machine = Machine.model_validate(answer["machine"])
        wanted, unresolved = _wanted(deployments, images, facts, groups)
        seen = Examined(facts, machine, settings, deployments, asked=started, answered=ended, in_front=in_front)
        found = diagnose(seen, wanted, [*told, *unresolved])
        own = {"kind": "doctor", **asdict(found)}
        if not found.problems:
            return result | {"changed": False, "sglang_ops": own}
        lines = [f"{item.check}: {item.detail}. Fix: {item.remedy}" for item in found.problems]
        return result | {"failed": True, "msg": "\n".join(lines), "exit_hint": 7, "sglang_ops": own}

    def _deployments(self, task_vars: Mapping[str, Any]) -> tuple[tuple[Deployment, ...], bool]:
        """The deployments of this host, and whether it runs a gateway; none where there is no file and its variables
        hold none."""
        if task_vars.get(FILES_VARIABLE) or task_vars.keys() & set(SECTIONS[:2]):
            return deployments_of(task_vars, self._templar), bool(gateways_of(task_vars, self._templar))
        return (), False

    def _image(self, ref: str, settings: Settings) -> ResolvedImage | OpsError:
        try:
            return resolve_once(ref, settings, Path(C.DEFAULT_LOCAL_TMP))
        except OpsError as error:
            return error


def _wanted(
    deployments: Sequence[Deployment],
    images: Mapping[str, ResolvedImage | OpsError],
    facts: HostFacts,
    groups: Mapping[str, Group | None],
) -> tuple[list[Wanted], list[Finding]]:
    """The deployments as planning takes them, and a finding for each image that the registry did not give.

    An image without a digest counts as present: what else the deployment needs is judged all the same.
    """
    wanted, findings = [], []
    for item in deployments:
        image = images[item.image]
        if isinstance(image, OpsError):
            deployed = facts.service(item.service_name)
            known = bool(deployed and deployed.record.get("image") == item.image)
            remedy = image.fix or "Check the image's name, and that this machine reaches the registry."
            away = isinstance(image, RegistryUnreachable) and known
            findings.append(Finding("image", image.message, remedy, warning=away))
            facts.images[item.image] = True
            image = ResolvedImage(item.image, item.image, release=catalog.release_of(item.image) or "")
        group = groups[item.service_name]
        here = placed(item, group, facts) if group else item
        wanted.append(Wanted(here, image, Secrets.of(item, os.environ)))
    return wanted, findings
