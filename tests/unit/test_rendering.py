"""What a deployment becomes without a host: the launcher's command where that is right, and the unit of a deploy."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ops.errors import ExitCode, PreflightError
from sglang_ops.planning import HostFacts, ResolvedImage, Secrets, Settings, Wanted, plan
from sglang_ops.rendering import Rendered, exec_groups, pretended_host, render
from sglang_ops.spec import Deployment, load_mapping

MODEL, NAME = "meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct"
CHECKPOINT = "/models/llama-3.1-8b-instruct"
TEXT = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs", "Cn"]), max_size=30)
# What the launcher (0.2.6) renders behind `--model-path`; it goes on with `--pp-size 1`, a flag that SGLang before
# 0.4.6 refuses. Ours names the flag only where it says something.
SIZES = "--tp-size {} --dp-size {}"
MIDDLE = f"--host 0.0.0.0 --port 8000 --served-model-name {NAME}"
EXTRA = """--mem-fraction-static 0.8
  --chat-template '/a b/c.jinja' --json-model-override-args '{"a": "it'"'"'s"}'"""
LAUNCHED = [
    ({"tensor_parallel_size": 4}, f"{MODEL} {MIDDLE} {SIZES.format(4, 1)}"),
    ({"tensor_parallel_size": 2, "data_parallel_size": 2}, f"{MODEL} {MIDDLE} {SIZES.format(2, 2)}"),
    ({"pipeline_parallel_size": 2}, f"{MODEL} {MIDDLE} {SIZES.format(1, 1)} --pp-size 2"),
    ({"checkpoint_path": None}, f"{MODEL} {MIDDLE} {SIZES.format(1, 1)}"),
    ({"checkpoint_path": CHECKPOINT, "hf_model_handle": None}, f"/checkpoint {MIDDLE} {SIZES.format(1, 1)}"),
    ({"checkpoint_path": CHECKPOINT}, f"{MODEL} {MIDDLE} {SIZES.format(1, 1)}"),
    ({"extra_args": EXTRA}, f"{MODEL} {MIDDLE} {SIZES.format(1, 1)} {EXTRA}"),
]


def deployment(**changes: Any) -> Deployment:
    base = {"served_model_name": NAME, "hf_model_handle": MODEL, "image": "lmsysorg/sglang:v0.5.23"}
    return load_mapping({"deployment": base | changes}, "test").deployment


def one(**changes: Any) -> Rendered:
    (service,) = render([deployment(**changes)])
    return service


@pytest.mark.parametrize(("keys", "words"), LAUNCHED)
def test_argv_is_what_the_launcher_renders(keys: dict[str, Any], words: str) -> None:
    assert one(**keys).as_dict()["argv"] == shlex.split(f"python3 -m sglang.launch_server --model-path {words}")


def test_a_checkpoint_is_mounted_where_the_launcher_mounts_it_and_only_if_it_is_used() -> None:
    checkpoint = {"source": CHECKPOINT, "target": "/checkpoint", "read_only": True}
    assert checkpoint in one(hf_model_handle=None, checkpoint_path=CHECKPOINT).as_dict()["mounts"]
    both = one(checkpoint_path=CHECKPOINT).as_dict()
    assert checkpoint not in both["mounts"]
    assert [text for text in both["warnings"] if MODEL in text and CHECKPOINT in text]


def test_a_revision_is_pinned_where_the_file_names_one() -> None:
    assert "--revision" not in one().as_dict()["argv"]
    argv = one(hf_model_handle=f"{MODEL}@refs/pr/7").as_dict()["argv"]
    assert argv[argv.index("--model-path") :][:4] == ["--model-path", MODEL, "--revision", "refs/pr/7"]


def test_secrets_are_references_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIRS", "value-of-theirs")
    service = one(
        env_vars={"MINE": "host:THEIRS", "A_TOKEN": "value-of-a-token", "ITS": "runtime:ITS_NAME", "PLAIN": "p"}
    )
    environment = service.as_dict()["env"]
    assert {key: environment[key] for key in ("MINE", "A_TOKEN", "ITS", "PLAIN")} == {
        "MINE": "host:THEIRS", "A_TOKEN": "(hidden)", "ITS": "runtime:ITS_NAME", "PLAIN": "p",
    }  # fmt: skip
    by_name = [group[1] for group in service.container if group[0] == "--env" and "=" not in group[1]]
    assert by_name == ["A_TOKEN", "ITS", "MINE"]
    assert service.borrowed == {"MINE": "THEIRS"}
    assert "value-of" not in f"{service.as_dict()}{service.unit}{service.container}"


def test_the_hub_token_reaches_only_a_server_that_is_online() -> None:
    assert "HF_TOKEN" not in one(env_vars={"HF_TOKEN": "host:HF_TOKEN"}).as_dict()["env"]
    online = one(env_vars={"HF_TOKEN": "host:HF_TOKEN", "HF_HUB_OFFLINE": "0"}).as_dict()["env"]
    assert (online["HF_TOKEN"], online["HF_HUB_OFFLINE"]) == ("host:HF_TOKEN", "0")


def test_the_host_has_as_many_gpus_as_are_needed_or_named() -> None:
    assert one(tensor_parallel_size=2, data_parallel_size=2).as_dict()["devices"] == [
        f"nvidia.com/gpu={index}" for index in range(4)
    ]
    named = one(tensor_parallel_size=2, env_vars={"CUDA_VISIBLE_DEVICES": "5,7"})
    assert named.as_dict()["devices"] == ["nvidia.com/gpu=5", "nvidia.com/gpu=7"]
    assert "CUDA_VISIBLE_DEVICES" not in named.as_dict()["env"]
    assert len(one(env_vars={"CUDA_VISIBLE_DEVICES": "GPU-aa"}).as_dict()["devices"]) == 1
    assert one(extra_args="--device cpu").as_dict()["devices"] == []


def test_a_host_with_too_few_gpus_is_refused_as_planning_refuses_it() -> None:
    with pytest.raises(PreflightError, match=r"needs 4 GPUs .* a host with 2 GPUs has 2 free of 2") as refused:
        render([deployment(tensor_parallel_size=4)], gpus=2)
    assert refused.value.exit_code is ExitCode.REFUSED
    assert len(render([deployment(tensor_parallel_size=4)], gpus=8)) == 1


def test_what_only_a_host_decides_is_not_guessed() -> None:
    with pytest.raises(PreflightError, match="tensor_parallel_size"):
        render([deployment(tensor_parallel_size="auto")])


def test_several_deployments_share_the_host_as_they_would_in_a_deploy() -> None:
    first, second = deployment(name="a", tensor_parallel_size=2), deployment(name="b", port=8100)
    one, two = render([first, second])
    assert one.as_dict()["devices"] == ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]
    assert two.as_dict()["devices"] == ["nvidia.com/gpu=2"]
    with pytest.raises(PreflightError, match="port 8000"):
        render([first, deployment(name="b")])


@given(TEXT, TEXT, TEXT)
def test_the_unit_is_the_one_that_a_deploy_writes(first: str, second: str, value: str) -> None:
    arguments = [f"--chat-template={first}", f"--tokenizer-path={second}"]
    wanted = deployment(extra_args=arguments, env_vars={"WORDS": f"lit:{value}"})
    (service,) = render([wanted])
    digest = f"lmsysorg/sglang@sha256:{'ab' * 32}"
    facts = pretended_host([wanted], Settings(), gpus=1)
    made = plan([Wanted(wanted, ResolvedImage(wanted.image, digest, release="0.5.23"), Secrets())], facts, Settings())
    deployed = made.services[0].unit.replace(digest, wanted.image).replace("ab" * 6, "lmsysorg-sglang-v0.5.23")
    assert neutral(deployed) == neutral(service.unit)
    written = exec_groups(service.unit)
    assert [word for group in written for word in group][-2:] == arguments
    assert ["--env", f"WORDS={value}"] in written


def neutral(unit: str) -> str:
    """Without what the hub and the digest tell: the revision and the release."""
    return re.sub(r"release [0-9a-f]{12}", "release", unit).replace("    --revision main \\\n", "")


@given(TEXT, TEXT)
def test_the_command_to_paste_is_the_unit_s_own(argument: str, value: str) -> None:
    keys = {"extra_args": [f"--chat-template={argument}"], "env_vars": {"WORDS": f"lit:{value}", "A_TOKEN": "x"}}
    service = one(**keys)
    first, *rest = service.container
    assert first == ["docker", "run", "--rm", "--name", service.name, "--init", "--pull", "missing"]
    assert rest.pop(rest.index(["--entrypoint", "python3"]) - 1) == ["--env", "A_TOKEN"]
    without_secret = one(**keys | {"env_vars": {"WORDS": f"lit:{value}"}})
    assert rest == exec_groups(without_secret.unit)[1:]


def test_podman_has_no_service_to_wait_for() -> None:
    (docker,), (podman,) = (render([deployment()], engine=engine) for engine in ("docker", "podman"))
    assert "Requires=docker.service" in docker.unit
    assert "ExecStart=/usr/bin/podman run" in podman.unit
    assert "docker" not in podman.unit
    # On a terminal podman refuses the log driver of the unit.
    assert ["--log-driver", "none"] in podman.container
    assert podman.container[0][0] == "podman"


def test_the_facts_are_a_host_s() -> None:
    facts = pretended_host([deployment()], Settings(), gpus=3)
    assert HostFacts.model_validate(facts.model_dump()) == facts
    assert [gpu.index for gpu in facts.gpus] == [0, 1, 2]
