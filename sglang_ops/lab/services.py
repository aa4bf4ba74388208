"""What a lab serves to its hosts: an OCI registry and a model source."""

from __future__ import annotations

import sys
from pathlib import Path

from sglang_ops.lab.settings import MODEL_SOURCE_PORT, MODEL_SOURCE_TOKEN, Folder, Plan, write


def prepare(folder: Folder, plan: Plan) -> None:
    """Lay out the registry's layers and its configuration: no password, deletions allowed."""
    for name in ("upper", "work", "root"):
        (folder.registry / name).mkdir(parents=True, exist_ok=True)
    write(
        _registry_configuration(folder),
        "version: 0.1\n"
        "log: {level: warn, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder.registry / 'root'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{plan.registry_address}'}}\n",
    )


def service_commands(folder: Folder, plan: Plan) -> dict[str, list[str]]:
    """The command of each service by its name; all of them stay in the foreground."""
    return {
        "registry": ["docker-registry", "serve", str(_registry_configuration(folder))],
        "model-source": [
            sys.executable, "-m", "sglang_ops.lab.hub",
            "--root", plan.models,
            "--host", plan.services,
            "--port", str(MODEL_SOURCE_PORT),
            "--token", MODEL_SOURCE_TOKEN,
        ],
    }  # fmt: skip


def _registry_configuration(folder: Folder) -> Path:
    return folder.registry / "config.yml"
