"""The measurement of a command."""

from __future__ import annotations

import sys

import pytest

from bench.process import BenchError, background, end_background, measure, measure_together

BURN = "import time\nwhile time.process_time() < 0.2: pass"
ORPHAN = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    while time.process_time() < 0.3: pass
    os.close(1); os.close(2)
    time.sleep(60)
time.sleep(1)
"""


def test_cpu_counts_children_and_wall_counts_sleep() -> None:
    child = f"import subprocess, sys, time; time.sleep(0.3); subprocess.run([sys.executable, '-c', {BURN!r}])"
    run = measure([sys.executable, "-c", child])
    assert 0.2 <= run.cpu < 1.0
    assert run.wall >= 0.5


def test_a_failure_shows_the_end_of_the_output() -> None:
    with pytest.raises(BenchError, match=r"(?s)ended with 3:.*out of luck"):
        measure([sys.executable, "-c", "import sys; print('out of luck'); sys.exit(3)"])
    with pytest.raises(BenchError, match="failed"):
        measure_together([["true"], ["false"]])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_stays_in_the_background_is_found_counted_and_ended() -> None:
    run = measure([sys.executable, "-c", ORPHAN], mark="test-orphan")
    try:
        assert list(background("test-orphan").values()) == [pytest.approx(0.3, abs=0.15)]
        assert run.cpu >= 0.2
    finally:
        end_background("test-orphan")
    assert background("test-orphan") == {}
