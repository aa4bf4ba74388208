"""The command line against a content directory of its own: playbooks whose modules say what the test tells them.

Everything else is real: typer, ansible-runner, ansible-playbook, the run folder. Hosts are local connections.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from sglang_ops import cli, content

MODULE = '''#!/usr/bin/python
"""Ends with the result it is given, after `seconds`."""
import time
from ansible.module_utils.basic import AnsibleModule

options = {"result": {"type": "dict"}, "seconds": {"type": "float", "default": 0}}
module = AnsibleModule(options, supports_check_mode=True)
time.sleep(module.params["seconds"])
result = module.params["result"] or {}
(module.fail_json if result.get("failed") else module.exit_json)(**{"msg": "", **result})
'''

DEPLOYMENT = """\
deployment:
  image: registry.example/sglang:v0.5.23
  served_model_name: tiny
  hf_model_handle: lab/tiny-llama
  port: 8000
"""

CONFIG = f"""\
[defaults]
gathering = explicit
interpreter_python = {sys.executable}
internal_poll_interval = 0.01

[connection]
pipelining = true
"""


@dataclass
class Shell:
    """One user's shell: a directory, an inventory, playbooks to play, and `run` to type a command line."""

    home: Path
    content: Path
    capsys: pytest.CaptureFixture[str]
    out: str = ""
    err: str = ""
    tasks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def playbook(self, verb: str, *tasks: Mapping[str, Any], hosts: str = "all") -> None:
        play = {"hosts": hosts, "gather_facts": False, "tasks": list(tasks)}
        (self.content / "playbooks" / f"{verb}.yml").write_text(json.dumps([play]))

    def inventory(self, *hosts: str, **variables: Any) -> Path:
        path = self.home / "hosts.yml"
        local = {"ansible_connection": "local", **variables}
        path.write_text(yaml.safe_dump({"all": {"vars": local, "hosts": {host: {} for host in hosts or ("one",)}}}))
        return path

    def run(self, *words: str) -> int:
        code = cli.run(words)
        self.out, self.err = self.capsys.readouterr()
        return code

    def json(self, *words: str) -> Any:
        self.code = self.run(*words, "--output", "json")
        return json.loads(self.out)

    def last_run(self) -> Path:
        return max((self.home / "state" / "runs").iterdir())


def task(module: str, result: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """One task whose module returns `result`."""
    arguments = {"result": dict(result or {}), **{key: more.pop(key) for key in ("seconds",) if key in more}}
    return {"name": f"Say {module}", module: arguments, **more}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    root, home = tmp_path / "content", tmp_path / "home"
    modules = root / "plugins" / "modules"
    for directory in (modules, root / "playbooks", home):
        directory.mkdir(parents=True)
    for name in ("facts", "plan", "engine", "image", "model", "service", "gate", "status", "logs"):
        (modules / f"sglang_{name}.py").write_text(MODULE)
    for name in ("nvidia_driver", "container_engine", "hf_cache"):
        (modules / f"{name}.py").write_text(MODULE)
    (root / "ansible.cfg").write_text(CONFIG)
    (home / "deployment.yaml").write_text(DEPLOYMENT)
    content.root.cache_clear()
    monkeypatch.setattr(content, "root", lambda: root)
    monkeypatch.chdir(home)
    monkeypatch.setenv("SGLANG_OPS_STATE", str(home / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what a module that is killed leaves behind
    for name in ("SGLANG_OPS_INVENTORY", "ANSIBLE_CONFIG", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return Shell(home, root, capsys)


@pytest.fixture
def plan() -> Callable[..., dict[str, Any]]:
    """A plan result as the facts module gives it."""

    def build(*, action: str = "none", healthy: bool = True, errors: list[str] | None = None) -> dict[str, Any]:
        steps = [] if action == "none" else [{"step": action, "subject": "sglang-tiny", "why": "not deployed yet"}]
        service = {
            "name": "sglang-tiny",
            "release": "0123456789ab",
            "action": action,
            "image": "registry.example/sglang:v0.5.23",
            "image_digest": "sha256:" + "a" * 64,
            "gpus": [0, 1],
            "port": 8000,
            "endpoint": "http://192.0.2.1:8000/v1",
            "healthy": healthy,
            "outage": "" if action == "none" else "about 40 s",
        }
        found = {
            "errors": [{"check": "port", "message": message} for message in errors or []],
            "warnings": [],
            "steps": steps,
            "engine": "docker",
            "services": [service],
        }
        result: dict[str, Any] = {"sglang_ops": {"kind": "plan", "plan": found}}
        if errors:
            result |= {"failed": True, "msg": errors[0]}
            result["sglang_ops"]["exit_hint"] = 7
        return result

    return build
