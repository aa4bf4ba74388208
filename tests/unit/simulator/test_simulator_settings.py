"""Faults and speeds are read from the environment, and what is no fault is refused."""

from __future__ import annotations

import pytest

from sglang_ops.simulator.settings import Faults, Settings, at, faults_of, settings_of


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", Faults()),
        ("never-healthy", Faults(never_healthy=True)),
        ("slow-start:2.5", Faults(slow_start=2.5)),
        ("crash-after:0", Faults(crash_after=0.0)),
        (" wrong-model , garbage,", Faults(wrong_model=True, garbage=True)),
        ("crash-at-start,exit-zero", Faults(crash_at_start=True, exit_zero=True)),
        ("ignore-sigterm,out-of-memory", Faults(ignore_sigterm=True, out_of_memory=True)),
        ("unconstrained", Faults(unconstrained=True)),
    ],
)
def test_faults(text: str, faults: Faults) -> None:
    assert faults_of(text) == faults


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("explode", "unknown fault 'explode'; the faults are slow-start:SECONDS, never-healthy, "),
        ("never_healthy", "unknown fault 'never_healthy'"),
        ("slow-start", "'slow-start' needs seconds after a colon"),
        ("never-healthy:3", "'never-healthy' takes no seconds after a colon"),
        ("crash-after:soon", "'soon' is not a number from 0 up"),
        ("crash-after:-1", "'-1' is not a number from 0 up"),
    ],
)
def test_what_is_no_fault(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^SGLANG_SIMULATOR_FAULT: ") as refused:
        faults_of(text)
    assert words in str(refused.value)


def test_exit_zero_alone_is_a_crash_at_start() -> None:
    assert faults_of("exit-zero").dies_at_start
    assert not faults_of("exit-zero,crash-after:1").dies_at_start
    assert not faults_of("exit-zero,out-of-memory").dies_at_start


def test_faults_name_themselves() -> None:
    assert str(faults_of("garbage,crash-after:3")) == "crash-after, garbage"


def test_speeds() -> None:
    assert settings_of({}) == Settings()
    assert settings_of(
        {
            "SGLANG_SIMULATOR_STARTUP_SECONDS": "0",
            "SGLANG_SIMULATOR_TOKENS_PER_SECOND": "12.5",
            "SGLANG_SIMULATOR_DRAIN_POLL": "0.1",
        }
    ) == Settings(startup_seconds=0.0, tokens_per_second=12.5, poll_seconds=0.1)


def test_vision_is_told() -> None:
    assert settings_of({"SGLANG_SIMULATOR_VISION": "1"}).vision
    assert not settings_of({"SGLANG_SIMULATOR_VISION": "0"}).vision
    with pytest.raises(ValueError, match="SGLANG_SIMULATOR_VISION: 'yes' is neither 0 nor 1"):
        settings_of({"SGLANG_SIMULATOR_VISION": "yes"})


@pytest.mark.parametrize("speed", ["0", "fast", "-3"])
def test_impossible_speeds(speed: str) -> None:
    with pytest.raises(ValueError, match="SGLANG_SIMULATOR_TOKENS_PER_SECOND"):
        settings_of({"SGLANG_SIMULATOR_TOKENS_PER_SECOND": speed})


def test_faults_of_one_port() -> None:
    settings = settings_of({"SGLANG_SIMULATOR_FAULT": "garbage", "SGLANG_SIMULATOR_FAULT_PORT": "8001"})
    assert at(8001, settings).faults == Faults(garbage=True)
    assert at(8000, settings).faults == Faults()
    assert at(8000, settings_of({"SGLANG_SIMULATOR_FAULT": "garbage"})).faults == Faults(garbage=True)
