"""Modules as one script: the same answer as the module itself, on a host that has nothing of Ansible."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.executor.module_common import NEW_STYLE_PYTHON_MODULE_RE, REPLACER_JSONARGS
from ansible.module_utils import sglang_host_facts as host

from sglang_ops import packed

ASKED: dict[str, Any] = {
    "engine": "docker",
    "insecure_registries": [],
    "wants_cdi": False,
    "topology": False,
    "images": [],
    "arguments_of": [],
    "models": [],
    "tokens": [],
    "checkpoints": [],
    "ports": [1],
    "disks": [],
    "runtime": [],
    "loads": False,
}


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """The script as Ansible hands it over: its arguments put in, on the interpreter's standard input."""
    text = packed.script("sglang_facts").encode().replace(REPLACER_JSONARGS, json.dumps(arguments).encode())
    command = [sys.executable, "-I", "-S", "-"]  # without site-packages, so without Ansible
    done = subprocess.run(command, input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_answer_is_that_of_the_module() -> None:
    answer = run(ASKED)
    expected = host.gather(ASKED)
    for facts in (answer["facts"], expected):
        facts["memory"].pop("available")  # like what is free on disks, it goes up and down meanwhile
        for disk in facts["disks"]:
            disk.pop("free_bytes")
    assert answer == {"changed": False, "facts": json.loads(json.dumps(expected))}


def test_arguments_that_are_not_given_have_their_defaults() -> None:
    assert set(run({})["facts"]) == set(host.gather(ASKED))


@pytest.mark.parametrize(
    "name", ['"""', "\\", '\\"""', "'''", "line\nbreak", "\u2028 ü", "{{ x }}", "%s", '"', "<<X>>"]
)
def test_no_argument_can_leave_its_place(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    assert path in [disk["path"] for disk in run({"disks": [path, path + '"']})["facts"]["disks"]]


def test_ansible_takes_it_for_a_script_with_its_arguments_in_it() -> None:
    text = packed.script("sglang_facts").encode()
    assert text.count(REPLACER_JSONARGS) == 1
    assert not NEW_STYLE_PYTHON_MODULE_RE.search(text)
    assert text.isascii()
    assert text.startswith(b"#!/usr/bin/python\n")  # Ansible puts the host's interpreter in its place


def test_everything_that_can_be_imported_is_in_it() -> None:
    """A module that is imported inside a function, where nothing of a converged host comes, included."""
    code = (
        "import ansible.module_utils.sglang_host_facts as h, sys\n"
        "assert 'ansible.module_utils.basic' in sys.modules\n"
        "import ansible.module_utils.sglang_host_api, ansible.module_utils.sglang_host_loads\n"
        "print('complete')\n"
    )
    script = packed.script("sglang_facts").replace("<<INCLUDE_ANSIBLE_MODULE_JSON_ARGS>>", "{}")
    head = script.rpartition("exec(compile(SOURCES")[0]
    command = [sys.executable, "-I", "-S", "-"]
    done = subprocess.run(command, input=head + code, capture_output=True, text=True, check=False)
    assert done.stdout == "complete\n", done.stderr


def test_nobody_else_may_write_what_hosts_execute_as_root(tmp_path: Path) -> None:
    packed.write(tmp_path / "modules")
    assert [path.stem for path in (tmp_path / "modules").iterdir()] == list(packed.MODULES)
    assert not stat.S_IMODE((tmp_path / "modules").stat().st_mode) & 0o022
