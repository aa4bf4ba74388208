"""Look at a host (one module execution) and plan, on the controller, what must happen on it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 (Ansible's own name for it)
from ansible.plugins.action import ActionBase

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops import catalog, rollout
from sglang_ops.action_inputs import (
    ROLLOUT_VARIABLE,
    base_of,
    evaluated_file,
    files_of,
    fleet_of,
    group_for,
    hub_token,
    left_out,
    meant_for,
    plain,
    resolve_once,
    tagged,
)
from sglang_ops.addresses import address_of
from sglang_ops.errors import OpsError
from sglang_ops.fleet import offers
from sglang_ops.gateways import before, gateways_of
from sglang_ops.groups import plans_of_mates
from sglang_ops.planning import (
    HostFacts,
    ResolvedImage,
    Secrets,
    Settings,
    Wanted,
    WantedGateway,
    Worker,
    plan,
    questions,
)
from sglang_ops.planning.nodes import Group, placed
from sglang_ops.planning.questions import with_repository
from sglang_ops.planning.together import NOTHING, due
from sglang_ops.registered import plan_of
from sglang_ops.registry import RegistryUnreachable
from sglang_ops.rollout_run import RunRollout
from sglang_ops.spec import Deployment, DeploymentFile, Gateway

# Ansible loads this before it forks a worker for each host: they need not look through, and so copy, what is loaded.
gc.freeze()

WITHOUT_REGISTRY = "Where there is none, bring the image with `sglang-ops images load`."


@dataclass(frozen=True)
class _Given:
    """What is known of a host's plan before the host is asked; `earlier` is the plan made before in this run."""

    host: str
    files: tuple[DeploymentFile, ...]
    deployments: tuple[Deployment, ...]
    groups: dict[str, Group | None]
    fronts: list[tuple[Gateway, Deployment, tuple[Worker, ...]]]
    run: RunRollout
    settings: Settings
    images: dict[str, tuple[ResolvedImage | None, str | None]]
    earlier: Mapping[str, Any]

    def gateways(self, chosen: _Images) -> list[WantedGateway]:
        return [
            WantedGateway(gateway, item, image, workers, Secrets.of(gateway, os.environ))
            for gateway, item, workers in self.fronts
            if (image := chosen.of(gateway.service_name, gateway.image))
        ]


