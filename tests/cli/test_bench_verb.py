"""`bench`: what reaches the role, what becomes of what the hosts measured, what is refused before a host is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import MODULE, Shell, task


def told(speed: float = 100.0, error: str | None = None) -> dict[str, Any]:
    """What the module says of two points, a little less than the real one."""
    measured = {} if error else {"completed": 16, "output_throughput": speed, "median_ttft_ms": 20.0}
    points = [
        {"name": name, "measured": measured, "error": error, "raw": json.dumps(measured), "log": [], "seconds": 3.0}
        for name in ("random 1 at once", "random 4 at once")
    ]
    server = {
        "service": "sglang-tiny",
        "release": "0123456789ab",
        "image": "sglang@sha256:1",
        "image_digest": "sha256:1",
    }
    server |= {"model": "tiny", "server_arguments": ["--tp-size", "1"]}
    return {"sglang_ops": {"kind": "bench", **server, "points": points}}


@pytest.fixture
def measured(shell: Shell) -> Shell:
    (shell.content / "plugins/modules/sglang_bench.py").write_text(MODULE)
    shell.inventory("one")
    shell.playbook("bench", task("sglang_bench", told()))
    return shell


def test_what_was_measured_is_shown_and_kept(measured: Shell) -> None:
    assert measured.run("bench", "-i", "hosts.yml", "--concurrency", "1,4") == 0
    assert "random 4 at once" in measured.out
    assert "100.0" in measured.out
    (run,) = Path("results").iterdir()
    kept = json.loads((run / "bench.json").read_text())
    assert kept["servers"][0]["points"][1]["measured"]["output_throughput"] == 100.0
    assert "<svg" in (run / "bench.html").read_text()
    assert (run / "raw/one/random-1-at-once.jsonl").exists()
    assert measured.run("bench", "compare", run.name, run.name) == 0
    assert "+0.0%" in measured.out


def test_the_points_reach_the_role(measured: Shell) -> None:
    show = (
        "asked: {{ sglang_health_bench_points | map(attribute='name') | join('+') }} {{ sglang_health_bench_timeout }}."
    )
    measured.playbook("bench", {"ansible.builtin.debug": {"msg": show}})
    measured.run(
        "bench", "-i", "hosts.yml", "-v", "--request-rate", "2,8", "--timeout", "33", "--data", "shared-prefix"
    )
    assert "asked: shared-prefix 2/s+shared-prefix 8/s 33." in measured.err


def test_a_point_that_failed_makes_the_run_fail(measured: Shell) -> None:
    measured.playbook("bench", task("sglang_bench", told(error="not done after 600 s")))
    found = measured.json("bench", "-i", "hosts.yml", "--concurrency", "1,4")
    assert (measured.code, found["ok"]) == (1, False)
    assert found["servers"][0]["points"][0]["error"] == "not done after 600 s"


def test_a_host_that_refuses_is_named(measured: Shell) -> None:
    failed = {"failed": True, "msg": "sglang-tiny does not serve: unit: the unit is failed.", "exit_hint": 7}
    measured.playbook("bench", task("sglang_bench", {**failed, "sglang_ops": {"kind": "bench"}}))
    found = measured.json("bench", "-i", "hosts.yml")
    assert (measured.code, found["output_dir"]) == (7, None)
    assert "does not serve" in found["failures"][0]["cause"]
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing option '--inventory'"),
        (["-i", "hosts.yml", "--concurrency", "0"], "--concurrency 0: '0' is no whole number above 0"),
        (["-i", "hosts.yml", "--request-rate", "fast"], "--request-rate fast: 'fast' is no number"),
        (["-i", "hosts.yml", "--data", "sharegpt"], "Invalid value for '--data'"),
        (["-i", "hosts.yml", "--input-len", "0"], "Invalid value for '--input-len'"),
        (["compare", "a", "b"], "There is no bench.json in a"),
    ],
)
def test_bad_input_is_refused_before_any_host_is_asked(measured: Shell, words: list[str], message: str) -> None:
    canary = measured.home / "touched"
    measured.playbook("bench", {"ansible.builtin.file": {"path": str(canary), "state": "touch", "mode": "0600"}})
    assert measured.run("bench", *words) == 7
    assert message in " ".join(measured.err.split())
    assert not canary.exists()
