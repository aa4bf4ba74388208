"""What `render` prints: data, a unit, and a command that a shell takes as it was meant."""

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Shell

from sglang_ops import cli

# The spec page's complete example, byte for byte.
PAGE = """\
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
  
  # Parallelism for 4 GPUs
  tensor_parallel_size: 4
  data_parallel_size: 1
  
  # Performance optimizations
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
"""  # noqa: W293
NASTY = [
    "two words", "it's \"quoted\"", "line\nbreak", "$(touch pwned)", "`touch pwned`", "$HOME $((1 + 1))", "100 % %n %%",
    "{{ jinja }}", "größe ☃", "back\\slash", "! ; & | > <", "", "--like-a-flag", "tab\there", "# comment", "~",
]  # fmt: skip


def written(shell: Shell, **keys: Any) -> None:
    """A deployment file with these keys."""
    base = {"image": "registry.example/sglang:v0.5.23", "served_model_name": "tiny", "hf_model_handle": "lab/tiny"}
    (shell.home / "deployment.yaml").write_text(yaml.safe_dump({"deployment": base | keys}))


def rendered(shell: Shell, *words: str) -> dict[str, Any]:
    data = shell.json("render", *words)
    assert shell.code == 0, data
    (service,) = data["services"]
    return dict(service)


def pasted(shell: Shell, **environment: str) -> tuple[list[str], dict[str, str]]:
    """What `docker` gets when bash reads the command: its arguments and its environment."""
    assert shell.run("render") == 0
    tools, told = shell.home / "bin", shell.home / "told"
    tools.mkdir(exist_ok=True)
    (tools / "docker").write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > {told}\nenv -0 > {told}.env\n')
    (tools / "docker").chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}", **environment}
    typed = {"input": shell.out, "env": path, "cwd": shell.home}
    bash = subprocess.run(["bash"], **typed, capture_output=True, text=True, check=True)
    assert (bash.stdout, bash.stderr) == ("", "")
    variables = Path(f"{told}.env").read_text().split("\0")[:-1]
    return told.read_text().split("\0")[:-1], dict(item.split("=", 1) for item in variables)


def test_the_page_s_complete_example_is_rendered_as_it_stands(shell: Shell) -> None:
    (shell.home / "page.yaml").write_text(PAGE)
    service = rendered(shell, "--config", "page.yaml")
    assert list(service) == ["name", "image", "argv", "env", "mounts", "devices", "port", "endpoints", "warnings"]
    assert service["argv"] == [
        *("python3", "-m", "sglang.launch_server", "--model-path", "meta-llama/Llama-3.1-8B-Instruct"),
        *("--host", "0.0.0.0", "--port", "8000", "--served-model-name", "llama-3.1-8b-instruct"),
        *("--tp-size", "4", "--dp-size", "1"),
        *("--attention-backend", "triton", "--sampling-backend", "pytorch", "--mem-fraction-static", "0.8"),
    ]
    assert service["devices"] == [f"nvidia.com/gpu={index}" for index in range(4)]
    assert service["env"]["HF_HOME"] == "/cache/huggingface"
    assert "CUDA_VISIBLE_DEVICES" not in service["env"]
    compiled = "/var/lib/sglang-ops/jit/lmsysorg-sglang-latest-gpu-meta-llama-Llama-3.1-8B-Instruct"
    assert service["env"]["TRITON_CACHE_DIR"] == "/jit/triton"
    assert service["mounts"] == [
        {"source": "/cache/huggingface", "target": "/cache/huggingface", "read_only": False},
        {"source": compiled, "target": "/jit", "read_only": False},
    ]
    assert service["port"] == 8000
    assert service["endpoints"] == {
        "chat": "/v1/chat/completions", "completions": "/v1/completions", "health": "/health"
    }  # fmt: skip
    assert [text for text in service["warnings"] if "--disable-flashinfer" in text and "--attention-backend" in text]
    assert [text for text in service["warnings"] if "lmsysorg/sglang:latest" in text]
    assert shell.run("render", "--config", "page.yaml", "--strict") == 7
    assert "--attention-backend triton" in shell.err


