"""From deployment and host facts to a plan: what will be done on one host, step by step, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sglang_ops.planning import devices, gpus
from sglang_ops.planning.checks import check_disks, check_engine, check_model, check_port, check_secrets
from sglang_ops.planning.command import ModelSource, hf_home, option
from sglang_ops.planning.facts import HostFacts, Service
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.questions import repository
from sglang_ops.planning.release import differences, short
from sglang_ops.planning.service import ServicePlan, resolve, service_plan
from sglang_ops.planning.settings import ResolvedImage, Secrets, Settings
from sglang_ops.spec import Deployment


@dataclass(frozen=True)
class Step:
    """One thing that will be done, and why; `step` is the word that progress and tests use."""

    step: Literal["engine", "image", "model", "start", "restart", "check"]
    subject: str
    why: str


@dataclass(frozen=True)
class HostPlan:
    """Everything that `deploy` will do on one host, or the reasons why it refuses."""

    host: str
    errors: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    engine: str = "docker"
    wants_cdi: bool = False
    image: str = ""
    images: tuple[dict[str, Any], ...] = ()
    models: tuple[dict[str, Any], ...] = ()
    services: tuple[ServicePlan, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    deployment: Deployment,
    facts: HostFacts,
    settings: Settings,
    image: ResolvedImage,
    secrets: Secrets,
) -> HostPlan:
    """The plan for one host. Never raises for what a user can get wrong: that is in `errors`."""
    source, problems = _model_source(deployment, facts)
    chosen, gpu_problems = gpus.choose(deployment, facts)
    flags, device_problems = devices.flags(chosen, facts) if not gpu_problems else ((), [])
    problems += gpu_problems + device_problems + check_secrets(secrets, facts) + check_port(deployment, facts)
    problems += check_engine(facts) + check_model(source, facts)
    problems += check_disks(deployment, facts, settings, image, fetch=_must_fetch(source, facts))
    if problems:
        return HostPlan(facts.host, errors=tuple(problems), engine=settings.container_engine)
    service = service_plan(resolve(deployment, facts, settings, image, secrets, source, chosen, flags), facts)
    return HostPlan(
        host=facts.host,
        warnings=tuple(_warnings(deployment, source)),
        steps=tuple(_steps(facts, image, source, service)),
        engine=settings.container_engine,
        wants_cdi=deployment.gpus_needed > 0,
        image=image.digest_ref,
        images=(asdict(image),) if not facts.images.get(image.digest_ref) else (),
        models=(_fetch(deployment, settings, source),) if _must_fetch(source, facts) else (),
        services=(service,),
    )


def _model_source(deployment: Deployment, facts: HostFacts) -> tuple[ModelSource, list[Problem]]:
    """The hub if the model is cached or can be had, else the local checkpoint, decided per host."""
    repo, _ = repository(deployment)
    if repo and facts.model and facts.model.commit and not facts.model.error:
        return ModelSource(repo=repo, commit=facts.model.commit), []
    if deployment.checkpoint_path and facts.checkpoint:
        return ModelSource(directory=deployment.checkpoint_path), []
    problems = []
    if repo:
        why = (facts.model.error if facts.model else None) or "the hub did not say which commit it is"
        problems.append(Problem("model", f"model {repo} is not to be had on {facts.host}: {why}"))
    if deployment.checkpoint_path:
        message = f"checkpoint_path {deployment.checkpoint_path} on {facts.host} holds no model (no config.json)."
        problems.append(Problem("model", f"{message} Copy the checkpoint there, or set hf_model_handle."))
    return ModelSource(repo=repo), problems


def _must_fetch(source: ModelSource, facts: HostFacts) -> bool:
    return source.repo is not None and not (facts.model and facts.model.cached)


def _fetch(deployment: Deployment, settings: Settings, source: ModelSource) -> dict[str, Any]:
    endpoint = deployment.env_vars.get("HF_ENDPOINT")
    return {
        "repo": source.repo,
        "revision": repository(deployment)[1],
        "commit": source.commit,
        "hf_home": hf_home(deployment, settings),
        "endpoint": endpoint.value if endpoint else settings.hf_endpoint,
    }


def _steps(facts: HostFacts, image: ResolvedImage, source: ModelSource, service: ServicePlan) -> list[Step]:
    steps = [Step("engine", facts.engine.name, reason) for reason in facts.engine.pending]
    if not facts.images.get(image.digest_ref):
        size = f", {image.size_bytes / 1e6:.0f} MB" if image.size_bytes else ""
        steps.append(Step("image", short(image.ref), f"{image.digest[:19]} is not on the host{size}"))
    if _must_fetch(source, facts) and facts.model:
        steps.append(Step("model", str(source.repo), f"not in the cache, {facts.model.bytes / 1e6:.1f} MB"))
    if service.action != "none":
        why = _why(facts.service(service.name), service)
        steps.append(Step(service.action, service.name, why))
    return steps


def _why(deployed: Service | None, service: ServicePlan) -> str:
    if deployed is None or deployed.release is None:
        return "not deployed yet"
    if deployed.release != service.release:
        return differences(deployed.record.get("content", {}), service.content)
    if deployed.unit != service.unit:
        return "its unit file is gone" if deployed.unit is None else "its unit file was changed by hand"
    if service.action == "start":
        return f"the unit is {deployed.state}"
    failing: Callable[[dict[str, Any]], bool] = lambda layer: not layer.get("ok")  # noqa: E731
    layer = next(filter(failing, deployed.probe.layers), {"name": "gate", "detail": "no answer"})
    return f"does not answer as it should ({layer['name']}: {layer['detail']})"


def _warnings(deployment: Deployment, source: ModelSource) -> list[str]:
    warnings = []
    if deployment.image.endswith(":latest") or ":" not in deployment.image.rpartition("/")[2]:
        warnings.append(f"image {deployment.image} moves; this run pins the digest that it has now.")
    if deployment.hf_model_handle and source.directory:
        warnings.append(f"{deployment.hf_model_handle} is not to be had; serving {source.directory} instead.")
    if option(deployment.extra_args, "--api-key"):
        warnings.append("--api-key in extra_args shows in the unit, in `ps` and in SGLang's own log.")
    return warnings
