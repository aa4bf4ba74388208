"""From deployments and host facts to a plan: what will be done on one host, step by step, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sglang_ops.planning.checks import check_disks, check_engine, check_evaluations
from sglang_ops.planning.command import hub_cache
from sglang_ops.planning.draft import Draft, draft
from sglang_ops.planning.facts import HostFacts, Service
from sglang_ops.planning.gateway import WantedGateway, gateway_plan, problems_of, worker_url
from sglang_ops.planning.kernels import compiled, lacking
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.questions import repository
from sglang_ops.planning.service import Action, ServicePlan, outage, resolve, service_plan
from sglang_ops.planning.settings import ResolvedImage, Settings
from sglang_ops.planning.steps import Step, steps, why
from sglang_ops.planning.surge import with_way
from sglang_ops.planning.together import stronger
from sglang_ops.planning.wanted import Wanted, around, in_order


@dataclass(frozen=True)
class HostPlan:
    """Everything that `deploy` will do on one host, or the reasons why it refuses.

    `asks` names images that must first say which arguments they take, because nothing else tells their release.
    `models` are to be fetched; `holds` are those that the services use and that are there, for hosts that lack them.
    `undecided`: a model may be had from another host, where the hub is out of reach.
    `kernels` and `compiled` are the same of caches of compiled kernels, which no host needs to have.
    """

    host: str
    errors: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    engine: str = "docker"
    wants_cdi: bool = False
    asks: tuple[str, ...] = ()
    images: tuple[dict[str, Any], ...] = ()
    models: tuple[dict[str, Any], ...] = ()
    holds: tuple[dict[str, Any], ...] = ()
    undecided: bool = False
    kernels: tuple[dict[str, Any], ...] = ()
    compiled: tuple[dict[str, Any], ...] = ()
    services: tuple[ServicePlan, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    wanted: Sequence[Wanted], facts: HostFacts, settings: Settings, gateways: Sequence[WantedGateway] = ()
) -> HostPlan:
    """The plan for one host. Never raises for what a user can get wrong: that is in `errors`."""
    if not wanted and not gateways:  # no deployment is meant for this host
        return HostPlan(facts.host, engine=settings.container_engine)
    fronts = [item.as_service() for item in gateways]
    ordered = drafts(wanted, facts, settings, fronts)
    problems = [problem for made in ordered for problem in made.problems]
    problems += check_engine(facts) + check_disks(ordered, facts, settings)
    placed = [made.as_service() for made in ordered]
    problems += problems_of(gateways, facts, placed)
    warnings = tuple(dict.fromkeys(text for made in ordered for text in made.warnings))
    if problems:
        undecided = any(made.problems and made.model and made.model.out_of_reach for made in ordered)
        errors = tuple(dict.fromkeys(problems))
        return HostPlan(facts.host, errors, warnings, engine=settings.container_engine, undecided=undecided)
    fronts_planned = [_explained(gateway_plan(item, facts, settings), facts) for item in gateways]
    services = [*fronts_planned, *(_service(made, facts, settings) for made in ordered)]
    spoilt = check_evaluations(services, facts) if not settings.interrupt_evaluations else []
    if spoilt:
        return HostPlan(facts.host, tuple(spoilt), warnings, engine=settings.container_engine)
    pairs = zip(services[len(gateways) :], ordered, strict=True)
    changing = [with_way(service, made, facts, services, settings) for service, made in pairs]
    clashes = tuple(problem for _, found in changing for problem in found)
    if clashes:
        return HostPlan(facts.host, clashes, warnings, engine=settings.container_engine)
    services = [*fronts_planned, *(service for service, _ in changing)]
    images = [item.image for item in gateways] + [made.wanted.image for made in ordered]
    return HostPlan(
        host=facts.host,
        warnings=warnings,
        steps=steps(facts, ordered, services, images),
        engine=settings.container_engine,
        wants_cdi=bool(wanted),
        asks=tuple(dict.fromkeys(made.wanted.image.digest_ref for made in ordered if made.asks)),
        images=_images(images, facts),
        models=_models(ordered, settings),
        holds=_holds(ordered, settings),
        kernels=lacking(services, facts, settings),
        compiled=compiled(services, facts, settings),
        services=tuple(services),
    )


def drafts(
    wanted: Sequence[Wanted], facts: HostFacts, settings: Settings, there: Sequence[Service] = ()
) -> list[Draft]:
    """Every service decided, each around `there` and those decided before it; in the order of `wanted`."""
    made: dict[str, Draft] = {}
    for item in in_order(wanted, facts):
        placed = [*there, *(earlier.as_service() for earlier in made.values())]
        made[item.name] = draft(item, facts, around(facts, wanted, placed), settings)
    return [made[item.name] for item in wanted]


def _service(made: Draft, facts: HostFacts, settings: Settings) -> ServicePlan:
    service = service_plan(resolve(made, facts, settings), facts)
    in_front = made.deployment.gateway
    hosts = made.wanted.gateways if in_front and not facts.drained else ()
    url = worker_url(made.deployment, facts.address)
    entries = tuple({"host": host, "service": in_front.service_name, "url": url} for host in hosts if in_front)
    deployed = facts.service(service.name)
    recorded = deployed.record.get("gateways") or () if deployed else ()
    same = {(entry["host"], entry["service"]) for entry in entries}
    former = tuple(entry for entry in recorded if entry not in entries and (entry["host"], entry["service"]) in same)
    known = _explained(replace(service, gateways=entries, former=former), facts)
    return _with_group(known, made, facts, settings)


def _with_group(service: ServicePlan, made: Draft, facts: HostFacts, settings: Settings) -> ServicePlan:
    """The service as its group has it: a member does not stay as it is where another one starts."""
    group, due = made.wanted.group, made.wanted.due
    if not group:
        return service
    service = replace(service, group=group, gate=service.gate | {"group": list(group)})
    if not stronger(due.action, service.action):
        return service
    action: Action = "restart" if due.action == "restart" else "check"
    verb = "starts" if action == "restart" else "is asked whether it serves"
    return replace(
        service,
        action=action,
        outage=outage(action, settings, facts.service(service.name)),
        why=f"{due.host}, which serves it together with this host, {verb}",
    )


def _explained(service: ServicePlan, facts: HostFacts) -> ServicePlan:
    deployed = facts.service(service.name)
    return replace(
        service,
        why=why(deployed, service),
        deployed_unit=deployed.unit if deployed else None,
        deployed_release=deployed.release if deployed else None,
        deployed_stable=deployed.stable if deployed else None,
    )


def _images(wanted: Sequence[ResolvedImage], facts: HostFacts) -> tuple[dict[str, Any], ...]:
    missing = {image.digest_ref: image for image in wanted}
    return tuple(
        {"ref": image.ref, "digest_ref": ref, "size_bytes": image.size_bytes}
        for ref, image in missing.items()
        if not facts.images.get(ref)
    )


def _models(drafts: Sequence[Draft], settings: Settings) -> tuple[dict[str, Any], ...]:
    """What `sglang_model` shall fetch; the image is the one whose `hf` does it."""
    missing = [made for made in drafts if made.fetch]
    return tuple(
        {
            "service": made.wanted.name,
            "image": made.wanted.image.digest_ref,
            "repo": made.source.repo,
            "revision": repository(made.deployment)[1],
            "commit": made.source.commit,
            "hub": hub_cache(made.deployment, settings),
            "endpoint": _endpoint(made, settings),
            "offered": made.model.bytes if made.model and made.model.offered else 0,
        }
        for made in missing
    )


def _holds(drafts: Sequence[Draft], settings: Settings) -> tuple[dict[str, Any], ...]:
    """What a host without the model plans with, where the hub does not tell, is in it too."""
    return tuple(
        {
            "repo": made.source.repo,
            "revision": made.model.revision,
            "commit": made.source.commit,
            "hub": made.model.hub,
            "bytes": made.model.bytes,
            "files": made.model.files.model_dump() if made.model.files else None,
        }
        for made in drafts
        if made.source.repo and made.model and not made.fetch and settings.peer_port
    )


def _endpoint(made: Draft, settings: Settings) -> str:
    named = made.deployment.env_vars.get("HF_ENDPOINT")
    return named.value if named else settings.hf_endpoint
