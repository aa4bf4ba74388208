"""What planning predicts of a server's memory beside what the real SGLang then says, on a machine with a GPU.

    python -m bench.memory --list
    python -m bench.memory [--release 0.5.17] [--json FILE] [CASE ...]

Needs `nvidia-smi`, SGLang in this Python, and a GPU that nobody else uses. Weights are random (`--load-format dummy`),
so no model is downloaded: shapes are those of published models, parameters are counted. Every expectation is written
down before the first server starts. A server is ended as soon as it has made its KV cache, with --serve when it serves.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from bench.shapes import CASES, SHAPES, Case
from sglang_ops.lab.model import model_files
from sglang_ops.planning.architecture import Architecture
from sglang_ops.planning.memory import GIB, GpuMemory, MemoryPlan, predict

PORT = 30000
IDLE_MIB = 1024
_IMAGES = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", "patch_size": 14}
_LINES = {
    "free_before": re.compile(r"Load weight begin.*avail mem=([\d.]+)"),
    "free_after_weights": re.compile(r"Load weight end.*avail mem=([\d.]+)"),
    "weights": re.compile(r"Load weight end.*mem usage=([\d.]+)"),
    "mem_fraction_static": re.compile(r"mem_fraction_static=([\d.]+)"),
    "tokens": re.compile(r"(?:#tokens: |full_layer_tokens=)(\d+)"),
    "free_after": re.compile(r"Memory pool end.*avail mem=([\d.]+)"),
    "max_total_num_tokens": re.compile(r"max_total_num_tokens=(\d+)"),
    "max_running_requests": re.compile(r"max_total_num_tokens=.*max_running_requests=(\d+)"),
}


@dataclass
class Measured:
    """What a server told: memory in GiB, tokens as counted. `failed` holds its last words where it ended."""

    seconds: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    failed: str = ""


def gpus() -> list[GpuMemory]:
    """The GPUs of this machine, by nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits"]
    rows = [line.split(",") for line in subprocess.check_output(query, text=True).splitlines()]
    return [GpuMemory(int(total), int(used) if int(used) > IDLE_MIB else 0) for total, used in rows]


def expectation(case: Case, present: Sequence[GpuMemory], release: str) -> MemoryPlan:
    return predict(Architecture.of(SHAPES[case.shape]), 0, present[: case.gpus], case.arguments, release=release)


def write_model(directory: Path, config: Mapping[str, Any]) -> None:
    """A model without weights: the shape's configuration, the lab's tokenizer, a processor for images."""
    for name, content in model_files().items():
        if name.startswith("tokenizer"):
            (directory / name).write_bytes(content)
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    if "vision_config" in config:
        (directory / "preprocessor_config.json").write_text(json.dumps(_IMAGES), "utf-8")


def measure(case: Case, log: Path, *, serve: bool, limit: float) -> Measured:
    """Start the server and read what it says of its memory; end it, and wait until the GPU is free again.

    The server appends to `log` itself.
    """
    told = Measured()
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory), SHAPES[case.shape])
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", directory, "--load-format", "dummy"]
        command += ["--host", "127.0.0.1", "--port", str(PORT), *case.arguments]
        started = time.monotonic()
        with log.open("a", encoding="utf-8") as written, log.open(encoding="utf-8", errors="replace") as read:
            read.seek(0, os.SEEK_END)
            server = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                _follow(server, read, told, serve=serve, deadline=started + limit)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)
                server.wait()
        told.seconds = time.monotonic() - started
    _wait_until_free()
    return told


def _follow(server: subprocess.Popen[bytes], log: IO[str], told: Measured, *, serve: bool, deadline: float) -> None:
    text = last = ""
    while time.monotonic() < deadline:
        ended = server.poll() is not None
        *lines, text = (text + log.read()).split("\n")
        for line in lines:
            last = line.strip() if "Error" in line else last
            for name, pattern in _LINES.items():
                if found := pattern.search(line):  # of several ranks the one that has least memory counts
                    fullest = max if name == "weights" else min
                    told.values[name] = fullest(told.values.get(name, float(found[1])), float(found[1]))
        if ended:
            told.failed = f"exit code {server.returncode}: {last}"
            return
        if "free_after" in told.values and not serve:
            return
        if "max_total_num_tokens" in told.values and _serves():
            return
        time.sleep(0.2)
    told.failed = "no answer in time"


def _serves() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=30) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait_until_free() -> None:
    deadline = time.monotonic() + 30
    while any(gpu.taken_mib for gpu in gpus()) and time.monotonic() < deadline:
        time.sleep(0.5)


def row(case: Case, plan: MemoryPlan, told: Measured) -> str:
    """One line of the table."""
    measured = told.values.get("max_total_num_tokens", told.values.get("tokens"))
    difference = f"{plan.tokens / measured - 1:+.2%}" if measured else "–"
    fraction = told.values.get("mem_fraction_static", 0)
    return (
        f"{case.name:24} f {plan.mem_fraction_static:.3f} {fraction:.3f}  weights {plan.weights / GIB:7.2f} "
        f"{told.values.get('weights', 0):7.2f}  tokens {plan.tokens:9d} {int(measured or 0):9d} {difference:>8}  "
        f"{told.seconds:5.1f} s  {told.failed[:120]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names; default: all that fit the GPUs here")
    parser.add_argument("--list", action="store_true", help="names of the cases")
    parser.add_argument("--release", default="0.5.17", help="release of the SGLang that is installed")
    parser.add_argument("--serve", action="store_true", help="wait until each server answers /health")
    parser.add_argument("--limit", type=float, default=240, help="seconds that one server may take")
    parser.add_argument("--budget", type=float, default=0, help="seconds after which no further server is started")
    parser.add_argument("--json", type=Path, help="write predicted and measured values")
    parser.add_argument("--log", type=Path, default=Path("memory.log"), help="append what the servers say")
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{case.name:24} {case.shape} {' '.join(case.arguments)}" for case in CASES))
        return
    present = gpus()
    cases = [case for case in CASES if case.name in given.cases or (not given.cases and case.gpus <= len(present))]
    plans = {case.name: expectation(case, present, given.release) for case in cases}
    print("\n".join(f"expected: {row(case, plans[case.name], Measured())}" for case in cases), flush=True)
    started, report = time.monotonic(), []
    for case in cases:
        if given.budget and time.monotonic() - started > given.budget:
            print(f"{case.name:24} not started: the time is up")
            continue
        with given.log.open("a", encoding="utf-8") as log:
            log.write(f"===== {case.name}\n")
        told = measure(case, given.log, serve=given.serve, limit=given.limit)
        print(row(case, plans[case.name], told), flush=True)
        report.append({"case": asdict(case), "predicted": asdict(plans[case.name]), "measured": asdict(told)})
        if given.json:
            given.json.write_text(json.dumps(report, indent=1), "utf-8")


if __name__ == "__main__":
    main()
