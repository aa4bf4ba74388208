"""What a file with one or several deployments asks for, and what each inherits."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_ops.spec import Deployment, DeploymentFile, Mount, SpecErrors, check, check_names, load_mapping
from sglang_ops.spec.yamlfile import parse

FLEET = """\
env_vars: {A: top, B: top, C: top}
x-common: &common
  image: lmsysorg/sglang:v0.5.23
  port: 9000
execution:
  env_vars: {deployment: {B: execution, C: execution}}
  mounts: {deployment: {/data: "/data:ro"}}
deployments:
  llama_8b:
    <<: *common
    hosts: gpu_small
    served_model_name: llama
    hf_model_handle: org/llama
    env_vars: {C: own}
  qwen:
    <<: *common
    hosts: gpu_large:!old
    name: big
    served_model_name: qwen
    hf_model_handle: org/qwen
    tensor_parallel_size: auto
    mounts: {/data: /elsewhere, /more: /more}
"""


def fleet(text: str = FLEET) -> DeploymentFile:
    return check(parse(text, "fleet.yaml"))


def one(**keys: Any) -> Deployment:
    data = {"served_model_name": "m", "hf_model_handle": "org/m", **keys}
    return load_mapping({"deployment": data}, "test").deployment


def test_each_name_of_deployments_is_a_service() -> None:
    file = fleet()
    assert [item.service_name for item in file.services] == ["sglang-llama-8b", "sglang-big"]
    assert [item.hosts for item in file.services] == ["gpu_small", "gpu_large:!old"]
    assert [item.port for item in file.services] == [9000, 9000]
    assert file.paths == ("deployments.llama_8b", "deployments.qwen")
    assert file.names == "sglang-llama-8b and sglang-big"


def test_environment_is_inherited_and_the_nearest_wins() -> None:
    values = {name: value.value for name, value in fleet().services[0].env_vars.items()}
    assert values == {"A": "top", "B": "execution", "C": "own"}


def test_mounts_are_inherited_and_the_nearest_wins() -> None:
    llama, qwen = fleet().services
    assert llama.mounts == (Mount(source="/data", target="/data", read_only=True),)
    assert qwen.mounts == (Mount(source="/data", target="/elsewhere"), Mount(source="/more", target="/more"))


def test_a_file_with_several_has_no_single_deployment() -> None:
    with pytest.raises(SpecErrors, match="names sglang-llama-8b and sglang-big, and one is needed"):
        _ = fleet().deployment


def test_auto_counts_as_the_least_it_can_be() -> None:
    assert one(tensor_parallel_size="auto", data_parallel_size=2).gpus_needed == 2


@pytest.mark.parametrize(
    ("old", "new", "path", "says"),
    [
        ("name: big", "name: llama-8b", "deployments.qwen", "is called sglang-llama-8b as deployments.llama_8b is"),
        ("/more: /more", "/more: /elsewhere/", "deployments.qwen.mounts", "are both mounted at /elsewhere"),
        ("/more: /more", "/more: more", "deployments.qwen.mounts./more", "must be an absolute path in the container"),
        ("/more: /more", "more: /more", "deployments.qwen.mounts.more", "must be an absolute path on the host"),
        ("hosts: gpu_small", "hosts: ''", "deployments.llama_8b.hosts", "is not a pattern of hosts"),
        ("port: 9000", "prot: 9000", "deployments.llama_8b.prot", "Did you mean 'port'?"),
        ("mounts: {deployment", "mounts: {deploymnt", "execution.mounts.deploymnt", "Did you mean 'deployment'?"),
    ],
)
def test_mistakes_name_the_deployment(old: str, new: str, path: str, says: str) -> None:
    assert old in FLEET
    with pytest.raises(SpecErrors) as refused:
        fleet(FLEET.replace(old, new))
    problem = next(problem for problem in refused.value.errors if problem.path == path)
    assert says in str(problem)
    assert problem.line


def test_checkpoint_and_cache_have_their_places_in_the_container() -> None:
    with pytest.raises(SpecErrors, match="/x and checkpoint_path are both mounted at /checkpoint"):
        one(checkpoint_path="/models/m", mounts={"/x": "/checkpoint"})
    with pytest.raises(SpecErrors, match="/x and cache_path are both mounted at /cache"):
        one(cache_path="/data", mounts={"/x": "/cache/"})


def test_one_or_several_but_not_both_and_not_none() -> None:
    with pytest.raises(SpecErrors, match="cannot stand beside `deployments`"):
        fleet(FLEET + "deployment: {served_model_name: m, hf_model_handle: o/m}\n")
    with pytest.raises(SpecErrors, match=r"deployment: is missing"):
        fleet("execution: {}\n")
    with pytest.raises(SpecErrors, match=r"deployments \(line 1\)"):
        fleet("deployments: {}\n")


def test_the_same_name_in_two_files_is_refused() -> None:
    check_names([one(), one(served_model_name="n")])
    with pytest.raises(SpecErrors, match="sglang-m is there twice"):
        check_names([one(), one(port=1)])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python3 -m sglang.launch_server --port ${deployment.port}", "python3 -m sglang.launch_server --port 8000"),
        (["python3", "-m", "server", 1], ("python3", "-m", "server", "1")),
        (None, None),
    ],
)
def test_a_command_is_text_for_a_shell_or_a_list(command: Any, expected: Any) -> None:
    assert one(command=command).command == expected


def test_a_command_may_name_the_model_itself() -> None:
    assert one(hf_model_handle=None, command="serve").hf_model_handle is None
