"""Faults, signals and exit codes."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from pathlib import Path

import httpx
import pytest
from simulators import Simulator, Start, free_port
from waiting import at_most, wait_until

KILLED = -9
CHAT = {"model": "x", "messages": [{"role": "user", "content": "hi"}]}


def faulty(start: Start, fault: str, *arguments: str, **environment: str) -> Simulator:
    return start(*arguments, SGLANG_SIMULATOR_FAULT=fault, **environment)


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("crash-at-start", KILLED, "Scheduler hit an exception: Traceback (most recent call last):"),
        ("out-of-memory", KILLED, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.92 GiB"),
        ("exit-zero", 0, "Scheduler hit an exception"),
        ("exit-zero,out-of-memory", 0, "torch.OutOfMemoryError"),
        ("crash-after:0.1", KILLED, "Subprocess scheduler_0 crashed with exit code -9"),
        ("crash-after:0.1,exit-zero", 0, "Subprocess scheduler_0 crashed with exit code -9"),
    ],
)
def test_crashes(start: Start, fault: str, code: int, words: str) -> None:
    simulator = faulty(start, fault)
    assert simulator.exit_code() == code
    log = simulator.log()
    assert words in log
    assert "It was told to have these faults: " in log
    assert "kill_process_tree called" in log
    assert ("ready to roll" in log) == fault.startswith("crash-after")


def test_a_crash_leaves_some_seconds_of_silence(start: Start) -> None:
    simulator = faulty(start, "crash-after:0.2", SGLANG_SIMULATOR_DRAIN_POLL="1").wait_until_ready()
    time.sleep(0.4)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{simulator.port}/ready", timeout=0.3)
    assert simulator.process.poll() is None
    assert simulator.exit_code() == KILLED


def test_an_unknown_fault_exits_2(start: Start) -> None:
    simulator = faulty(start, "explode")
    assert simulator.exit_code() == 2
    assert "sglang serve: error: SGLANG_SIMULATOR_FAULT: unknown fault 'explode'" in simulator.log()


def test_a_slow_start_is_slow(start: Start) -> None:
    simulator = faulty(start, "slow-start:1")
    begun = time.monotonic()
    simulator.wait_until_ready()
    assert time.monotonic() - begun >= 0.9


def test_never_healthy_has_an_open_port_and_stays_unready(start: Start) -> None:
    simulator = faulty(start, "never-healthy")
    simulator.wait_until_open()
    time.sleep(0.3)
    assert [simulator.get(path).status_code for path in ("/health", "/ready", "/v1/models")] == [503, 503, 200]
    simulator.terminate()
    assert "ready to roll" not in simulator.log()


def test_the_wrong_model(start: Start) -> None:
    simulator = faulty(start, "wrong-model", "--served-model-name", "lab").wait_until_ready()
    assert simulator.get("/v1/models").json()["data"][0]["id"] == "another/model"
    assert simulator.post("/v1/chat/completions", CHAT).status_code == 200


@pytest.mark.parametrize("body", [CHAT, {**CHAT, "stream": True}])
def test_garbage_is_200_and_no_answer(start: Start, body: dict[str, object]) -> None:
    response = faulty(start, "garbage").wait_until_ready().post("/v1/chat/completions", body)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html")
    with pytest.raises(ValueError, match="Expecting value"):
        response.json()


def test_sigterm_ends_an_idle_server_with_0(start: Start) -> None:
    simulator = start().wait_until_ready()
    simulator.terminate()
    assert simulator.exit_code() == 0
    assert "SIGTERM received. signum=None frame=None. Draining requests and shutting down..." in simulator.log()


def test_sigterm_lets_requests_end_and_takes_new_ones_meanwhile(start: Start) -> None:
    simulator = start(SGLANG_SIMULATOR_TOKENS_PER_SECOND="60").wait_until_ready()
    body = {"prompt": "hi", "max_tokens": 120, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        unary = pool.submit(simulator.post, "/v1/completions", body)
        streamed = pool.submit(simulator.post, "/v1/completions", {**body, "stream": True})
        time.sleep(0.3)
        simulator.terminate()
        wait_until(lambda: [simulator.get(path).status_code for path in ("/health", "/ready")] == [503, 503], 10)
        late = simulator.post("/v1/completions", {"prompt": "hi", "max_tokens": 2})
        assert (late.status_code, late.json()["choices"][0]["text"]) == (200, "This is")
        assert unary.result().json()["usage"]["completion_tokens"] == 120
        assert streamed.result().text.endswith("data: [DONE]\n\n")
    assert simulator.exit_code() == 0


def test_the_drain_can_be_skipped(start: Start) -> None:
    simulator = start(SGLANG_SIMULATOR_TOKENS_PER_SECOND="5", SGL_FORCE_SHUTDOWN="1").wait_until_ready()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        cut = pool.submit(simulator.post, "/v1/completions", {"prompt": "hi", "max_tokens": 100, "ignore_eos": True})
        time.sleep(0.2)
        simulator.terminate()
        begun = time.monotonic()
        assert simulator.exit_code() == 0
        assert time.monotonic() - begun < at_most(3)
        assert isinstance(cut.exception(), httpx.TransportError)


def test_sigterm_while_loading_ends_at_once(start: Start) -> None:
    simulator = start(SGLANG_SIMULATOR_STARTUP_SECONDS="30")
    time.sleep(0.5)
    simulator.terminate()
    assert simulator.exit_code() == -signal.SIGTERM


def test_sigterm_can_be_ignored(start: Start) -> None:
    simulator = faulty(start, "ignore-sigterm").wait_until_ready()
    simulator.terminate()
    time.sleep(0.5)
    assert simulator.get("/ready").status_code == 200
    os.kill(simulator.process.pid, signal.SIGKILL)
    assert "SIGTERM received and ignored" in simulator.log()


def test_sigint_ends_it_too(start: Start) -> None:
    simulator = start().wait_until_ready()
    simulator.process.send_signal(signal.SIGINT)
    assert simulator.exit_code() == 0


def test_a_taken_port_shows_late_and_after_a_false_ready_line(start: Start) -> None:
    first = start().wait_until_ready()
    second = start(port=first.port)
    assert second.exit_code() == 3
    log = second.log()
    refused = log.index("[Errno 98] error while attempting to bind on address")
    assert log.index("KV Cache is allocated") < refused < log.index("The server is fired up and ready to roll!")
    assert first.get("/ready").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model-path", "/nonexistent"), "OSError: Repo id must use alphanumeric chars"),
        (("--model-path", "lab/absent"), "OSError: We couldn't connect to 'https://huggingface.co'"),
        (("--served-model-name", "a:b"), "AssertionError: served_model_name cannot contain a colon (':') character."),
    ],
)
def test_exceptions_at_start_exit_1(start: Start, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    simulator = start(*arguments, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert simulator.exit_code() == 1
    assert words in simulator.log()


def test_missing_weights_kill_the_server(start: Start, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    simulator = start("--model-path", str(tmp_path))
    assert simulator.exit_code() == KILLED
    assert "RuntimeError: Cannot find any model weights with" in simulator.log()


def test_a_config_file_is_refused(start: Start) -> None:
    simulator = start("--config", "x.yaml")
    assert simulator.exit_code() == 2
    assert "the simulator does not read --config files" in simulator.log()


def test_an_idle_server_is_small_and_does_nothing(start: Start) -> None:
    simulator = start(port=free_port()).wait_until_ready()
    process = Path(f"/proc/{simulator.process.pid}")
    resident = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 40 * 1024

    def ticks() -> int:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(1.0)
    assert ticks() - before <= 5
