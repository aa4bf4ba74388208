"""The two files that a lab hands to its user: an Ansible inventory and a deployment file that fits it."""

from __future__ import annotations

from typing import Any

import yaml

from sglang_ops.lab import harness, questions, ssh
from sglang_ops.lab.images import recipes
from sglang_ops.lab.model import OPEN_MODEL
from sglang_ops.lab.settings import USER, Folder, Plan

# The real engine runs on the CPU here: without these it would look for CUDA, reserve 15 GB for its cache,
# and keep a core busy while idle.
_CPU_ARGUMENTS = (
    "--device cpu --attention-backend torch_native --model-impl transformers --max-total-tokens 20000"
    " --max-running-requests 32 --mem-fraction-static 0.2 --sleep-on-idle"
)
_IMAGES = {
    "real": f"{recipes.ENGINE_REPOSITORY}:{recipes.ENGINE_TAG}",
    "simulator": f"{recipes.SIMULATOR_REPOSITORY}:{recipes.SIMULATOR_TAG}",
}


def inventory(folder: Folder, plan: Plan) -> str:
    """The text of STATE/inventory.yml: ordinary YAML for any Ansible command."""
    content: dict[str, Any] = {
        "all": {
            "hosts": {host.name: {"ansible_host": host.address} for host in plan.hosts},
            "vars": {
                "ansible_user": USER,
                "ansible_ssh_private_key_file": str(ssh.private_key(folder)),
                "ansible_ssh_common_args": " ".join(f"-o {option}" for option in ssh.options(folder)),
                "ansible_python_interpreter": "/usr/bin/python3",
                "container_engine": plan.shape.engine,
                "container_engine_insecure_registries": [plan.registry_address],
                "sglang_server_hf_endpoint": plan.model_source,
                "sglang_server_ulimits": [],
                "evaluation_harness_image": f"{plan.registry_address}/{harness.REPOSITORY}:{harness.TAG}",
                "evaluation_registry_mirrors": {"nvcr.io": plan.registry_address},
            },
        }
    }
    if plan.gateway_host:
        content["servers"] = {"hosts": {host.name: {} for host in plan.servers}}
        content["gateways"] = {"hosts": {plan.gateway_host.name: {}}}
    return _yaml(content, f"Lab {plan.shape.name}: {plan.shape}.")


def deployment(plan: Plan) -> str:
    """The text of STATE/deployment.yaml: the tiny model, from the lab's registry and model source."""
    deployment: dict[str, Any] = {
        "type": "sglang",
        "image": f"{plan.registry_address}/{_IMAGES[plan.shape.server]}",
        "hf_model_handle": OPEN_MODEL,
        "served_model_name": "tiny-llama",
        "port": 8000,
        "tensor_parallel_size": 1,
    }
    if plan.shape.server == "real":
        deployment["extra_args"] = _CPU_ARGUMENTS
    if plan.gateway_host:
        deployment["hosts"] = "servers"
        image = f"{plan.registry_address}/{recipes.GATEWAY_REPOSITORY}:{recipes.GATEWAY_TAG}"
        deployment["gateway"] = {"hosts": "gateways", "image": image}
    content = {"deployment": deployment, "evaluation": questions.section()}
    return _yaml(content, f"A deployment that works on lab {plan.shape.name} as it is.")


def _yaml(content: dict[str, Any], title: str) -> str:
    return f"# {title}\n" + yaml.safe_dump(content, sort_keys=False, width=1000, allow_unicode=True)
