"""Predictions beside what the real SGLang said on a GPU; `python -m bench.memory` repeats the measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.shapes import CASES, SHAPES
from sglang_ops.planning.architecture import Architecture
from sglang_ops.planning.memory import GIB, GpuMemory, MemoryPlan, predict

MEASURED = json.loads(Path(__file__).with_name("measured_memory.json").read_text("utf-8"))
SERVERS = {server["case"]: server for server in MEASURED["servers"]}


def predicted(server: dict[str, Any]) -> MemoryPlan:
    architecture = Architecture.of(SHAPES[server["shape"]])
    gpus = [GpuMemory(MEASURED["gpu_total_mib"])] * server["gpus"]
    return predict(architecture, 0, gpus, server["arguments"], release=MEASURED["sglang"])


@pytest.mark.parametrize("name", SERVERS)
def test_prediction_is_what_the_engine_says(name: str) -> None:
    server = SERVERS[name]
    plan = predicted(server)
    assert round(plan.mem_fraction_static, 3) == server["mem_fraction_static"]
    if plan.fidelity == "at least":
        assert 0.85 * server["tokens"] < plan.tokens <= server["tokens"]
        return
    assert plan.tokens == pytest.approx(server["tokens"], rel=0.05)
    if "max_running_requests" in server:
        assert plan.max_running_requests == pytest.approx(server["max_running_requests"], rel=0.01)


@pytest.mark.parametrize("name", [name for name in SERVERS if "dp" not in name and name != "8b-online-fp8"])
def test_weights_of_each_gpu(name: str) -> None:
    server = SERVERS[name]
    assert predicted(server).weights / GIB == pytest.approx(server["weights_gib"], rel=0.012)


def test_most_are_within_a_thousandth() -> None:
    exact = [server for server in SERVERS.values() if predicted(server).fidelity == "exact"]
    close = [server for server in exact if abs(predicted(server).tokens / server["tokens"] - 1) < 0.001]
    assert len(exact) >= 15
    assert len(close) >= 0.6 * len(exact)


def test_shapes_are_measured_in_every_way_that_memory_is_counted() -> None:
    kinds = {SERVERS[case.name]["shape"] for case in CASES if case.name in SERVERS}
    shapes = [Architecture.of(SHAPES[shape]) for shape in kinds]
    assert any(shape.mla for shape in shapes)
    assert any(shape.experts for shape in shapes)
    assert any(shape.quantization for shape in shapes)
    assert {server["gpus"] for server in SERVERS.values()} >= {1, 2}
