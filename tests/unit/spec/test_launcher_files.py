"""Files written for the NeMo Evaluator Launcher work as they are; what it says to others is told to have no effect."""

from __future__ import annotations

import pytest

from sglang_ops.spec import DeploymentFile, SpecErrors, check, load_mapping, warnings
from sglang_ops.spec.yamlfile import parse

# The launcher's own command template, releases 0.2.3 to 0.2.6.
TEMPLATE = """\
python3 -m sglang.launch_server
    --model-path ${select_not_null:deployment.hf_model_handle,/checkpoint}
    --host 0.0.0.0
    --port ${deployment.port}
    --served-model-name ${deployment.served_model_name}
    --tp-size ${deployment.tensor_parallel_size}
    --dp-size ${deployment.data_parallel_size}
    --pp-size ${deployment.pipeline_parallel_size}
    ${deployment.extra_args}"""
SLURM = """\
defaults:
  - execution: slurm/default
  - deployment: sglang
  - _self_

execution:
  hostname: ??? # SLURM headnode (login) hostname (required)
  username: ${oc.env:NOBODY_SETS_THIS}
  account: ???
  output_dir: /lustre/results
  walltime: 02:00:00
  gres: gpu:8
  auto_export:
    destinations: ["mlflow"]
  mounts:
    deployment:
      /lustre/hf_home: /root/.cache/huggingface
    mount_home: false
  env_vars:
    deployment:
      HF_HUB_OFFLINE: 0

deployment:
  checkpoint_path: null
  hf_model_handle: Qwen/Qwen3-4B-Instruct-2507
  served_model_name: Qwen/Qwen3-4B-Instruct-2507
  tensor_parallel_size: 1
  data_parallel_size: 1
  extra_args: "--context-length 32768"
  env_vars:
    HF_TOKEN: host:HF_TOKEN
    MODE: lit:a b

evaluation:
  nemo_evaluator_config:
    config:
      params: {parallelism: 10, limit_samples: 5, extra: {tokenizer: x}}
  tasks:
    - name: lm-evaluation-harness.ifeval
      nemo_evaluator_config: {config: {params: {request_timeout: 60}}}
    - name: simple_evals.gpqa_diamond
      env_vars:
        HF_TOKEN: host:HF_TOKEN
      dataset_dir: /data/gpqa

export:
  mlflow:
    tracking_uri: ???
    experiment_name: "nv-eval"
"""


def load(text: str) -> DeploymentFile:
    return check(parse(text, "launcher.yaml"))


def command(template: str, **keys: object) -> object:
    data = {"served_model_name": "m", "command": template, **keys}
    return load_mapping({"deployment": data}, "test").deployment.command


def test_a_file_for_slurm_serves_here() -> None:
    deployment = load(SLURM).deployment
    assert deployment.hf_model_handle == "Qwen/Qwen3-4B-Instruct-2507"
    assert deployment.checkpoint_path is None
    assert deployment.env_vars["HF_TOKEN"].kind == "host"
    assert deployment.env_vars["MODE"].value == "a b"
    assert deployment.env_vars["HF_HUB_OFFLINE"].value == "0"
    assert deployment.mounts[0].target == "/root/.cache/huggingface"


def test_what_has_no_effect_is_told_key_by_key() -> None:
    said = warnings(load(SLURM))
    without_effect = [line.partition(" has no effect here.")[0] for line in said if "has no effect here" in line]
    assert without_effect == [
        "execution.mounts.mount_home", "execution.auto_export", "execution.gres", "execution.walltime",
        "export.mlflow", "defaults: execution slurm/default",
    ]  # fmt: skip
    assert "execution.gres has no effect here. GPUs come from the parallel sizes." in said


def test_a_local_executor_needs_no_word() -> None:
    text = "defaults: [{execution: local}, {deployment: sglang}, _self_]\nexecution: {type: local, output_dir: r}\n"
    said = warnings(load(text + SLURM[SLURM.index("deployment:\n  check") :]))
    assert not [line for line in said if "execution" in line]


@pytest.mark.parametrize("key", ["target: {api_endpoint: {url: x}}", "auxiliary_deployments: {judge: {type: vllm}}"])
def test_other_sections_of_the_launcher_are_known(key: str) -> None:
    path = key.partition(":")[0]
    assert any(line.startswith(path) for line in warnings(load(f"{key}\n{SLURM}")))


