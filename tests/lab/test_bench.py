"""`bench` over SSH: SGLang's own benchmark in a container beside the real engine; refusals by a simulator."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Lab, ops

from sglang_ops import processes

pytestmark = [pytest.mark.lab, pytest.mark.slow]
SMALL = ("--input-len", "24", "--output-len", "4", "--prompts", "4", "--timeout", "300")
KEY = "sk_canary_of_the_benchmark"
LEFT = "podman ps --all --format '{{.Names}}' | grep bench; ls -d /tmp/sglang-bench-* 2>/dev/null"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-f-sim", hosts=1, engine="podman", server="simulator")
    assert made.deploy(None, "-e", "sglang_server_soak=0")["ok"]
    return made


@pytest.fixture(scope="module")
def engine(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab("t-f-bench", hosts=1, engine="podman", server="real")
    assert made.deploy()["ok"]
    return made


def measured(lab: Lab, *arguments: str) -> dict[str, Any]:
    """`bench` and what it printed; a busy machine's engine takes its time."""
    done = lab.run("bench", *arguments, "--output", "json", timeout=1200)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_check_says_what_would_be_measured(lab: Lab, tmp_path: Path) -> None:
    found = lab.json("bench", "--check", "--concurrency", "1,4", "--output-dir", str(tmp_path))
    assert [point["name"] for point in found["points"]] == ["random 1 at once", "random 4 at once"]
    assert found["hosts"] == lab.hosts
    assert not list(tmp_path.iterdir())


def test_an_image_without_the_benchmark_says_so(lab: Lab, tmp_path: Path) -> None:
    found = lab.json("bench", "--concurrency", "1", *SMALL, "--output-dir", str(tmp_path))
    assert found["exit_code"] == 1
    assert "No module named" in found["servers"][0]["points"][0]["error"]
    assert lab.ssh(LEFT) == ""


def test_what_cannot_be_measured_is_refused(lab: Lab, tmp_path: Path) -> None:
    unknown = lab.run("bench", "--service", "other", "--output-dir", str(tmp_path))
    assert unknown.returncode == 7
    assert "there is no service sglang-other on this host, there is sglang-tiny-llama" in unknown.stderr
    assert lab.run("stop").returncode == 0
    stopped = lab.run("bench", "--output-dir", str(tmp_path))
    assert stopped.returncode == 7
    assert "sglang-tiny-llama does not serve: unit: the unit is inactive" in stopped.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.engine
def test_the_engine_is_measured_and_nothing_stays_behind(engine: Lab, tmp_path: Path) -> None:
    data = ("--data", "random", "--data", "shared-prefix")
    found = measured(engine, *data, "--concurrency", "2", *SMALL, "--output-dir", str(tmp_path))
    assert found["ok"], json.dumps(found)[:3000]
    random, shared = found["servers"][0]["points"]
    for point in (random, shared):
        assert point["measured"]["completed"] == point["prompts"]
        assert point["measured"]["total_output_tokens"] == 4 * point["prompts"]
        assert point["measured"]["output_throughput"] > 0
    assert random["measured"]["total_input_tokens"] == 24 * 4
    raw = (Path(found["output_dir"]) / "raw" / engine.hosts[0] / "random-2-at-once.jsonl").read_text()
    assert "server_info" not in raw
    assert engine.ssh(LEFT) == ""


@pytest.mark.engine
def test_two_configurations_of_a_server_with_a_key_are_compared(engine: Lab, tmp_path: Path) -> None:
    """A sweep and a rate for each, with the key in no argument, log or result."""
    engine.env["LAB_SERVER_KEY"] = KEY
    runs, told = [], ""
    for extra in ("", "--disable-radix-cache"):
        words = f"{engine.deployment['deployment'].get('extra_args', '')} {extra}".strip()
        config = engine.write("keyed", api_key="host:LAB_SERVER_KEY", extra_args=words)
        assert engine.deploy(config)["ok"]
        shared = ("--data", "shared-prefix", *SMALL, "--seed", "1", "--output-dir", str(tmp_path))
        found = measured(engine, *shared, "--concurrency", "1,2")
        assert found["ok"], json.dumps(found)[:3000]
        assert len(found["servers"][0]["points"]) == 2
        runs.append(found["run"])
        rated = measured(engine, *shared, "--request-rate", "2")
        assert rated["ok"], json.dumps(rated)[:3000]
        told += engine.ssh("journalctl -q --no-pager; systemctl cat 'sglang-*'; podman inspect --all; ps -eo args")
    compared = ops("bench", "compare", *runs, "--output-dir", str(tmp_path))
    assert compared.returncode == 0, compared.stderr
    assert "only B: --disable-radix-cache" in compared.stdout
    assert "TTFT p50 ms" in compared.stdout
    kept = [path for path in (*tmp_path.rglob("*"), *Path(engine.env["SGLANG_OPS_STATE"]).rglob("*")) if path.is_file()]
    assert "server_args" in told
    assert KEY not in told
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]


@pytest.mark.engine
def test_a_point_that_takes_too_long_is_ended(engine: Lab, tmp_path: Path) -> None:
    long = ("--concurrency", "1", "--prompts", "5000", "--timeout", "10", "--output-dir", str(tmp_path))
    found = measured(engine, *long)
    assert found["exit_code"] == 1
    assert found["servers"][0]["points"][0]["error"] == "not done after 10 s"
    assert engine.ssh(LEFT) == ""


@pytest.mark.engine
def test_the_container_ends_with_the_controller(engine: Lab, tmp_path: Path) -> None:
    words = ["bench", "-i", str(engine.inventory), "--output-dir", str(tmp_path)]
    words += ["--concurrency", "1", "--prompts", "5000"]
    child = subprocess.Popen([sys.executable, "-m", "sglang_ops", *words], cwd=ROOT, start_new_session=True)
    try:
        _until(lambda: "bench" in engine.ssh("podman ps --format '{{.Names}}'"))
    finally:
        processes.kill(processes.tree([child.pid]))
        child.wait()
    _until(lambda: engine.ssh(LEFT) == "")


def _until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(1)
