"""Keys of the deployment file whose effect shows only in a real container."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from conftest import Lab

pytestmark = pytest.mark.lab

TIMES = {"restart_delay": 1, "soak": 0, "start_timeout": 20, "drain_timeout": 5}
QUICK = tuple(word for name, value in TIMES.items() for word in ("-e", f"sglang_server_{name}={value}"))


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("t-keys", hosts=1, gpus=4, engine="docker", os="debian13", server="simulator")


def environment(lab: Lab) -> list[str]:
    pid = lab.ssh("docker inspect --format '{{.State.Pid}}' $(docker ps -q)").strip()
    children = lab.ssh(f"pgrep -P {pid}").split()
    return lab.ssh(f"tr '\\000' '\\012' < /proc/{(children or [pid])[0]}/environ").splitlines()


def test_cache_path_pre_cmd_and_mounts_reach_the_container(lab: Lab) -> None:
    lab.ssh("mkdir -p '/srv/in put' && echo from-host > '/srv/in put/note'")
    config = lab.write(
        "keys",
        cache_path="/fast/cache",
        pre_cmd="cp /extra/note /cache/seen\nexport SET_BEFORE='a b'",
        mounts={"/srv/in put": "/extra:ro"},
        env_vars={"HF_HOME": "/cache/huggingface"},
    )
    result = lab.deploy(config, *QUICK)
    assert result["ok"], result
    assert lab.ssh("cat /fast/cache/seen").strip() == "from-host"
    assert "models--lab--tiny-llama" in lab.ssh("ls /fast/cache/huggingface/hub")
    assert {"SET_BEFORE=a b", "HF_HOME=/cache/huggingface"} <= set(environment(lab))


def test_failing_pre_cmd_starts_no_server_and_goes_back(lab: Lab) -> None:
    result = lab.deploy(lab.write("keys", pre_cmd="echo preparing; false\necho not-reached"), *QUICK)
    assert result["exit_code"] == 3, result
    assert "preparing" in "".join(result["hosts"][0]["failure"]["log"])
    assert "not-reached" not in "".join(result["hosts"][0]["failure"]["log"])
    assert lab.json("status")["services"][0]["healthy"]


def test_command_replaces_the_whole_command(lab: Lab) -> None:
    words = "python3 -m sglang.launch_server --model-path ${deployment.hf_model_handle} --host 127.0.0.1"
    words += " --port ${deployment.port} --served-model-name ${deployment.served_model_name} ${deployment.extra_args}"
    config = lab.write("keys", command=words, extra_args="--log-level warning")
    result = lab.deploy(config, *QUICK)
    assert result["ok"], result
    assert "--tp-size" not in lab.ssh("cat /etc/systemd/system/sglang-*.service")
    assert result["hosts"][0]["services"][0]["endpoint"].startswith("http://127.0.0.1:")


def test_hub_cache_of_its_own_and_the_variable_that_used_to_name_it(lab: Lab) -> None:
    result = lab.deploy(lab.write("keys", env_vars={"TRANSFORMERS_CACHE": "/fast/transformers"}), *QUICK)
    assert result["ok"], result
    assert any("HF_HUB_CACHE=/fast/transformers is set" in text for text in result["warnings"])
    assert "models--lab--tiny-llama" in lab.ssh("ls /fast/transformers")
    assert "HF_HUB_CACHE=/fast/transformers" in environment(lab)
    assert not any(line.startswith("TRANSFORMERS_CACHE") for line in environment(lab))


def test_auto_takes_the_fewest_gpus_that_hold_the_model(lab: Lab) -> None:
    result = lab.deploy(lab.write("keys", tensor_parallel_size="auto"), *QUICK)
    assert result["ok"], result
    assert result["hosts"][0]["services"][0]["gpus"] == [0]
    assert "--tp-size 1" in lab.ssh("cat /etc/systemd/system/sglang-*.service")


def test_gpus_that_nvlink_joins_are_taken_together(lab: Lab) -> None:
    path = "/etc/sglang-ops-lab/gpus.json"
    known = json.loads(lab.ssh(f"cat {path}")) | {"islands": [[0, 2], [1, 3]]}
    lab.ssh(f"echo '{json.dumps(known)}' > {path}")
    config = lab.write("keys", tensor_parallel_size=2)
    planned = lab.json("plan", "--config", str(config))["hosts"][0]["services"][0]
    assert (planned["gpus"], planned["link"]) == ([0, 2], "NV18")
    result = lab.deploy(config, *QUICK)
    assert result["ok"], result
    assert result["hosts"][0]["services"][0]["gpus"] == [0, 2]
    named = lab.write("keys", tensor_parallel_size=2, env_vars={"CUDA_VISIBLE_DEVICES": "0,1"})
    warnings = lab.json("plan", "--config", str(named))["hosts"][0]["warnings"]
    assert any("GPU 0, 2 are free and joined by NV18" in text for text in warnings)


def test_compiled_kernels_outlast_the_container_and_go_with_a_purge(lab: Lab) -> None:
    result = lab.deploy(lab.write("keys"), *QUICK)
    assert result["ok"], result
    digest = result["hosts"][0]["services"][0]["image_digest"].removeprefix("sha256:")[:12]
    cache = f"/var/lib/sglang-ops/jit/{digest}-NVIDIA-H200-lab-tiny-llama"
    inside = "docker exec $(docker ps -q) sh -c"
    lab.ssh(f"{inside} 'mkdir -p $TRITON_CACHE_DIR && echo compiled > $TRITON_CACHE_DIR/kernel'")
    assert lab.ssh(f"cat {cache}/triton/kernel").strip() == "compiled"
    assert lab.json("restart")["ok"]
    assert lab.ssh(f"{inside} 'cat $TRITON_CACHE_DIR/kernel'").strip() == "compiled"
    lab.clear()
    assert lab.ssh(f"cat {cache}/triton/kernel").strip() == "compiled"
    assert lab.deploy(lab.write("keys"), *QUICK)["ok"]
    assert lab.run("remove", "--yes", "--purge").returncode == 0
    assert lab.ssh("ls /var/lib/sglang-ops/jit").strip() == ""
