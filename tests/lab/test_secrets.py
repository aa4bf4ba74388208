"""A canary secret goes through a deployment, a failure and a rollback; a scanner then looks everywhere for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Lab

pytestmark = pytest.mark.lab
CANARY = "canary-7f3a9d-secret"
RUNTIME = "canary-runtime-5b1c"


@pytest.fixture(scope="module")
def lab(share_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = share_lab(hosts=1)
    made.env["THE_CANARY"] = CANARY
    made.env["HOME"] = str(tmp_path_factory.mktemp("home"))
    # In two pieces, because sudo logs the commands that this test itself runs.
    first, last = RUNTIME.split("-", 1)
    made.ssh(f"mkdir -p /etc/sglang-ops; umask 077; printf 'KEY=%s-%s' {first} {last} > /etc/sglang-ops/runtime.env")
    variables = {"A_TOKEN": "host:THE_CANARY", "FROM_HOST": "runtime:KEY", "MY_PASSWORD": f"{CANARY}-plain"}
    assert made.deploy(made.write("secret", env_vars=variables), "-v", "--diff")["ok"]
    broken = variables | {"SGLANG_SIMULATOR_FAULT": "garbage"}
    assert made.deploy(made.write("broken", env_vars=broken), "-v", "--diff")["exit_code"] == 3
    return made


def test_the_server_has_its_secrets(lab: Lab) -> None:
    pid = lab.ssh("pgrep -f '^python3 -m sglang.launch_server'").strip()
    environment = lab.ssh(f"tr '\\000' '\\012' < /proc/{pid}/environ")
    assert f"A_TOKEN={CANARY}" in environment
    assert f"FROM_HOST={RUNTIME}" in environment
    assert f"MY_PASSWORD={CANARY}-plain" in environment


def test_nothing_that_others_can_read_holds_them(lab: Lab) -> None:
    looked = lab.ssh(
        "docker inspect $(docker ps -aq); systemctl cat 'sglang-*'; systemctl show 'sglang-*'; "
        "journalctl --no-pager; ps -eo args"
    )
    assert "sglang" in looked
    assert CANARY not in looked
    assert RUNTIME not in looked


def test_only_files_of_root_with_mode_0600_hold_them(lab: Lab) -> None:
    found = lab.ssh("grep -rlE 'canary-' /etc /var/lib/sglang-ops /run /tmp /home /root 2>/dev/null").split()
    assert found
    for path in found:
        assert lab.ssh(f"stat -c '%a %U' {path}").strip() == "600 root", path


def test_run_folders_and_controller_hold_none(lab: Lab) -> None:
    folders = [lab.env["SGLANG_OPS_STATE"], lab.env["HOME"]]
    assert [path for folder in folders for path in Path(folder).rglob("events.ndjson")]
    left = [str(path) for path in Path(os.environ["TMPDIR"]).glob("*")]
    command = ["grep", "-srlE", f"{CANARY}|{RUNTIME}", *folders, *left]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == ""
