"""What the action plugins need from a run: the deployment, its secrets, the digest of its image."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang_ops import registry
from sglang_ops.errors import OpsError, PreflightError
from sglang_ops.planning import ResolvedImage, Secrets
from sglang_ops.spec import Deployment, load, load_mapping

FILE_VARIABLE = "sglang_ops_deployment_file"


def deployment_of(task_vars: Mapping[str, Any], templar: Any) -> Deployment:
    """The deployment: the file that the command line names, else the variable `deployment`."""
    path = task_vars.get(FILE_VARIABLE)
    if path:
        return load(Path(str(path))).deployment
    if "deployment" not in task_vars:
        fix = "Pass a file with --config (or -e @deployment.yaml), or set the variable `deployment`."
        raise PreflightError("there is no deployment to work on.", fix=fix)
    value = plain(templar.template(task_vars["deployment"]))
    return load_mapping({"deployment": value}, "variable `deployment`").deployment


def plain(value: Any) -> Any:
    """Ansible's tagged values as ordinary ones."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return str(value)


def secrets_for(service: Mapping[str, Any], deployment: Deployment) -> dict[str, str]:
    """Values of the secrets that this planned service gets, from the operator's environment."""
    known = Secrets.of(deployment, os.environ).values
    return {name: known[name] for name in service["secrets"] if name in known}


def hub_token(task_vars: Mapping[str, Any], templar: Any) -> str | None:
    """HF_TOKEN of the deployment, None where it has none."""
    return Secrets.of(deployment_of(task_vars, templar), os.environ).values.get("HF_TOKEN")


def runtime_for(service: Mapping[str, Any], deployment: Deployment) -> list[dict[str, str]]:
    """Variables that the host itself knows, as {"name": in the container, "source": on the host}."""
    references = deployment.env_vars
    return [
        {"name": name, "source": references[name].value}
        for name in service["secrets"]
        if name in references and references[name].kind == "runtime"
    ]


def resolve_once(ref: str, insecure: Sequence[str], run_directory: Path) -> ResolvedImage:
    """The image's digest, asked once per run: every host of the fleet gets the same one.

    `run_directory` is Ansible's own temporary directory, private to the run and shared by its workers.
    Raises the registry's error, the same one for every host.
    """
    name = hashlib.sha256(ref.encode()).hexdigest()[:16]
    answer = run_directory / f"sglang-ops-image-{name}.json"
    with (run_directory / f"sglang-ops-image-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answer.exists():
            answer.write_text(json.dumps(_resolve(ref, insecure)))
        known = json.loads(answer.read_text())
    if "error" in known:
        error: type[OpsError] = getattr(registry, known["error"], OpsError)
        raise error(known["message"], fix=known["fix"])
    return ResolvedImage(**known)


def _resolve(ref: str, insecure: Sequence[str]) -> dict[str, Any]:
    try:
        found = registry.resolve(ref, insecure=insecure)
    except OpsError as error:
        return {"error": type(error).__name__, "message": error.message, "fix": error.fix}
    return {"ref": ref, "digest_ref": found.digest_ref, "size_bytes": found.size_bytes or 0}
