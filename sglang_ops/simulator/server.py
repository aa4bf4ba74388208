"""The server: its readiness, its requests, and how it drains."""

from __future__ import annotations

import argparse
import asyncio
import hmac
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from . import lifecycle
from .constraints import ConstraintError
from .endpoints import Information
from .generation import ContextExceededError, Scheduler
from .metrics import Metrics
from .model import Model
from .openai import CALLS, Call, InvalidBodyError, event
from .settings import Settings
from .web import HttpServer, Request, Response, json_response

log = logging.getLogger(__name__)

_HEALTH_SECONDS = 1.0  # how long the engine sleeps before it looks whether its test request was answered
_WARMUP_PART = 0.2  # of the start-up time: between the open port and healthy
_OPEN_PREFIXES = ("/health", "/ready", "/metrics")  # these need no API key
_DEFAULT_RUNNING = 2048
_DEFAULT_TOKENS = 905_795  # in the cache, as the start-up log says


class Server:
    """One simulated SGLang server, from the open port to the end of its process."""

    def __init__(self, arguments: argparse.Namespace, model: Model, settings: Settings) -> None:
        self._arguments = arguments
        self._model = model
        self._settings = settings
        self._up = self._draining = False
        self._scheduler = Scheduler(
            most_running=arguments.max_running_requests or _DEFAULT_RUNNING,
            most_queued=arguments.max_queued_requests,
            tokens_per_second=settings.tokens_per_second,
        )
        self._metrics = Metrics(
            arguments.served_model_name,
            self._scheduler,
            token_capacity=arguments.max_total_tokens or _DEFAULT_TOKENS,
        )
        self._information = Information(arguments, model, self._scheduler, self._metrics, settings)
        self._http = HttpServer(self._respond)

    async def run(self) -> None:
        """Serve until SIGTERM and the end of the last request. Raises OSError where the port is taken."""
        await self._http.start(self._arguments.host, self._arguments.port)
        log.info("INFO:     Uvicorn running on http://%s:%d", self._arguments.host, self._arguments.port)
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._sigterm)
        loop.add_signal_handler(signal.SIGINT, stopped.set)
        life = [asyncio.create_task(self._come_up()), asyncio.create_task(self._watch_for_sigterm(stopped))]
        await stopped.wait()
        self._http.stop()
        for task in life:
            task.cancel()

    async def _come_up(self) -> None:
        faults = self._settings.faults
        await asyncio.sleep(_WARMUP_PART * self._settings.startup_seconds)
        if faults.never_healthy:
            return
        self._up = True
        log.info(lifecycle.READY_LINE)
        if faults.crash_after is not None:
            await asyncio.sleep(faults.crash_after)
            lifecycle.scheduler_killed(self._settings)

    def _sigterm(self) -> None:
        if self._settings.faults.ignore_sigterm:
            log.warning("SIGTERM received and ignored (simulated fault: ignore-sigterm)")
            return
        log.warning("SIGTERM received. signum=None frame=None. Draining requests and shutting down...")
        self._draining = True

    async def _watch_for_sigterm(self, stopped: asyncio.Event) -> None:
        """Look every few seconds, as the engine does, whether to go; new requests are served until then."""
        while not self._draining:
            await asyncio.sleep(self._settings.poll_seconds)
        while (remaining := self._http.answering) and not os.environ.get("SGL_FORCE_SHUTDOWN"):
            log.info("Gracefully exiting... Remaining number of requests %d.", remaining)
            await asyncio.sleep(self._settings.poll_seconds)
        log.info("Gracefully exiting... Remaining number of requests %d.", remaining)
        stopped.set()

    async def _respond(self, request: Request) -> Response:
        self._metrics.http_request(request.method, request.path)
        response = await self._dispatch(request) if self._allowed(request) else _UNAUTHORIZED
        self._metrics.http_response(request.method, request.path, response.status)
        log.info('INFO:     %s - "%s %s HTTP/1.1" %d', request.client, request.method, request.path, response.status)
        return response

    def _allowed(self, request: Request) -> bool:
        key = self._arguments.api_key
        if not key or request.method == "OPTIONS" or request.path.startswith(_OPEN_PREFIXES):
            return True
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), key.encode())

    async def _dispatch(self, request: Request) -> Response:
        information = self._information.answer(request.path)
        path, method = request.path, "GET"
        if information:
            status, body = information
            response = json_response(body, status)
        elif path in ("/health", "/health_generate"):
            response = await self._health()
        elif path == "/ready":
            response = Response(200 if self._up and not self._draining else 503)
        elif path == "/ping":
            response = Response()
        elif path == "/metrics" and self._arguments.enable_metrics:
            response = Response(body=self._metrics.text().encode(), content_type="text/plain; version=0.0.4")
        elif path in CALLS:
            method = "POST"
            response = await self._generate(request) if request.method == method else Response()
        else:
            return json_response({"detail": "Not Found"}, 404)
        if request.method != method:
            return json_response({"detail": "Method Not Allowed"}, 405, allow=method)
        return response

    async def _health(self) -> Response:
        if not self._up or self._draining:
            return Response(503)
        await asyncio.sleep(_HEALTH_SECONDS)
        return Response()

    async def _generate(self, request: Request) -> Response:
        if self._settings.faults.garbage:
            return Response(body=b"<html><body>It works!</body></html>", content_type="text/html")
        log.debug("Asked %s: %s", request.path, request.body.decode("utf-8", "replace"))
        try:
            call = CALLS[request.path](
                request.body,
                model=self._arguments.served_model_name,
                context_tokens=self._model.context_tokens,
                vision=self._settings.vision,
                constrains=not self._settings.faults.unconstrained,
                answers=self._settings.answers,
            )
        except (InvalidBodyError, ConstraintError, ContextExceededError) as error:
            return json_response(_error(400, "BadRequestError", str(error)), 400)
        if self._scheduler.full:
            return _queue_full(call)
        if call.script and (refused := call.script.refusal()):
            return json_response(_error(refused, "ScriptedError", "This refusal is scripted."), refused)
        if call.script:
            log.info("Scripted answer to %r", call.script.contains)
            await asyncio.sleep(call.script.seconds)
        log.info(
            "Prefill batch, #new-seq: 1, #new-token: %d, #cached-token: 0, #running-req: %d, #queue-req: %d",
            call.work.prompt_tokens,
            len(self._scheduler.running),
            self._scheduler.queued,
        )
        tokens = self._counted_tokens(call)
        if call.streamed:
            return Response(stream=call.events(tokens), content_type="text/event-stream")
        return json_response(await call.answer(tokens))

    async def _counted_tokens(self, call: Call) -> AsyncGenerator[str]:
        started, count = time.monotonic(), 0
        try:
            async with aclosing(self._scheduler.run(call.work)) as tokens:
                async for token in tokens:
                    count += 1
                    yield token
        finally:
            self._metrics.generated(
                prompt_tokens=call.work.prompt_tokens,
                completion_tokens=count,
                seconds=time.monotonic() - started,
                streamed=call.streamed,
            )


_UNAUTHORIZED = json_response({"error": "Unauthorized"}, 401)


def _error(status: int, kind: str, message: str) -> dict[str, object]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": status}


def _queue_full(call: Call) -> Response:
    """Refuse: as a status, or inside a stream, whose status is 200 already."""
    error = _error(503, "SERVICE_UNAVAILABLE", "The request queue is full.")
    if not call.streamed:
        return json_response(error, 503)

    async def refusal() -> AsyncGenerator[bytes]:
        yield event({"error": error})
        yield b"data: [DONE]\n\n"

    return Response(stream=refusal(), content_type="text/event-stream")
