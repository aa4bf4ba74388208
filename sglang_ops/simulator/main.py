"""One simulated server from its command line to its exit code."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from . import arguments, lifecycle, nodes
from .model import ModelError, find_model
from .server import Server
from .settings import Settings, at, settings_of

log = logging.getLogger(__name__)

_WARMUP_TRIES = 120  # the engine's warm-up asks that often, a second apart


def main(argv: Sequence[str] | None = None) -> None:
    """Run one server; `argv` is the process's own where it is None. Ends the process by SystemExit, or dies.

    Exit codes are SGLang's: 0 after SIGTERM, 2 wrong arguments, 1 a Python exception, 3 port taken,
    137 (or 0 as PID 1) a crash.
    """
    given = arguments.parse(sys.argv[1:] if argv is None else argv)
    try:
        settings = at(given.port, settings_of(os.environ))
    except ValueError as error:
        sys.exit(_refusal(error))
    if given.config:
        sys.exit(_refusal("the simulator does not read --config files"))
    lifecycle.announce(given, settings)
    given.served_model_name = given.served_model_name or given.model_path
    try:
        model = find_model(given, os.environ)
    except ModelError as error:
        _exception(error)
    if ":" in given.served_model_name:
        _exception(
            "AssertionError: served_model_name cannot contain a colon (':') character. The colon is reserved "
            "for the 'model:adapter' syntax used in LoRA adapter specification. "
            f"Invalid value: '{given.served_model_name}'"
        )
    nodes.meet(given, settings)
    lifecycle.load(given, model, settings)
    try:
        asyncio.run(Server(given, model, settings).run())
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        _port_taken(given, error, settings)
    log.info("INFO:     Finished server process")
    sys.exit(0)


def _exception(text: object) -> NoReturn:
    """End as the engine ends when Python code of its main process raises."""
    sys.stderr.write(f"Traceback (most recent call last):\n{text}\n")
    sys.exit(1)


def _refusal(message: object) -> int:
    sys.stderr.write(f"sglang serve: error: {message}\n")
    return 2


def _port_taken(given: argparse.Namespace, error: OSError, settings: Settings) -> NoReturn:
    """The address cannot be had. The engine sees it this late, and its warm-up may find a stranger there.

    The stranger's answer makes it print the ready line before it exits; without an answer it hangs until
    the warm-up gives up and kills the process.
    """
    log.error(
        "ERROR:    [Errno %s] error while attempting to bind on address ('%s', %d): %s",
        error.errno,
        given.host,
        given.port,
        os.strerror(error.errno or 0).lower(),
    )
    for _ in range(_WARMUP_TRIES):
        if _somebody_answers(given.port):
            log.info(lifecycle.READY_LINE)
            sys.exit(3)
        time.sleep(1)
    lifecycle.kill_self(settings.faults)


def _somebody_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /model_info HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
