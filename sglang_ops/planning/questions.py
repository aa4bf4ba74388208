"""What the facts module has to look at for a deployment: its arguments, free of secrets."""

from __future__ import annotations

from typing import Any

from sglang_ops.planning.command import hf_home, option
from sglang_ops.planning.settings import ResolvedImage, Settings
from sglang_ops.spec import Deployment


def questions(deployment: Deployment, settings: Settings, image: ResolvedImage | None) -> dict[str, Any]:
    """Parameters of the module `sglang_facts`."""
    home = hf_home(deployment, settings)
    repo, revision = repository(deployment)
    endpoint = deployment.env_vars.get("HF_ENDPOINT")
    model = {"repo": repo, "revision": revision, "hf_home": home} if repo else None
    if model:
        model["endpoint"] = endpoint.value if endpoint else settings.hf_endpoint
    return {
        "engine": settings.container_engine,
        "insecure_registries": list(settings.insecure_registries),
        "wants_cdi": deployment.gpus_needed > 0,
        "images": [image.digest_ref] if image else [],
        "model": model,
        "checkpoint": deployment.checkpoint_path,
        "ports": [deployment.port],
        "disks": [home],
        "runtime": [value.value for value in deployment.env_vars.values() if value.kind == "runtime"],
    }


def repository(deployment: Deployment) -> tuple[str | None, str]:
    """Hub repository and revision: `repo@revision`, `--revision` in extra_args, else `main`."""
    if deployment.hf_model_handle is None:
        return None, "main"
    repo, _, revision = deployment.hf_model_handle.partition("@")
    return repo, revision or option(deployment.extra_args, "--revision") or "main"
