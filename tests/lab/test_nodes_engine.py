"""The real SGLang with TP 2 over two hosts, on the CPU: it answers, loses a member, reboots, and gets new releases."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Lab, ops

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.engine]
QUICK = ("--soak", "5")
# Two ranks on the CPU; without the second, the first request compiles, and the image has no C++ compiler.
ENGINE = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "TORCHDYNAMO_DISABLE": "1"}
ASK = """
import json, urllib.request as http
body = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16, "temperature": 0}
request = http.Request("http://127.0.0.1:8000/v1/chat/completions", json.dumps(body).encode(),
                       {"Content-Type": "application/json"})
print(http.urlopen(request, timeout=30).read().decode())
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-cengine", hosts=2, gpus=1, engine="docker", os="debian13", server="real")
    first = made.deploy(release(made, 1), *QUICK)
    assert first["ok"], first
    return made


def release(lab: Lab, number: int, **changes: Any) -> Path:
    """A deployment file whose release differs from the others by its number."""
    variables = ENGINE | {"RELEASE_NUMBER": str(number)}
    return lab.write(f"r{number}", nodes=2, tensor_parallel_size=2, env_vars=variables, **changes)


def answer(lab: Lab) -> str:
    """A completion from rank 0, "" where there is none."""
    told = lab.ssh(f"python3 -c '{ASK}'")
    try:
        return str(json.loads(told)["choices"][0]["message"]["content"])
    except ValueError:
        return ""


def wait_for_answer(lab: Lab, seconds: float = 240) -> str:
    limit = time.monotonic() + seconds
    while not (said := answer(lab)):
        assert time.monotonic() < limit, "the group did not come back"
        time.sleep(3)
    return said


def starts(lab: Lab) -> list[str]:
    """The invocation of each member's unit: another one after each start."""
    return [lab.ssh("systemctl show -P InvocationID sglang-tiny-llama", host).strip() for host in lab.hosts]


def test_both_hosts_serve_one_model(lab: Lab) -> None:
    assert answer(lab)
    ranks = [lab.ssh("journalctl --no-pager -t sglang-tiny-llama | grep -o 'TP[01]' | sort -u", h) for h in lab.hosts]
    assert [rank.split() for rank in ranks] == [["TP0"], ["TP1"]]
    assert lab.run("verify").returncode == 0


def test_a_follower_that_dies_restarts_the_group(lab: Lab) -> None:
    before, said = starts(lab), answer(lab)
    lab.ssh("docker kill sglang-tiny-llama", lab.hosts[1])
    limit = time.monotonic() + 60
    while starts(lab)[0] == before[0]:
        assert time.monotonic() < limit, "rank 0 went on without its follower"
        time.sleep(1)
    assert wait_for_answer(lab) == said
    assert all(one != other for one, other in zip(before, starts(lab), strict=True))
    assert lab.run("verify").returncode == 0


def test_rank_0_is_rebooted(lab: Lab) -> None:
    before, said = starts(lab), answer(lab)
    assert ops("lab", "reboot", lab.hosts[0], "--name", lab.name, "--hard").returncode == 0
    assert wait_for_answer(lab) == said
    assert starts(lab)[1] != before[1]
    assert lab.run("verify").returncode == 0


def test_a_new_release_reaches_both_and_a_bad_one_goes_back_on_both(lab: Lab) -> None:
    result = lab.deploy(release(lab, 2), *QUICK)
    assert result["ok"], result
    assert [host["services"][0]["action"] for host in result["hosts"]] == ["restart"] * 2
    good, said = [host["release"] for host in result["hosts"]], answer(lab)
    bad = release(lab, 3, extra_args=lab.deployment["deployment"]["extra_args"] + " --chat-template /none.jinja")
    failed = lab.deploy(bad, *QUICK)
    assert failed["exit_code"] == 3, failed
    assert [host["release"] for host in failed["hosts"]] == good
    assert answer(lab) == said