class ActionModule(ActionBase):
    """`sglang_plan`: arguments are the settings of the role; returns the plan as `sglang_ops.plan`.

    With `mates`, hosts that serve a model together have been planned, and each does what the others need.
    """

    TRANSFERS_FILES = False
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        task_vars = task_vars or {}
        try:
            return result | self._plan(task_vars)
        except OpsError as error:
            message = f"{error.message} {error.fix or ''}".strip()
            return result | self._refused([{"check": "deployment", "message": message}])

    def _plan(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        given = self._given(task_vars)
        asked = self._questions(given)
        in_vain = _offer(asked["models"], given.earlier, task_vars)
        if in_vain:
            return self._refused(in_vain)
        answer = self._execute_module("sglang_facts", module_args=asked, task_vars=task_vars)
        if answer.get("failed") or answer.get("unreachable") or "facts" not in answer:
            return dict(answer)
        named = {"host": given.host, "address": address_of(given.host, task_vars)}
        facts = HostFacts.model_validate(answer["facts"] | named)
        chosen = _Images(given.images, given.settings, facts)
        wanted, gateways = self._wanted(given, facts, chosen, task_vars), given.gateways(chosen)
        problems = [{"check": "image", "message": text} for text in dict.fromkeys(chosen.errors)]
        problems = problems or [
            {"check": "rollout", "message": text} for text in given.run.changed(given.deployments, facts)
        ]
        if problems:
            return self._refused(problems)
        made = plan(wanted, facts, given.settings, gateways).as_dict()
        if made["errors"]:
            more = given.settings.peer_port and len(task_vars["ansible_play_hosts"]) > 1
            later = made["undecided"] and more and not given.earlier
            return _deferred(made) if later else self._refused(made["errors"])
        made["rollout"] = given.run.of_host(wanted, made["services"], given.settings, facts)
        made["rollout"]["moved"] = rollout.moved(given.earlier, made["rollout"]["images"])
        made["warnings"] = [*made["warnings"], *dict.fromkeys(chosen.warnings), *made["rollout"]["moved"]]
        told = {"kind": "plan", "plan": made, "left_out": left_out(given.files, task_vars)}
        return {"changed": False, "generation": answer["facts"]["generation"], "sglang_ops": told}

    def _given(self, task_vars: dict[str, Any]) -> _Given:
        """What files, variables and registries say. Raises OpsError for what cannot be."""
        files = files_of(task_vars, self._templar)
        deployments = meant_for(files, task_vars)
        fronts = gateways_of(task_vars, self._templar)
        asked_for = plain(self._templar.template(task_vars.get(ROLLOUT_VARIABLE) or {}))
        run = RunRollout.of(files, {"run": Path(C.DEFAULT_LOCAL_TMP).name} | asked_for)
        run.check_size(fleet_of(files, task_vars))
        earlier = plan_of(task_vars)
        if earlier:
            run = run.going_on(list(task_vars["ansible_play_hosts_all"]), task_vars["hostvars"])
        arguments = {key: value for key, value in plain(self._task.args).items() if key != "mates"}
        settings = Settings.model_validate(arguments | run.timeouts)
        if run.settings.gate and run.settings.gate.policy:
            from sglang_ops.evaluation import release_gate

            for item in deployments:
                file = evaluated_file(task_vars, self._templar, item)
                release_gate.read(run.settings.gate.model_dump(), file, item, base_of(task_vars))
        named = [item.image for item in deployments] + [gateway.image for gateway, _, _ in fronts]
        return _Given(
            host=str(task_vars["inventory_hostname"]),
            files=files,
            deployments=deployments,
            groups={item.service_name: group_for(item, task_vars, self._templar) for item in deployments},
            fronts=fronts,
            run=run,
            settings=settings,
            images={image: self._image(image, settings, run.digests.get(image)) for image in dict.fromkeys(named)},
            earlier=earlier,
        )

    @staticmethod
    def _questions(given: _Given) -> dict[str, Any]:
        """The arguments of `sglang_facts`."""
        servers = [given.images[item.image][0] for item in given.deployments]
        others = [given.images[gateway.image][0] for gateway, _, _ in given.fronts]
        known = [image for image in servers if image]
        asked = questions(given.deployments, given.settings, known, [gateway for gateway, _, _ in given.fronts])
        asked["images"] += [image.digest_ref for image in others if image and image not in known]
        asked["unresolved"] = [tagged(ref, given.settings) for ref, (image, _) in given.images.items() if image is None]
        asked["tokens"] = [hub_token(item) for item in with_repository(given.deployments)]
        asked["toward"] = next((group.other(given.host) for group in given.groups.values() if group), "")
        return asked

    def _wanted(self, given: _Given, facts: HostFacts, chosen: _Images, task_vars: dict[str, Any]) -> list[Wanted]:
        mates = plans_of_mates(given.groups.values(), task_vars) if self._task.args.get("mates") else {}
        return [
            Wanted(
                placed(item, group, facts) if group else item,
                image,
                Secrets.of(item, os.environ),
                before(item, task_vars),
                group.hosts if group else (),
                due(item.service_name, group.hosts, given.host, mates) if group else NOTHING,
            )
            for item in given.deployments
            for group in [given.groups[item.service_name]]
            if (image := chosen.of(item.service_name, item.image))
        ]

    def _image(self, ref: str, settings: Settings, pinned: str | None) -> tuple[ResolvedImage | None, str | None]:
        if pinned:  # a roll-out that goes on keeps its digest, wherever the tag is by now
            return ResolvedImage(ref, pinned, release=catalog.release_of(ref) or ""), None
        try:
            return resolve_once(ref, settings, Path(C.DEFAULT_LOCAL_TMP)), None
        except RegistryUnreachable as error:
            return None, error.message

    @staticmethod
    def _refused(errors: list[dict[str, str]]) -> dict[str, Any]:
        return {
            "failed": True,
            "msg": " ".join(error["message"] for error in errors),
            "exit_hint": 7,
            "sglang_ops": {"kind": "plan", "plan": {"errors": errors, "warnings": [], "steps": [], "services": []}},
        }


def _deferred(made: dict[str, Any]) -> dict[str, Any]:
    """A plan that is made anew once all hosts have been looked at: one of them may have the model."""
    step = {"step": "model", "subject": "models", "why": "the hub is out of reach; another host may have them"}
    later = made | {"errors": [], "deferred": made["errors"], "steps": [step]}
    return {"changed": False, "sglang_ops": {"kind": "plan", "plan": later}}


def _offer(models: list[dict[str, Any]], before: Mapping[str, Any], task_vars: dict[str, Any]) -> Any:
    """Ask for models together with what other hosts hold of them, once all have been planned.

    Returns why a plan that was deferred is refused, [] where it is not.
    """
    offered = offers(task_vars["hostvars"], task_vars["ansible_play_hosts"]) if before else {}
    for model in models:
        model["offer"] = offered.get((model["repo"], model["revision"]))
    return [] if any(model["offer"] for model in models) else before.get("deferred") or []


class _Images:
    """The image of each service: the registry's, else what the host has already."""

    def __init__(
        self, resolved: dict[str, tuple[ResolvedImage | None, str | None]], settings: Settings, facts: HostFacts
    ) -> None:
        self._resolved, self._settings, self._facts = resolved, settings, facts
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def of(self, service: str, ref: str) -> ResolvedImage | None:
        image, warning = self._resolved[ref]
        if image is None:
            loaded = _loaded(ref, self._settings, self._facts)
            image = loaded or _recorded(service, ref, self._facts)
            how = "loaded" if loaded else "deployed"
            text = f"{warning} Using the digest {how} last." if image else f"{warning} {WITHOUT_REGISTRY}"
            (self.warnings if image else self.errors).append(text)
        return image


def _loaded(ref: str, settings: Settings, facts: HostFacts) -> ResolvedImage | None:
    """What was loaded from files under this tag, on hosts that no registry serves."""
    digest_ref = facts.loaded.get(tagged(ref, settings))
    if digest_ref is None:
        return None
    facts.images[digest_ref] = True
    return ResolvedImage(ref, digest_ref, release=catalog.release_of(ref) or "")


def _recorded(service: str, ref: str, facts: HostFacts) -> ResolvedImage | None:
    """The digest that this host runs already, for the time that the registry cannot be asked."""
    deployed = facts.service(service)
    record = deployed.record if deployed else {}
    if record.get("image") != ref:
        return None
    facts.images[record["content"]["image"]] = True
    return ResolvedImage(ref, record["content"]["image"])