def test_the_launcher_s_template_is_interpolated_with_defaults() -> None:
    assert command(TEMPLATE, hf_model_handle="org/m", extra_args="--a 'b c'") == (
        "python3 -m sglang.launch_server\n    --model-path org/m\n    --host 0.0.0.0\n    --port 8000\n"
        "    --served-model-name m\n    --tp-size 1\n    --dp-size 1\n    --pp-size 1\n    --a 'b c'"
    )


@pytest.mark.parametrize("resolver", ["select_not_null", "oc.select"])
def test_no_handle_means_the_checkpoint_also_where_the_launcher_writes_none(resolver: str) -> None:
    template = f"serve ${{{resolver}:deployment.hf_model_handle,/checkpoint}}"
    assert command(template, checkpoint_path="/models/m") == "serve /checkpoint"
    assert command(template, checkpoint_path="/models/m", hf_model_handle=None) == "serve /checkpoint"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("${oc.env:SPEC_TEST}", "from the environment"),
        ("${oc.env:SPEC_TEST_NOT_SET,default}", "default"),
        ("${oc.decode:'text'}", "text"),
        ("${x-mine.name}", "free"),
        ("${.served_model_name}", "m"),
        ("\\${escaped}", "${escaped}"),
    ],
)
def test_interpolations(value: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEC_TEST", "from the environment")
    data = {"served_model_name": "m", "hf_model_handle": "org/m", "pre_cmd": value}
    file = load_mapping({"deployment": data, "x-mine": {"name": "free"}}, "test")
    assert file.deployment.pre_cmd == found


def test_numbers_and_switches_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEC_PORT", "9001")
    monkeypatch.setenv("SPEC_SHARE", "true")
    data = {"served_model_name": "m", "hf_model_handle": "org/m"}
    data |= {"port": "${oc.env:SPEC_PORT}", "share_gpus": "${oc.env:SPEC_SHARE}"}
    deployment = load_mapping({"deployment": data}, "test").deployment
    assert (deployment.port, deployment.share_gpus) == (9001, True)


@pytest.mark.parametrize(
    ("old", "new", "path", "says"),
    [
        ("checkpoint_path: null", "checkpoint_path: ???", "deployment.checkpoint_path", "is missing (???)"),
        ("- deployment: sglang", "- deployment: vllm", "defaults.1.deployment", "serves with SGLang only"),
        ("  tensor_parallel_size: 1", "  type: vllm", "deployment.type", "'vllm' cannot be served"),
        ("tensor_parallel_size", "tensor_paralel_size", "deployment.tensor_paralel_size", "'tensor_parallel_size'"),
        ("data_parallel_size", "gpu_memory_utilization", "deployment.gpu_memory_utilization", "--mem-fraction-static"),
        ("walltime", "waltime", "execution.waltime", "Did you mean 'walltime'?"),
        ("mount_home", "mount_hom", "execution.mounts.mount_hom", "Did you mean 'mount_home'?"),
        ("dataset_dir", "dataset", "evaluation.tasks.1.dataset", "Did you mean 'dataset_dir'?"),
        ("  nemo_evaluator_config:\n", "  overrides:\n", "evaluation.overrides", "nemo_evaluator_config"),
        ("- name: lm-evaluation-harness.ifeval", "- container: x", "evaluation.tasks.0.name", "is missing"),
        ("lit:a b", "${nowhere}", "deployment.env_vars.MODE", "Interpolation key 'nowhere' not found"),
        ("lit:a b", "${oc.env:NOBODY_SETS_THIS}", "deployment.env_vars.MODE", "'NOBODY_SETS_THIS' not found"),
    ],
)
def test_mistakes_are_found_where_the_launcher_is_careless(old: str, new: str, path: str, says: str) -> None:
    text = SLURM.replace(old, new, 1)
    with pytest.raises(SpecErrors) as refused:
        load(text)
    problem = next(problem for problem in refused.value.errors if problem.path == path)
    assert says in str(problem)
    assert problem.line


def test_failed_interpolations_and_other_mistakes_are_told_together() -> None:
    with pytest.raises(SpecErrors) as refused:
        load(SLURM.replace("lit:a b", "${nowhere}").replace("checkpoint_path: null", "checkpoint_path: ???\n  port: 0"))
    assert [problem.path for problem in refused.value.errors] == [
        "deployment.checkpoint_path", "deployment.port", "deployment.env_vars.MODE",
    ]  # fmt: skip


def test_a_task_written_as_a_word_gets_the_right_form() -> None:
    with pytest.raises(SpecErrors, match=r"tasks\.0.*Write `name: ifeval`"):
        load("deployment: {served_model_name: m, command: x}\nevaluation: {tasks: [ifeval]}\n")
