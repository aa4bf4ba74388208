"""Between harness and server: adds the key, keeps every answer, and never lets one request end the run.

The harness sees an endpoint on loopback for each task and repeat: ``/<task>/<repeat>/v1/chat/completions``. A question
that was answered before, in whatever life of this run, is answered from the store.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .store import Answer, Key, Store
from .upstream import Stalled, Upstream

MARK = "sglang_ops_failed"  # the key of a stand-in answer, beside an empty text


@dataclass(frozen=True)
class Route:
    """How the questions of one task are asked. `timeout` in seconds."""

    path: str
    timeout: float
    max_retries: int


def digest(body: Mapping[str, Any]) -> str:
    """The same for the same question, however its JSON is written."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def prompt_digest(body: Mapping[str, Any]) -> str:
    """The same for the same messages or prompt, whatever the parameters."""
    return digest({name: body[name] for name in ("messages", "prompt") if name in body})


class Proxy:
    """Serves on a free port of loopback from `start` on. `stalled` is called once no server answers any more."""

    def __init__(
        self, store: Store, upstream: Upstream, routes: Mapping[str, Route], stalled: Callable[[str], None]
    ) -> None:
        self._store, self._upstream, self._routes, self._stalled = store, upstream, routes, stalled
        self._seen: Counter[tuple[str, int, str]] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.request_queue_size = 1024

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def begin(self, task: str, repeat: int) -> None:
        """A pass begins: the first question with some body is the first one again."""
        with self._lock:
            for key in [key for key in self._seen if key[:2] == (task, repeat)]:
                del self._seen[key]

    def answer(self, task: str, repeat: int, body: Mapping[str, Any]) -> Answer:
        """From the store, else from the server, and then kept. Raises Stalled."""
        hashed = digest(body)
        with self._lock:
            occurrence = self._seen[task, repeat, hashed]
            self._seen[task, repeat, hashed] += 1
        key = Key(task, repeat, hashed, occurrence)
        known = self._store.get(key)
        if known is None:
            route = self._routes[task]
            known = self._upstream.ask(route.path, body, timeout=route.timeout, max_retries=route.max_retries)
            known = replace(known, prompt=prompt_digest(body))
            self._store.put(key, known)
        return known

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                _, task, repeat, *rest = self.path.split("/")
                if rest == ["begin"]:
                    proxy.begin(task, int(repeat))
                    self._reply(200, {})
                    return
                try:
                    answer = proxy.answer(task, int(repeat), body)
                except Stalled as error:
                    proxy._stalled(str(error))
                    self._reply(503, {"error": str(error)})
                    return
                self._reply(200, for_harness(answer, chat="messages" in body))

            def _reply(self, status: int, body: Mapping[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Nothing: every answer is in the store."""

        return Handler


def for_harness(answer: Answer, *, chat: bool) -> dict[str, Any]:
    """What the harness is told: text in every case. No content (null, only reasoning, a failed request) is the empty
    text, which its scorers take for a wrong answer; its own stand-in for null would be scored like an answer."""
    text = answer.content or ""
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    choice = {"index": 0, **content, "finish_reason": answer.finish_reason or "stop"}
    marked = {MARK: answer.failed} if answer.failed else {}
    return {"object": "chat.completion" if chat else "text_completion", "choices": [choice], **marked}