@pytest.mark.parametrize("value", NASTY)
def test_the_command_can_be_pasted(shell: Shell, value: str) -> None:
    arguments = [f"--chat-template={value}"]
    written(shell, extra_args=arguments, env_vars={"WORDS": f"lit:{value}"}, tensor_parallel_size=2)
    service = rendered(shell)
    assert service["argv"][-1:] == arguments
    assert service["env"]["WORDS"] == value
    words, _ = pasted(shell)
    image = words.index(service["image"])
    assert [words[words.index("--entrypoint") + 1], *words[image + 1 :]] == service["argv"]
    flags = list(pairwise(words[:image]))
    assert [value for flag, value in flags if flag == "--device"] == service["devices"]
    assert dict(value.split("=", 1) for flag, value in flags if flag == "--env") == service["env"]
    assert [mount(value) for flag, value in flags if flag == "--mount"] == service["mounts"]
    assert not (shell.home / "pwned").exists()


def mount(record: str) -> dict[str, Any]:
    (fields,) = csv.reader([record])
    known = dict(field.split("=", 1) for field in fields if "=" in field)
    return {"source": known["source"], "target": known["target"], "read_only": "readonly" in fields}


def test_secrets_come_from_the_shell_that_it_is_pasted_into(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIRS", "not-to-be-read")
    written(shell, env_vars={"MINE": "host:THEIRS", "A_TOKEN": "written-out"})
    assert "not-to-be-read" not in str(rendered(shell))
    words, environment = pasted(shell, THEIRS="of the shell", A_TOKEN="of the shell too")
    by_name = [name for flag, name in pairwise(words) if flag == "--env" and "=" not in name]
    assert by_name == ["A_TOKEN", "MINE"]
    assert (environment["MINE"], environment["A_TOKEN"]) == ("of the shell", "of the shell too")
    assert "Needs in the shell: A_TOKEN, THEIRS." in shell.err
    assert "not-to-be-read" not in shell.out + shell.err
    assert "written-out" not in shell.out + shell.err


def test_the_unit_alone_is_the_unit_and_several_stand_below_their_paths(shell: Shell) -> None:
    written(shell)
    assert shell.run("render", "--output", "unit") == 0
    unit = shell.out
    assert unit.startswith("# Written by sglang-ops")
    assert "ExecStart=/usr/bin/docker run --rm --name %N" in unit
    other = {"image": "registry.example/sglang:v0.5.23", "served_model_name": "b", "hf_model_handle": "b/b", "port": 81}
    (shell.home / "other.yaml").write_text(yaml.safe_dump({"deployment": other}))
    assert shell.run("render", "--output", "unit", "-c", "deployment.yaml", "-c", "other.yaml") == 0
    assert [line for line in shell.out.splitlines() if line.startswith("# /etc")] == [
        "# /etc/systemd/system/sglang-tiny.service", "# /etc/systemd/system/sglang-b.service",
    ]  # fmt: skip
    assert unit in shell.out


def test_gpus_and_overrides_and_the_release_shape_it(shell: Shell) -> None:
    written(shell)
    service = rendered(shell, "--gpus", "8", "-o", "deployment.tensor_parallel_size=4", "-o", "deployment.port=9000")
    assert len(service["devices"]) == 4
    assert service["port"] == 9000
    data = shell.json("render", "--gpus", "2", "-o", "deployment.tensor_parallel_size=4")
    assert (shell.code, data["ok"], data["exit_code"]) == (7, False, 7)
    assert "needs 4 GPUs" in data["error"]["message"]
    newer = ("-o", "deployment.extra_args=--sleep-on-idle")
    assert shell.run("render", *newer) == 0
    assert shell.run("render", *newer, "--sglang-version", "0.4.0") == 7
    assert "--sleep-on-idle" in shell.err


def test_mistakes_of_the_file_are_told_as_validate_tells_them(shell: Shell) -> None:
    written(shell, prot=1)
    data = shell.json("render")
    assert (shell.code, data["ok"]) == (7, False)
    assert data["error"]["errors"][0]["path"] == "deployment.prot"
    assert shell.run("render", "--config", "absent.yaml") == 7
    assert "no such file" in shell.err


def test_it_needs_neither_ansible_nor_much_time(shell: Shell) -> None:
    (shell.home / "page.yaml").write_text(PAGE)
    program = (
        "import sys; from sglang_ops import cli; cli.run(['render', '--config', 'page.yaml']);"
        "print([name for name in sys.modules if name.startswith(('ansible', 'httpx', 'omegaconf'))], file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr.splitlines()[-1] == "[]"
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.7, "seconds of processor time; measured: 0.3"
