"""From deployment and host facts to a plan: what will be done on one host, step by step, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sglang_ops.planning import devices, gpus
from sglang_ops.planning.checks import check_disks, check_engine, check_model, check_port, check_secrets
from sglang_ops.planning.command import (
    ModelSource,
    container_environment,
    exec_start,
    hf_home,
    mounts,
    option,
    server_argv,
)
from sglang_ops.planning.facts import HostFacts, Service
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.questions import repository
from sglang_ops.planning.release import differences, release_id, short
from sglang_ops.planning.settings import ResolvedImage, Secrets, Settings
from sglang_ops.planning.systemd import Unit
from sglang_ops.spec import Deployment
from sglang_ops.spec.model import is_secret

STATE = "/var/lib/sglang-ops/services"
Action = Literal["none", "check", "start", "restart"]


@dataclass(frozen=True)
class Step:
    """One thing that will be done, and why; `step` is the word that progress and tests use."""

    step: Literal["engine", "image", "model", "start", "restart", "check"]
    subject: str
    why: str


@dataclass(frozen=True)
class ServicePlan:
    """One service as it shall be. `content` makes the release; `gate` tells how to ask whether it serves."""

    name: str
    release: str
    action: Action
    image: str
    image_digest: str
    gpus: tuple[int, ...]
    port: int
    endpoint: str
    healthy: bool
    outage: str
    unit: str
    content: dict[str, Any]
    gate: dict[str, Any]
    directories: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


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
    service = _service(deployment, facts, settings, image, secrets, source, chosen, flags)
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


def _service(
    deployment: Deployment,
    facts: HostFacts,
    settings: Settings,
    image: ResolvedImage,
    secrets: Secrets,
    source: ModelSource,
    chosen: tuple[int, ...],
    flags: tuple[str, ...],
) -> ServicePlan:
    secrets = _given_to_server(deployment, secrets)
    secret_names = tuple(name for name, value in deployment.env_vars.items() if is_secret(name, value))
    by_file = (*secrets.values, *(name for name, value in deployment.env_vars.items() if value.kind == "runtime"))
    argv = server_argv(deployment, source)
    environment = container_environment(deployment, settings, source, secret_names)
    bind = mounts(deployment, settings, source)
    fingerprints = secrets.fingerprints() | {
        name: facts.runtime.get(value.value) or ""
        for name, value in deployment.env_vars.items()
        if value.kind == "runtime"
    }

    def unit(release: str) -> str:
        return Unit(
            description=f"SGLang: {deployment.served_model_name} (release {release})",
            engine=settings.container_engine,
            engine_path=facts.engine.path or f"/usr/bin/{settings.container_engine}",
            exec_start=exec_start(
                engine=settings.container_engine,
                engine_path=facts.engine.path or f"/usr/bin/{settings.container_engine}",
                image=image,
                devices=flags,
                environment=environment,
                bind=bind,
                argv=argv,
                secrets_file=_secrets_file(deployment.service_name, release) if by_file else None,
                settings=settings,
            ),
            mounts=tuple(mount.source for mount in bind),
            drain_timeout=settings.drain_timeout,
            restart_delay=settings.restart_delay,
        ).render()

    content = {
        "image": image.digest_ref,
        "model": {"repo": source.repo, "commit": source.commit, "directory": source.directory},
        "argv": list(argv),
        "environment": environment,
        "secrets": fingerprints,
        "gpus": list(chosen),
        "unit": release_id({"unit": unit("")}),
    }
    release = release_id(content)
    action, healthy = _action(facts.service(deployment.service_name), release, unit(release))
    address = option(deployment.extra_args, "--host") or facts.address
    address = facts.address if address in {"0.0.0.0", "::"} else address  # noqa: S104
    return ServicePlan(
        name=deployment.service_name,
        release=release,
        action=action,
        image=image.ref,
        image_digest=image.digest,
        gpus=chosen,
        port=deployment.port,
        endpoint=f"http://{address}:{deployment.port}",
        healthy=healthy,
        outage=_outage(action, settings),
        unit=unit(release),
        content=content,
        gate=_gate(deployment, settings, release),
        directories=tuple(mount.source for mount in bind if not mount.read_only),
        secrets=by_file,
    )


def _given_to_server(deployment: Deployment, secrets: Secrets) -> Secrets:
    """The hub token fetches the model; an offline server has no use for it and does not get it."""
    offline = deployment.env_vars.get("HF_HUB_OFFLINE")
    online = offline is not None and offline.value in {"0", "", "false"}
    return secrets if online else secrets.without("HF_TOKEN")


def _secrets_file(name: str, release: str) -> str:
    return f"{STATE}/{name}/releases/{release}/secrets.env"


def _action(deployed: Service | None, release: str, unit: str) -> tuple[Action, bool]:
    if deployed is None or deployed.release is None:
        return "start", False
    if deployed.release != release or deployed.unit != unit:
        return "restart", False
    if deployed.state not in {"active", "reloading"}:
        return "start", False
    return ("none", True) if deployed.probe.ok else ("check", False)


def _outage(action: Action, settings: Settings) -> str:
    if action != "restart":
        return "none"
    return f"from stop (drain up to {settings.drain_timeout} s) until the new server is ready"


def _gate(deployment: Deployment, settings: Settings, release: str) -> dict[str, Any]:
    bound = option(deployment.extra_args, "--host")
    return {
        "name": deployment.service_name,
        "release": release,
        "engine": settings.container_engine,
        "address": bound if bound not in {None, "0.0.0.0", "::"} else "127.0.0.1",  # noqa: S104
        "port": deployment.port,
        "served_model_name": deployment.served_model_name,
        "endpoints": deployment.endpoints.model_dump(),
        "start_timeout": settings.start_timeout,
        "soak": settings.soak,
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
