"""What the command line and a host's variables lay over a file."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_ops.spec import REMOVED, DeploymentFile, SpecErrors, check, divided, lay_over
from sglang_ops.spec.yamlfile import Document, parse

ONE = """\
deployment:
  served_model_name: m
  hf_model_handle: org/m
  checkpoint_path: /models/m
  port: 8000
  env_vars: {A: a, B: b}
evaluation:
  tasks:
    - name: lm-evaluation-harness.ifeval
    - name: gpqa_diamond
"""
SEVERAL = """\
deployments:
  llama: {served_model_name: llama, hf_model_handle: org/llama}
  qwen: {served_model_name: qwen, hf_model_handle: org/qwen, port: 8001}
"""


def document(text: str = ONE) -> Document:
    return parse(text, "a.yaml")


def for_host(overrides: Any, text: str = ONE) -> DeploymentFile:
    return check(document(text), host_overrides=overrides)


def refused(overrides: Any, text: str = ONE) -> str:
    with pytest.raises(SpecErrors) as error:
        for_host(overrides, text)
    return error.value.message


def test_mappings_are_merged_and_the_rest_is_replaced() -> None:
    file = check(document(), {"deployment": {"port": 9000, "env_vars": {"B": "new", "C": "c"}}})
    assert file.deployment.port == 9000
    assert {name: value.value for name, value in file.deployment.env_vars.items()} == {"A": "a", "B": "new", "C": "c"}
    assert file.deployment.hf_model_handle == "org/m"


def test_overrides_come_before_interpolation() -> None:
    text = ONE.replace("port: 8000", "port: 8000\n  command: serve --port ${deployment.port}")
    assert check(document(text), {"deployment": {"port": 1}}).deployment.command == "serve --port 1"


def test_keys_can_be_taken_away() -> None:
    assert check(document(), {"deployment": {"checkpoint_path": REMOVED}}).deployment.checkpoint_path is None
    with pytest.raises(SpecErrors, match=r"deployment\.cache_path: is not in the file"):
        check(document(), {"deployment": {"cache_path": REMOVED}})


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        ({"0": {"name": "x"}}, ["x", "gpqa_diamond"]),
        ({"gpqa_diamond": {"name": "x"}}, ["lm-evaluation-harness.ifeval", "x"]),
        ({"ifeval": {"name": "x"}}, ["x", "gpqa_diamond"]),
        ({"lm-evaluation-harness": {"ifeval": {"name": "x"}}}, ["x", "gpqa_diamond"]),
        ({"1": REMOVED}, ["lm-evaluation-harness.ifeval"]),
        ({"ifeval": REMOVED}, ["gpqa_diamond"]),
        ([{"name": "y"}], ["y"]),
    ],
)
def test_items_of_lists_are_meant_by_position_or_name(tasks: Any, names: list[str]) -> None:
    file = check(document(), {"evaluation": {"tasks": tasks}})
    assert [task.name for task in file.evaluation.tasks] == names


@pytest.mark.parametrize("task", ["2", "mmlu"])
def test_items_that_are_not_there_are_refused(task: str) -> None:
    with pytest.raises(SpecErrors, match=rf"evaluation\.tasks\.{task}: is not in the list"):
        check(document(), {"evaluation": {"tasks": {task: {"name": "x"}}}})


def test_what_was_laid_over_has_no_line_of_the_file() -> None:
    with pytest.raises(SpecErrors) as error:
        check(document(), {"deployment": {"port": 0, "prot": 1}})
    assert {(problem.path, problem.line) for problem in error.value.errors} == {
        ("deployment.port", None), ("deployment.prot", None),
    }  # fmt: skip


def test_a_host_changes_keys_of_the_one_deployment() -> None:
    file = for_host({"port": 9000, "env_vars": {"A": "host"}})
    assert (file.deployment.port, file.deployment.env_vars["A"].value) == (9000, "host")


def test_a_host_changes_keys_of_deployments_by_name() -> None:
    file = for_host({"qwen": {"tensor_parallel_size": 4}}, SEVERAL)
    assert [item.tensor_parallel_size for item in file.services] == [1, 4]


def test_the_command_line_wins_over_the_host() -> None:
    file = check(document(), {"deployment": {"port": 2}}, host_overrides={"port": 1, "data_parallel_size": 3})
    assert (file.deployment.port, file.deployment.data_parallel_size) == (2, 3)


@pytest.mark.parametrize(
    ("overrides", "text", "says"),
    [
        ({"prot": 1}, ONE, "deployment_overrides.prot: is not a key of a deployment. Did you mean 'port'?"),
        ({"hosts": "a"}, ONE, "deployment_overrides.hosts: chooses hosts"),
        ({"qwem": {"port": 1}}, SEVERAL, "qwem: is no deployment of the file. Did you mean 'qwen'?"),
        ({"port": 1}, SEVERAL, "deployment_overrides.port: is no deployment of the file. There are llama, qwen."),
        ({"qwen": 1}, SEVERAL, "deployment_overrides.qwen: must be a mapping"),
        ({"qwen": {"prot": 1}}, SEVERAL, "deployment_overrides.qwen.prot: is not a key of a deployment"),
        ({"port": 0}, ONE, "a.yaml with deployment_overrides has a mistake:\n  deployment.port: must be greater"),
        ("port=1", ONE, "deployment_overrides: must be a mapping, found 'port=1'"),
    ],
)
def test_mistakes_of_a_host_name_the_variable(overrides: Any, text: str, says: str) -> None:
    assert says in refused(overrides, text)


def test_several_files_get_what_stands_under_their_names() -> None:
    files = [check(document()), check(document(SEVERAL))]
    overrides = {"m": {"port": 1}, "qwen": {"port": 2}}
    assert divided(files, overrides) == [{"port": 1}, {"qwen": {"port": 2}}]
    assert divided(files, {"llama": {"port": 3}}) == [{}, {"llama": {"port": 3}}]
    assert divided(files[:1], {"port": 4}) == [{"port": 4}]
    with pytest.raises(SpecErrors, match=r"deployment_overrides\.port: is no deployment.* There are m, llama, qwen"):
        divided(files, {"port": 4})


def test_the_document_itself_is_left_as_it_was() -> None:
    original = document()
    lay_over(original, {"deployment": {"port": 1, "env_vars": {"A": "x"}}, "evaluation": {"tasks": {"0": REMOVED}}})
    assert original == document()
