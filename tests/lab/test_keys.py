"""Keys of the deployment file whose effect shows only in a real container."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Lab

pytestmark = pytest.mark.lab

TIMES = {"restart_delay": 1, "soak": 0, "start_timeout": 120, "drain_timeout": 5}
QUICK = tuple(word for name, value in TIMES.items() for word in ("-e", f"sglang_server_{name}={value}"))
COMMAND = (
    "python3 -m sglang.launch_server --model-path ${deployments.command.hf_model_handle} --host 127.0.0.1"
    " --port ${deployments.command.port} --served-model-name ${deployments.command.served_model_name}"
    " ${deployments.command.extra_args}"
)
# A service for each; they are deployed together.
KEYS: dict[str, dict[str, Any]] = {
    "places": {
        "cache_path": "/fast/cache",
        "pre_cmd": "cp /extra/note /cache/seen\nexport SET_BEFORE='a b'",
        "mounts": {"/srv/in put": "/extra:ro"},
        "env_vars": {"HF_HOME": "/cache/huggingface"},
    },
    "command": {"command": COMMAND, "extra_args": "--log-level warning"},
    "hub": {"env_vars": {"TRANSFORMERS_CACHE": "/fast/transformers"}},
    "auto": {"tensor_parallel_size": "auto"},
}


@pytest.fixture(scope="module")
def lab(share_lab: Callable[..., Lab]) -> Lab:
    return share_lab(hosts=1)


@pytest.fixture(scope="module")
def deployed(lab: Lab) -> dict[str, Any]:
    """What the deploy of all of KEYS said."""
    lab.ssh("mkdir -p '/srv/in put' && echo from-host > '/srv/in put/note'")
    result = lab.deploy(written(lab, **KEYS), *QUICK)
    assert result["ok"], result
    return result


def written(lab: Lab, **services: dict[str, Any]) -> Path:
    body = lab.deployment["deployment"]
    ports = {name: port for port, name in enumerate(KEYS, 8100)}
    deployments = {
        name: body
        | {"served_model_name": name, "port": ports.get(name, 8200)}
        | changes
        | {"env_vars": body["env_vars"] | changes.get("env_vars", {})}
        for name, changes in services.items()
    }
    path = lab.folder / "keys.yaml"
    path.write_text(yaml.safe_dump({"deployments": deployments}))
    return path


def service(result: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [item for item in result["hosts"][0]["services"] if item["name"] == f"sglang-{name}"]
    return dict(found)


def unit(lab: Lab, name: str) -> str:
    return lab.ssh(f"cat /etc/systemd/system/sglang-{name}.service")


def environment(lab: Lab, name: str) -> list[str]:
    pid = lab.ssh(f"docker inspect --format '{{{{.State.Pid}}}}' sglang-{name}").strip()
    children = lab.ssh(f"pgrep -P {pid}").split()
    return lab.ssh(f"tr '\\000' '\\012' < /proc/{(children or [pid])[0]}/environ").splitlines()


def test_cache_path_pre_cmd_and_mounts_reach_the_container(lab: Lab, deployed: dict[str, Any]) -> None:
    assert lab.ssh("cat /fast/cache/seen").strip() == "from-host"
    assert "models--lab--tiny-llama" in lab.ssh("ls /fast/cache/huggingface/hub")
    assert {"SET_BEFORE=a b", "HF_HOME=/cache/huggingface"} <= set(environment(lab, "places"))


def test_command_replaces_the_whole_command(lab: Lab, deployed: dict[str, Any]) -> None:
    assert "--tp-size" not in unit(lab, "command")
    assert "--log-level warning" in unit(lab, "command")
    assert service(deployed, "command")["endpoint"].startswith("http://127.0.0.1:")


def test_hub_cache_of_its_own_and_the_variable_that_used_to_name_it(lab: Lab, deployed: dict[str, Any]) -> None:
    assert any("HF_HUB_CACHE=/fast/transformers is set" in text for text in deployed["warnings"])
    assert "models--lab--tiny-llama" in lab.ssh("ls /fast/transformers")
    seen = environment(lab, "hub")
    assert "HF_HUB_CACHE=/fast/transformers" in seen
    assert not any(line.startswith("TRANSFORMERS_CACHE") for line in seen)


def test_auto_takes_the_fewest_gpus_that_hold_the_model(lab: Lab, deployed: dict[str, Any]) -> None:
    assert len(service(deployed, "auto")["gpus"]) == 1
    assert "--tp-size 1" in unit(lab, "auto")


def test_failing_pre_cmd_starts_no_server_and_goes_back(lab: Lab, deployed: dict[str, Any]) -> None:
    result = lab.deploy(written(lab, hub={"pre_cmd": "echo preparing; false\necho not-reached"}), *QUICK)
    assert result["exit_code"] == 3, result
    assert "preparing" in "".join(result["hosts"][0]["failure"]["log"])
    assert "not-reached" not in "".join(result["hosts"][0]["failure"]["log"])
    assert all(row["healthy"] for row in lab.json("status")["services"])


def test_gpus_that_nvlink_joins_are_taken_together(lab: Lab, deployed: dict[str, Any]) -> None:
    path = "/etc/sglang-ops-lab/gpus.json"
    known = json.loads(lab.ssh(f"cat {path}")) | {"islands": [[4, 6], [5, 7]]}
    lab.ssh(f"echo '{json.dumps(known)}' > {path}")
    config = written(lab, linked={"tensor_parallel_size": 2})
    planned = lab.json("plan", "--config", str(config))["hosts"][0]["services"][0]
    assert (planned["gpus"], planned["link"]) == ([4, 6], "NV18")
    result = lab.deploy(config, *QUICK)
    assert result["ok"], result
    assert service(result, "linked")["gpus"] == [4, 6]
    named = written(lab, linked={"tensor_parallel_size": 2, "env_vars": {"CUDA_VISIBLE_DEVICES": "4,5"}})
    warnings = lab.json("plan", "--config", str(named))["hosts"][0]["warnings"]
    assert any("GPU 4, 6 are free and joined by NV18" in text for text in warnings)


def test_compiled_kernels_outlast_the_container_and_go_with_a_purge(lab: Lab, deployed: dict[str, Any]) -> None:
    digest = service(deployed, "auto")["image_digest"].removeprefix("sha256:")[:12]
    cache = f"/var/lib/sglang-ops/jit/{digest}-NVIDIA-H200-lab-tiny-llama"
    inside = "docker exec sglang-auto sh -c"
    lab.ssh(f"{inside} 'mkdir -p $TRITON_CACHE_DIR && echo compiled > $TRITON_CACHE_DIR/kernel'")
    assert lab.ssh(f"cat {cache}/triton/kernel").strip() == "compiled"
    assert lab.json("restart", "--service", "auto")["ok"]
    assert lab.ssh(f"{inside} 'cat $TRITON_CACHE_DIR/kernel'").strip() == "compiled"
    assert lab.run("remove", "--yes", "--config", str(written(lab, **KEYS))).returncode == 0
    assert lab.ssh(f"cat {cache}/triton/kernel").strip() == "compiled"
    config = written(lab, auto=KEYS["auto"])
    assert lab.deploy(config, *QUICK)["ok"]
    lab.run("remove", "--yes", "--service", "linked")
    assert lab.run("remove", "--yes", "--purge", "--config", str(config)).returncode == 0
    assert lab.ssh("ls /var/lib/sglang-ops/jit").strip() == ""
