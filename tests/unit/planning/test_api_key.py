"""A key that clients send: in a file of the host, in no argument, no unit and no log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import sglang_host_bench as bench
from ansible.module_utils import sglang_host_probe as probe
from situations import deployment, host, planned

from sglang_ops.planning import Secrets, with_key
from sglang_ops.planning.command import WITH_KEY
from sglang_ops.spec import SpecErrors
from sglang_ops.spec.model import API_KEY

KEY = "sk-canary-of-the-server"


def test_the_key_is_a_secret_of_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = deployment(api_key="host:SERVER_KEY")
    (service,) = planned(wanted, host(), secrets=Secrets.of(wanted, {"SERVER_KEY": KEY})).services
    assert service.secrets == (API_KEY,)
    assert KEY not in service.unit + str(service.content)
    assert service.content["argv"][:4] == ["python3", WITH_KEY, "sglang.launch_server", "--model-path"]
    other = planned(wanted, host(), secrets=Secrets.of(wanted, {"SERVER_KEY": "another"})).services[0]
    assert other.release != service.release, "another key is another release"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"api_key": KEY}, "is a secret and does not stand in the file"),
        ({"api_key": "host:K", "gateway": {"hosts": "edge"}}, "gateway.api_key is what clients of a gateway send"),
        ({"api_key": "host:K", "command": "python3 x.py"}, "command replaces the whole command"),
        ({"api_key": "host:K", "extra_args": "--api-key x"}, "are both there"),
    ],
)
def test_keys_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        deployment(**changes)
    assert any(said in item.message for item in caught.value.errors)
    assert KEY not in str(caught.value)


def test_the_launcher_adds_the_key_and_keeps_it_out_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(
        "import logging, os, sys\n"
        "logging.basicConfig(level=20)\n"
        "logging.info('args=%s', sys.argv)\n"
        "logging.info('of %d', 'no number')\n"
        f"assert '{API_KEY}' not in os.environ\n"
        f"print(sys.argv[1:] == ['--port', '1', '--api-key', '{KEY}'], __name__)\n"
    )
    done = subprocess.run(
        [sys.executable, with_key.__file__, "server", "--port", "1"], capture_output=True, text=True, check=True,
        cwd=tmp_path, env=os.environ | {API_KEY: KEY},
    )  # fmt: skip
    assert done.stdout.split() == ["True", "__main__"]
    assert "'--api-key', '(hidden)'" in done.stderr
    assert KEY not in done.stderr


def test_the_host_finds_the_key_of_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.store, "STATE", str(tmp_path))
    gate = {"name": "sglang-m", "release": "r"}
    assert probe.api_key(gate) == ""
    record = {"content": {"argv": ["python3", "--api-key", "written", "--port", "1"]}}
    probe.store.write_release("sglang-m", "r", "unit", record, {})
    assert probe.api_key(gate) == "written"
    probe.store.write_release("sglang-m", "r", "unit", record, {API_KEY: "it's from a file"})
    assert probe.api_key(gate) == "it's from a file"
    assert probe.api_key(gate | {"api_key": "given"}) == "given"


def test_a_benchmark_tells_no_key() -> None:
    argv = ["x", "--api-key", KEY, f"--admin-api-key={KEY}", "--port", "1"]
    assert bench.shown(argv) == ["x", "--api-key", "(hidden)", "--admin-api-key=(hidden)", "--port", "1"]
