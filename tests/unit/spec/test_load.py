"""The deployment file: what is accepted, and that every mistake is named with path, line and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_ops.spec import SpecErrors, find_deployment_file, load

COMPLETE_EXAMPLE = """\
defaults:
  - execution: local
  - deployment: sglang
  - _self_

deployment:
  type: sglang
  image: lmsysorg/sglang:latest
  hf_model_handle: meta-llama/Llama-3.1-8B-Instruct
  served_model_name: llama-3.1-8b-instruct
  port: 8000
  tensor_parallel_size: 4
  data_parallel_size: 1
  extra_args: "--disable-flashinfer --mem-fraction-static 0.8"
  env_vars:
    HF_HOME: "/cache/huggingface"
    CUDA_VISIBLE_DEVICES: "0,1,2,3"

execution:
  output_dir: sglang_evaluation_results

evaluation:
  tasks:
    - name: gpqa_diamond
    - name: ifeval
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(text)
    return path


def deployment(tmp_path: Path, body: str) -> Path:
    lines = ["deployment:", "  served_model_name: m", "  hf_model_handle: org/m", *body.splitlines()]
    return write(tmp_path, "\n".join(lines) + "\n")


def test_complete_example_is_read_as_written(tmp_path: Path) -> None:
    file = load(write(tmp_path, COMPLETE_EXAMPLE))
    assert file.deployment.extra_args == ("--disable-flashinfer", "--mem-fraction-static", "0.8")
    assert file.deployment.env_vars["CUDA_VISIBLE_DEVICES"].value == "0,1,2,3"
    assert file.deployment.gpus_needed == 4
    assert file.deployment.service_name == "sglang-llama-3-1-8b-instruct"
    assert file.execution.output_dir == "sglang_evaluation_results"
    assert [task.name for task in file.evaluation.tasks] == ["gpqa_diamond", "ifeval"]


@pytest.mark.parametrize(
    ("body", "path", "says"),
    [
        ("  prot: 8000", "deployment.prot", "Did you mean 'port'?"),
        ("  port: 70000", "deployment.port", "less than or equal to 65535, found 70000"),
        ("  port: eighty", "deployment.port", "must be a valid integer"),
        ("  tensor_parallel_size: 0", "deployment.tensor_parallel_size", "greater than or equal to 1"),
        ("  checkpoint_path: models/x", "deployment.checkpoint_path", "absolute path"),
        ("  image: 'Foo Bar'", "deployment.image", "not an image reference"),
        ("  extra_args: '--port 1'", "deployment.extra_args", "--port is set by the key port"),
        ("  extra_args: \"--x 'open\"", "deployment.extra_args", "cannot be split"),
        ("  env_vars: {A B: 1}", "deployment.env_vars.A B", "not a name for an environment variable"),
        ("  env_vars: {A: }", "deployment.env_vars.A", "must be text or a number, found nothing"),
        ("  env_vars: {HF_HOME: cache}", "deployment.env_vars.HF_HOME", "'cache' and must be an absolute path"),
        ("  endpoints: {chat: v1}", "deployment.endpoints.chat", "begins with '/'"),
        ("  endpoints: {chatt: /v1}", "deployment.endpoints.chatt", "Did you mean 'chat'?"),
        ("  type: vllm", "deployment.type", "'sglang'"),
        ("  name: My Name", "deployment.name", "lower-case letters"),
        ("  name: ops-peers", "deployment.name", "begin with 'ops-' are this tool's own. Write 'peers'."),
    ],
)
def test_mistakes_are_named_with_path_and_line(tmp_path: Path, body: str, path: str, says: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        load(deployment(tmp_path, body))
    (problem,) = caught.value.errors
    assert problem.path == path
    assert problem.line == 4
    assert says in str(problem)


def test_a_name_that_units_of_this_tool_have_is_not_made_from_the_models_either(tmp_path: Path) -> None:
    text = "deployment:\n  hf_model_handle: org/m\n  served_model_name: "
    with pytest.raises(SpecErrors, match=r"sglang-ops-peers; names that begin with 'ops-'.* Set name to"):
        load(write(tmp_path, text + "Ops Peers\n"))
    assert load(write(tmp_path, text + "Ops Peers\n  name: peers\n")).deployment.service_name == "sglang-peers"
    assert load(write(tmp_path, text + "opsec\n")).deployment.service_name == "sglang-opsec"


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecErrors) as caught:
        load(deployment(tmp_path, "  port: 0\n  imagee: x\n  data_parallel_size: -1"))
    assert {problem.line for problem in caught.value.errors} == {4, 5, 6}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be a YAML mapping, found nothing"),
        ("- a\n", "found a list"),
        ("deployment: [\n", "is not YAML"),
        ("x: 1\nx: 2\n", "appears twice"),
        ("deployment: 7\n", "deployment"),
        ("deployment:\n  served_model_name: m\n", "names no model"),
        ("deployment:\n  hf_model_handle: a/b\n", "served_model_name"),
        ("deployment:\n  hf_model_handle: a/b\n  served_model_name: a:b\n", "Write 'a-b'"),
        ("deployment:\n  hf_model_handle: /abs/path\n  served_model_name: m\n", "goes into checkpoint_path"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SpecErrors, match=r"deployment\.yaml") as caught:
        load(write(tmp_path, text))
    assert says in caught.value.message


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecErrors, match="no such file"):
        load(tmp_path / "nowhere.yaml")


def test_interpolations_resolve_and_failures_name_the_key(tmp_path: Path) -> None:
    text = "deployment:\n  hf_model_handle: org/m\n  served_model_name: ${oc.select:deployment.hf_model_handle,x}\n"
    assert load(write(tmp_path, text)).deployment.served_model_name == "org/m"
    with pytest.raises(SpecErrors) as caught:
        load(write(tmp_path, text.replace("${oc.select:deployment.hf_model_handle,x}", "${no.such.key}")))
    assert caught.value.errors[0].line == 3


def test_free_keys_and_lists_of_arguments(tmp_path: Path) -> None:
    path = deployment(tmp_path, "  x-note: anything\n  extra_args: [--a, 'b c', 1]")
    assert load(path).deployment.extra_args == ("--a", "b c", "1")


def test_references_are_told_apart_from_text(tmp_path: Path) -> None:
    path = deployment(tmp_path, "  env_vars: {A: 'host:TOKEN', B: 'lit:host:x', C: 'runtime:KEY', D: true}")
    values = load(path).deployment.env_vars
    assert [(value.kind, value.value) for value in values.values()] == [
        ("host", "TOKEN"), ("literal", "host:x"), ("runtime", "KEY"), ("literal", "true"),
    ]


def test_file_is_found_beside_the_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inventory = tmp_path / "fleet" / "hosts"
    inventory.parent.mkdir()
    assert find_deployment_file(None, [inventory]) is None
    (inventory.parent / "deployment.yaml").write_text("x: 1")
    assert find_deployment_file(None, [inventory]) == inventory.parent / "deployment.yaml"
    (tmp_path / "deployment.yaml").write_text("x: 1")
    assert find_deployment_file(None, [inventory]) == Path("deployment.yaml")
    assert find_deployment_file(tmp_path / "other.yaml", [inventory]) == tmp_path / "other.yaml"
