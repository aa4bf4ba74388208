"""One model over several hosts, as far as an operator sees it: ranks that meet, and the dummies behind rank 0."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

from . import lifecycle
from .settings import Settings
from .web import HttpServer, Request, Response, json_response

log = logging.getLogger(__name__)

_PATIENCE = 600  # seconds, where --dist-timeout says nothing
_AGAIN = 0.2


def meet(arguments: argparse.Namespace, settings: Settings) -> None:
    """Wait for all ranks, as torch's rendezvous does. Rank 0 returns and serves, the others stay here until it ends."""
    if arguments.nnodes < 2:
        return
    host, _, port = str(arguments.dist_init_addr).rpartition(":")
    patience = time.monotonic() + (arguments.dist_timeout or _PATIENCE)
    try:
        if arguments.node_rank:
            _follow(arguments, _join(host.strip("[]"), int(port), patience, arguments.node_rank))
        _gather(int(port), patience, arguments.nnodes - 1, settings)
    except TimeoutError:
        lifecycle.scheduler_exception(
            "init_torch_distributed",
            "torch.distributed.DistStoreError: Timed out after waiting for clients. "
            f"{arguments.nnodes} ranks were expected.",
            settings.faults,
        )


def _gather(port: int, patience: float, followers: int, settings: Settings) -> None:
    """Rank 0: all the others call. Whoever hangs up afterwards takes the server with it."""
    with socket.create_server(("", port)) as listener:
        for _ in range(followers):
            listener.settimeout(max(0.1, patience - time.monotonic()))
            connection, address = listener.accept()
            log.info("rank at %s joined", address[0])
            threading.Thread(target=_watch, args=(connection, settings), daemon=True).start()


def _watch(connection: socket.socket, settings: Settings) -> None:
    connection.settimeout(None)
    with suppress(OSError):
        while connection.recv(1024):
            pass
    log.error("Scheduler hit an exception: a rank of another host has gone")
    lifecycle.kill_self(settings.faults)


def _join(host: str, port: int, patience: float, rank: int) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5)
        except OSError as error:
            if time.monotonic() > patience:
                raise TimeoutError from error
            time.sleep(_AGAIN)
            continue
        log.info("rank %d met rank 0 at %s:%d", rank, host, port)
        connection.settimeout(None)
        return connection


def _follow(arguments: argparse.Namespace, leader: socket.socket) -> NoReturn:
    """A rank that answers nothing: a /health that is always 200, no end on SIGTERM until rank 0 has gone."""
    signal.signal(signal.SIGTERM, lambda *_: log.warning("SIGTERM received; waiting for rank 0"))

    async def respond(request: Request) -> Response:
        return Response() if request.path in ("/health", "/health_generate") else json_response({}, 404)

    async def serve() -> None:
        http = HttpServer(respond)
        await http.start(arguments.host, arguments.port)
        await asyncio.to_thread(leader.recv, 1024)
        http.stop()

    with suppress(OSError):
        asyncio.run(serve())
    log.info("rank 0 has gone")
    sys.exit(0)
