"""A read-only OCI registry on the host itself, for as long as an engine pulls from it. Python 3.8, standard library.

An image that is loaded from an archive has no repository digest in docker, and ``repo@sha256:…`` does not find it; an
image that was pulled has one. So the engine pulls, as it would from the network, and all that it checks is checked.
The routes are those of the OCI distribution specification that a pull needs; every repository has the same blobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

ADDRESS = "127.83.71.76"  # on the loopback like all of 127/8; ours by agreement with ourselves, so leftovers are known
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<what>manifests|blobs)/sha256:(?P<hex>[0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


def media_type(manifest: bytes) -> str:
    """What a manifest says that it is, or what its content shows. Pure."""
    told = json.loads(manifest)
    return told.get("mediaType") or (_INDEX if "manifests" in told else _MANIFEST)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "sglang-ops"
    blobs = ""

    def do_GET(self):
        route = self.path.partition("?")[0]
        matched = _ROUTE.fullmatch(route)
        path = os.path.join(self.blobs, matched["hex"]) if matched else ""
        if route.rstrip("/") == "/v2":
            self._answer(200, {"Content-Length": "2"}, b"{}")
        elif not matched or not os.path.isfile(path):
            self._answer(404, {"Content-Length": "0"})
        elif matched["what"] == "manifests":
            with open(path, "rb") as stream:
                body = stream.read()
            headers = {"Content-Type": media_type(body), "Content-Length": str(len(body))}
            self._answer(200, dict(headers, **{"Docker-Content-Digest": "sha256:" + matched["hex"]}), body)
        else:
            self._blob(path)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _blob(self, path):
        size = os.path.getsize(path)
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = min(size, int(asked[2]) + 1) if asked and asked[2] else size
        if start > end:
            self._answer(416, {"Content-Range": "bytes */%d" % size, "Content-Length": "0"})
            return
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(end - start)}
        if asked:
            headers["Content-Range"] = "bytes %d-%d/%d" % (start, end - 1, size)
        self._answer(206 if asked else 200, dict(headers, **{"Accept-Ranges": "bytes"}))
        if self.command == "GET" and end > start:
            self.wfile.flush()
            with open(path, "rb") as stream:
                self.connection.sendfile(stream, start, end - start)

    def _answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in dict(headers, **{"Docker-Distribution-API-Version": "registry/2.0"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(body)

    def log_message(self, *_unused):
        """The engine's own messages say what went wrong."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self):
        """Without the name server, which HTTPServer would ask who we are: here it may be out of reach."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]


@contextlib.contextmanager
def served(blobs: str, address: str = ADDRESS, port: int = 0):
    """Serve the files of `blobs`, named by their SHA-256, and yield ``address:port``. Raises OSError."""
    server = _Server((address, port), type("Handler", (_Handler,), {"blobs": blobs}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield "%s:%d" % (address, server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
