"""What the facts module has to look at for a deployment: its arguments, free of secrets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sglang_ops.catalog import releases
from sglang_ops.planning import nodes
from sglang_ops.planning.beside import port_beside
from sglang_ops.planning.command import arguments, hub_cache, option
from sglang_ops.planning.settings import ResolvedImage, Settings
from sglang_ops.spec import Deployment, Gateway


def questions(
    deployments: Sequence[Deployment],
    settings: Settings,
    images: Sequence[ResolvedImage],
    gateways: Sequence[Gateway] = (),
) -> dict[str, Any]:
    """Parameters of the module `sglang_facts`."""
    hubs = [hub_cache(deployment, settings) for deployment in deployments]
    environments = [item.env_vars for item in deployments] + [item.env_vars for item in gateways]
    ports = [port for item in deployments for port in _ports(item)]
    ports += [port for item in gateways for port in (item.port, item.prometheus_port)]
    checkpoints = [deployment.checkpoint_path for deployment in deployments if deployment.checkpoint_path]
    return {
        "engine": settings.container_engine,
        "insecure_registries": list(settings.insecure_registries),
        "wants_cdi": bool(deployments),
        "topology": any(item.gpus_needed > 1 or item.tensor_parallel_size == "auto" for item in deployments),
        "images": _unique(image.digest_ref for image in images),
        "arguments_of": _unique(image.digest_ref for image in images if image.release not in releases()),
        "models": [_model(deployment, settings) for deployment in with_repository(deployments)],
        "checkpoints": _unique(checkpoints),
        "ports": _unique(ports),
        "disks": _unique(hubs),
        "jit_cache": settings.jit_cache if deployments else "",
        "runtime": _unique(
            value.value for variables in environments for value in variables.values() if value.kind == "runtime"
        ),
    }


def _ports(deployment: Deployment) -> list[int]:
    beside = [port_beside(deployment.port)] if deployment.gateway else []
    return [deployment.port, *beside, *([nodes.meeting_port(deployment)] if deployment.nodes > 1 else [])]


def with_repository(deployments: Sequence[Deployment]) -> list[Deployment]:
    """Those that name a hub model, in the order of the module's `models` and `tokens`."""
    return [deployment for deployment in deployments if deployment.hf_model_handle]


def _model(deployment: Deployment, settings: Settings) -> dict[str, Any]:
    repo, revision = repository(deployment)
    endpoint = deployment.env_vars.get("HF_ENDPOINT")
    return {
        "repo": repo,
        "revision": revision,
        "hub": hub_cache(deployment, settings),
        "endpoint": endpoint.value if endpoint else settings.hf_endpoint,
    }


def _unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def repository(deployment: Deployment) -> tuple[str | None, str]:
    """Hub repository and revision: `repo@revision`, `--revision` in extra_args, else `main`."""
    if deployment.hf_model_handle is None:
        return None, "main"
    repo, _, revision = deployment.hf_model_handle.partition("@")
    return repo, revision or option(arguments(deployment), "--revision") or "main"
