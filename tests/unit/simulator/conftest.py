"""Starting and ending simulators."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from simulators import Simulator, Start, free_port

from sglang_ops.lab.model import OPEN_MODEL, ensure_model

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_model(tmp_path_factory.mktemp("cache")) / OPEN_MODEL


@pytest.fixture
def start(model: Path) -> Iterator[Start]:
    """Start simulators of one's own: arguments of the command line and, by keyword, environment variables."""
    yield from _starting(model)


@pytest.fixture(scope="module")
def simulator(model: Path) -> Iterator[Simulator]:
    """A simulator for all tests of a module, ready, that serves the model as "lab"."""
    starting = _starting(model)
    yield next(starting)("--served-model-name", "lab").wait_until_ready()
    next(starting, None)


def _starting(model: Path) -> Iterator[Start]:
    running: list[Simulator] = []

    def start(*arguments: str, port: int | None = None, **environment: str) -> Simulator:
        port = port or free_port()
        command = [sys.executable, "-m", "sglang_ops.simulator", "--port", str(port), *arguments]
        if "--model-path" not in arguments:
            command += ["--model-path", str(model)]
        process = subprocess.Popen(
            command,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "SGLANG_SIMULATOR_STARTUP_SECONDS": "0",
                "SGLANG_SIMULATOR_DRAIN_POLL": "0.1",
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(Simulator(process, port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)))
        return running[-1]

    yield start
    for simulator in running:
        simulator.end()
