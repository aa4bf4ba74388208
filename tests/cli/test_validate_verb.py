"""`validate` and `schema`: the deployment file without any host."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEPLOYMENT, Shell

from sglang_ops import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
FLEET = """\
deployments:
  small: {hosts: gpu_small, image: 'lmsysorg/sglang:v0.5.23', served_model_name: small, hf_model_handle: org/small}
  big: {hosts: gpu_large, image: 'lmsysorg/sglang:v0.5.23', served_model_name: big, hf_model_handle: org/big,
        tensor_parallel_size: auto}
"""


def extended(shell: Shell, body: str) -> None:
    (shell.home / "deployment.yaml").write_text(DEPLOYMENT + body)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid(example: Path, shell: Shell) -> None:
    found = shell.json("validate", "--config", str(example))
    assert (shell.code, found["ok"], found["errors"]) == (0, True, [])


def test_the_page_s_complete_example_is_translated_with_a_warning(shell: Shell) -> None:
    found = shell.json("validate", "--config", str(EXAMPLES / "complete.yaml"))
    assert any("--disable-flashinfer becomes" in warning for warning in found["warnings"])
    assert any("lmsysorg/sglang:latest moves" in warning for warning in found["warnings"])


def test_strict_refuses_to_translate(shell: Shell) -> None:
    found = shell.json("validate", "--strict", "--config", str(EXAMPLES / "complete.yaml"))
    (error,) = found["errors"]
    assert (shell.code, error["path"], error["line"]) == (7, "deployment.extra_args", 18)
    assert "--disable-flashinfer" in error["message"]


@pytest.mark.parametrize(
    ("body", "path", "line", "says"),
    [
        ("  extra_args: --mem-fraktion-static 0.8\n", "deployment.extra_args", 6, "--mem-fraktion-static"),
        ("  command: python3 -m sglang.launch_server --nonsense\n", "deployment.command", 6, "--nonsense"),
        ("  command: python3 -m sglang.launch_server --port 8000\n", None, None, ""),
        ("  port: 1\n", "deployment.port", 6, "appears twice"),
        ("  checkpoint_path: ???\n", "deployment.checkpoint_path", 6, "is missing (???)"),
    ],
)
def test_mistakes_have_path_line_and_remedy(
    body: str, path: str | None, line: int | None, says: str, shell: Shell
) -> None:
    extended(shell, body)
    found = shell.json("validate")
    if path is None:
        assert (shell.code, found["errors"]) == (0, [])
        return
    (error,) = found["errors"]
    assert (shell.code, error["path"], error["line"]) == (7, path, line)
    assert says in error["message"]
    assert error["fix"]


def test_every_mistake_is_told_in_one_pass(shell: Shell) -> None:
    extended(shell, "  prot: 1\n  tensor_parallel_size: many\n  env_vars: {A B: x, C: }\nexecution: {waltime: 1}\n")
    found = shell.json("validate")
    assert [error["path"] for error in found["errors"]] == [
        "deployment.prot", "deployment.tensor_parallel_size", "deployment.env_vars.A B", "deployment.env_vars.C",
        "execution.waltime",
    ]  # fmt: skip
    assert [error["line"] for error in found["errors"]] == [6, 7, 8, 8, 9]


def test_overrides_are_checked_with_the_file(shell: Shell) -> None:
    assert shell.run("validate", "-o", "deployment.port=9000", "-o", "deployment.tensor_parallel_size=auto") == 0
    assert "on port 9000, as few GPUs as hold it per host" in shell.out
    assert shell.run("validate", "-o", "deployment.port=0") == 7
    assert "deployment.port: must be greater than or equal to 1, found 0" in shell.err


def test_a_key_without_its_section_is_corrected(shell: Shell) -> None:
    assert shell.run("validate", "-o", "port=9000") == 7
    assert "Did you mean 'deployment.port'?" in shell.err


def test_several_deployments_are_summed_up(shell: Shell) -> None:
    (shell.home / "deployment.yaml").write_text(FLEET)
    assert shell.run("validate") == 0
    assert "small (org/small) on port 8000, 1 GPU on each of gpu_small, as sglang-small." in shell.out
    assert "as few GPUs as hold it on each of gpu_large, as sglang-big." in shell.out


def test_keys_without_effect_are_named(shell: Shell) -> None:
    extended(shell, "execution: {walltime: 02:00:00}\n")
    assert shell.run("validate") == 0
    assert "Warning: execution.walltime has no effect here." in shell.err


def test_it_takes_less_than_0_7_seconds(shell: Shell) -> None:
    """Of processor time: how busy the machine is with other things is not the point. OmegaConf is needed as well."""
    extended(shell, "  extra_args: --disable-flashinfer\n  pre_cmd: echo ${deployment.port}\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "sglang_ops", "validate"]
        subprocess.run(command, capture_output=True, check=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(times) < 0.7


def test_the_schema_is_printed_for_editors(shell: Shell) -> None:
    assert shell.run("schema") == 0
    schema = json.loads(shell.out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "served_model_name" in schema["$defs"]["Deployment"]["properties"]
