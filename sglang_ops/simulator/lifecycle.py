"""How a server comes up and goes down: the log an operator reads, and the ways in which SGLang dies."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from typing import NoReturn

from . import SGLANG_VERSION
from .model import Model, WeightsError, check_weights
from .settings import Faults, Settings

log = logging.getLogger(__name__)

READY_LINE = "The server is fired up and ready to roll!"

# Of the time until the port opens, the parts at which the log says something, as on a GPU.
_WEIGHTS_BEGIN, _WEIGHTS_END, _GRAPHS_BEGIN, _PORT = 0.3, 0.6, 0.7, 1.0


def announce(arguments: argparse.Namespace, settings: Settings) -> None:
    """Set up the log in the engine's format, and say first what this is."""
    logging.basicConfig(
        level=getattr(logging, arguments.log_level.upper(), logging.INFO),
        format="[%(asctime)s] %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    log.warning("This is the SGLang simulator, not SGLang: it behaves like %s and runs no model.", SGLANG_VERSION)
    if settings.faults != Faults():
        log.warning("It was told to have these faults: %s", settings.faults)


def load(arguments: argparse.Namespace, model: Model, settings: Settings) -> None:
    """Everything before the port opens; takes the start-up time, and does not return where a fault says so."""
    faults = settings.faults
    start = time.monotonic()

    def wait_until(part: float) -> None:
        due = start + part * (settings.startup_seconds + faults.slow_start)
        time.sleep(max(0.0, due - time.monotonic()))

    log.info("server_args=%s", vars(arguments))  # like the engine, with every secret in it
    wait_until(_WEIGHTS_BEGIN)
    log.info("Load weight begin. avail mem=139.09 GB")
    wait_until(_WEIGHTS_END)
    try:
        check_weights(model, arguments)
    except WeightsError as error:
        scheduler_exception("load_model", str(error), faults)
    if faults.dies_at_start:
        scheduler_exception("load_model", "RuntimeError: simulated fault: crash-at-start", faults)
    log.info("Load weight end. type=%s, avail mem=124.07 GB, mem usage=15.02 GB.", "".join(model.architectures[:1]))
    if faults.out_of_memory:
        scheduler_exception(
            "init_memory_pool",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.92 GiB. GPU 0 has a total capacity of "
            "139.80 GiB of which 1.41 GiB is free. (simulated fault: out-of-memory)",
            faults,
        )
    log.info("KV Cache is allocated. dtype: torch.bfloat16, #tokens: 905795, K size: 55.29 GB, V size: 55.29 GB")
    log.info("Memory pool end. avail mem=11.70 GB")
    wait_until(_GRAPHS_BEGIN)
    log.info("Capture cuda graph begin. This can take up to several minutes. avail mem=11.70 GB")
    wait_until(_PORT)
    log.info("Capture cuda graph end. avail mem=9.78 GB")


def scheduler_exception(where: str, exception: str, faults: Faults) -> NoReturn:
    """The scheduler dies of an exception: its traceback, then the server goes down with it."""
    log.error(
        "Scheduler hit an exception: Traceback (most recent call last):\n"
        '  File "sglang/srt/managers/scheduler.py", in run_scheduler_process\n    %s()\n%s\n',
        where,
        exception,
    )
    log.error("Received sigquit from a child process. It usually means the child failed.")
    kill_self(faults)


def scheduler_killed(settings: Settings) -> NoReturn:
    """The scheduler is gone all at once: some seconds of silence, then the server kills itself."""
    log.error("Subprocess scheduler_0 crashed with exit code -9. Triggering SIGQUIT for cleanup...")
    time.sleep(settings.poll_seconds)  # blocks the event loop on purpose: nobody gets an answer meanwhile
    log.error("SIGQUIT received. It usually means one child failed.")
    kill_self(settings.faults)


def kill_self(faults: Faults) -> NoReturn:
    """SGLang's last resort, done as SGLang does it: SIGKILL to itself, and then exit 0.

    The kernel ignores that signal where the process is PID 1 of its namespace, that is, in a container
    without an init. There a crash ends with exit code 0, and everywhere else with 137.
    """
    log.info("kill_process_tree called: parent_pid=%d, include_parent=True, pid=%d", os.getpid(), os.getpid())
    logging.shutdown()
    if not faults.exit_zero:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)
