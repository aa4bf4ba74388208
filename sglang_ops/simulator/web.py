"""As much of HTTP/1.1 as an SGLang server needs, on asyncio: keep-alive, bodies by length, streamed answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

from . import NAME

_MOST_HEADER_BYTES = 64 * 1024
_MOST_BODY_BYTES = 64 * 1024 * 1024
_IDLE_SECONDS = 5.0  # uvicorn's keep-alive time
_BACKLOG = 2048  # and its backlog


@dataclass(frozen=True)
class Request:
    """One request. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    client: str


@dataclass(frozen=True)
class Response:
    """One answer: a body, or a stream of chunks that is sent as it comes."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncGenerator[bytes] | None = None


Handler = Callable[[Request], Awaitable[Response]]


class BadRequest(Exception):
    """The bytes are no HTTP request that we can read: `args` is the status."""


def json_response(value: Any, status: int = 200, **headers: str) -> Response:
    """An answer whose body is `value` as JSON."""
    return Response(status, json.dumps(value, separators=(",", ":")).encode(), headers=headers)


class HttpServer:
    """A listening server that knows which answers are still on their way."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._listener: asyncio.Server | None = None
        self.answering = 0  # requests whose answer is not yet sent in full

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError where the address cannot be had."""
        self._listener = await asyncio.start_server(
            self._connection, host, port, limit=_MOST_HEADER_BYTES, backlog=_BACKLOG
        )

    def stop(self) -> None:
        """Stop listening; what is being answered is not waited for."""
        if self._listener:
            self._listener.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        client = f"{peer[0]}:{peer[1]}"
        try:
            while request := await _read_request(reader, client):
                self.answering += 1
                try:
                    await _write_response(writer, await self._handler(request))
                finally:
                    self.answering -= 1
                if request.headers.get("connection", "").lower() == "close":
                    break
        except BadRequest as error:
            await _write_response(writer, Response(error.args[0], b"Invalid HTTP request received.", "text/plain"))
        except ConnectionError:
            pass  # the client went away; what it asked for was closed on the way up here
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader, client: str) -> Request | None:
    """The next request, or None where the client is done."""
    try:
        async with asyncio.timeout(_IDLE_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, TimeoutError):
        return None
    except asyncio.LimitOverrunError:
        raise BadRequest(431) from None
    try:
        start, *lines = head[:-4].decode("latin-1").split("\r\n")
        method, target, _ = start.split(" ")
        headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        length = int(headers.get("content-length", "0"))
    except ValueError:
        raise BadRequest(400) from None
    if "transfer-encoding" in headers:
        raise BadRequest(411)
    if not 0 <= length <= _MOST_BODY_BYTES:
        raise BadRequest(413)
    try:
        body = await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        return None
    return Request(method, unquote(urlsplit(target).path), headers, body, client)


async def _write_response(writer: asyncio.StreamWriter, response: Response) -> None:
    headers = {"server": NAME, **response.headers}
    if response.stream is not None:
        headers["transfer-encoding"] = "chunked"
    else:
        headers["content-length"] = str(len(response.body))
    if response.stream is not None or response.body:
        headers["content-type"] = response.content_type
    head = f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(head.encode("latin-1") + b"\r\n" + response.body)
    await writer.drain()
    if response.stream is not None:
        async with aclosing(response.stream) as chunks:
            async for chunk in chunks:
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
