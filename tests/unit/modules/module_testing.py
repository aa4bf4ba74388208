"""Runs a module's main() without Ansible around it, and an engine's API without an engine behind it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from ansible.module_utils import basic

MODULES = Path(__file__).resolve().parents[3] / "plugins" / "modules"


class Left(Exception):
    """What a module left with."""

    def __init__(self, failed: bool, result: dict[str, Any]) -> None:
        super().__init__(result)
        self.failed = failed
        self.result = result


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, MODULES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def run(module: ModuleType, check: bool = False, **parameters: Any) -> Left:
    """Call main() as Ansible would; returns how it left."""
    internal = {"_ansible_check_mode": check, "_ansible_remote_tmp": "/tmp", "_ansible_keep_remote_files": False}
    arguments = parameters | internal

    def leave(failed: bool) -> Callable[..., None]:
        def end(_self: Any, **result: Any) -> None:
            raise Left(failed, result)

        return end

    with (
        mock.patch.object(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()),
        mock.patch.object(basic, "_ANSIBLE_PROFILE", "legacy", create=True),
        mock.patch.object(basic.AnsibleModule, "exit_json", leave(False)),
        mock.patch.object(basic.AnsibleModule, "fail_json", leave(True)),
    ):
        try:
            module.main()
        except Left as left:
            return left
    raise AssertionError("the module said nothing")


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[Any, Any]:
        request, _ = super().get_request()
        return request, ("unix", 0)


class FakeEngine:
    """Docker's API on a socket: answers GETs from a table, and POSTs with a stream of messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self.stream: list[Mapping[str, Any]] = []
        self.refusal: tuple[int, str] | None = None
        self.asked: list[str] = []
        self.headers: Mapping[str, str] = {}
        self.after_pull: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def serving(self) -> Iterator[FakeEngine]:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                engine.asked.append(self.path)
                status, body = engine.answers.get(self.path, (404, {"message": "no such thing"}))
                self._plain(status, body)

            def do_POST(self) -> None:
                engine.asked.append(self.path)
                engine.headers = dict(self.headers)
                if engine.refusal:
                    self._plain(engine.refusal[0], {"message": engine.refusal[1]})
                    return
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for message in engine.stream:
                    data = json.dumps(message).encode() + b"\r\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                engine.after_pull()
                self.wfile.write(b"0\r\n\r\n")

            def _plain(self, status: int, body: Mapping[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Tests print nothing."""

        with _UnixServer(str(self.path), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            yield self
            server.shutdown()


@contextlib.contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free loopback port; yields ``127.0.0.1:PORT``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
