"""Hands models to the other hosts of a run while they are still being downloaded here, and compiled kernels.

With `sglang_host_peer_trees` it is the whole program of a process of its own (see `sglang_host_peers`), so it uses
nothing but Python 3.8's standard library. It answers HTTPS, and only to whoever has the key of the run:

    GET /state         {"fetching": bool, "files": {BLOB: [bytes to be had, whether that is all of it]}}
    GET /models/KEY    the files of a model (REPO@COMMIT), each with name, size and blob
    GET /blobs/BLOB    with `Range: bytes=FROM-TO`: of these bytes what is there
    GET /kernels/KEY   a cache of compiled kernels, as `Tree.send` writes it
    GET /done/HOST     this host needs nothing more

Nobody waits on an open answer: a client asks for what the state says is there, so a host that is gone is known
from one that has nothing new. `fetching` says whether the process that downloads here still lives.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import socketserver
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from ansible.module_utils.sglang_host_peer_trees import Tree

IDLE_SECONDS = 60  # without a question and without a download, for hosts that never say that they are done
TIMEOUT_SECONDS = 30  # for a connection on which nothing happens
FRESH_SECONDS = 0.05  # how old an answer to /state may be; several hosts may ask
SENT_AT_ONCE = 1 << 20
# Where a file has a hole, the bytes just before it may lack too: holes begin at the next block, of 64 KiB at most.
BLOCK = 1 << 16


def serve(told) -> None:
    """Serve until nobody asks any more. `told`: identity (PEM), address, port, models, compiled, pid, who may ask
    (hosts)."""
    with Server(told) as server:
        threading.Thread(target=server.end_when_idle, daemon=True).start()
        server.serve_forever()


class Shelf:
    """The files of models in a host's cache. `models`: [{"key", "blobs": directory, "files": {BLOB: size}, "names":
    {name: BLOB}}]."""

    def __init__(self, models) -> None:
        self._models = models
        self._lock = threading.Lock()
        self._seen = 0.0
        self._state = {}  # type: dict[str, tuple]

    def state(self, fresh=False) -> dict:
        """{BLOB: (bytes to be had, whether that is all)}; files of which nothing is there are left out."""
        with self._lock:
            if fresh or time.monotonic() - self._seen > FRESH_SECONDS:
                self._state = dict(self._look())
                self._seen = time.monotonic()
            return self._state

    def listed(self, key) -> list:
        """The files of a model by their names in its repository."""
        for model in self._models:
            if model.get("key") == key:
                sizes, names = model["files"], model["names"]
                return [{"name": name, "size": sizes[blob], "blob": blob} for name, blob in names.items()]
        return []

    def _look(self):
        for model in self._models:
            found = _files(model["blobs"])
            for blob, size in model["files"].items():
                whole, growing = found.get(blob, ("", []))
                if whole and _size(whole) == size:
                    yield blob, (size, True)
                elif growing:
                    yield blob, (min(_written(_newest(growing)), size), False)

    def open(self, blob):
        """The file of a blob, whole or growing; a rename does not hurt once it is open. None where there is none."""
        for _ in range(2):  # it may become whole between the look and the opening
            for model in self._models:
                whole, growing = _files(model["blobs"]).get(blob, ("", [])) if blob in model["files"] else ("", [])
                with contextlib.suppress(OSError):
                    return open(whole or _newest(growing), "rb")
        return None


def _files(directory) -> dict:
    """{BLOB: (path of the whole file or "", paths of files in which it is being written)}."""
    found = {}  # type: dict[str, tuple]
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            blob, _, rest = name.partition(".")
            path = os.path.join(directory, name)
            whole, growing = found.get(blob, ("", []))
            if not rest:
                whole = path
            elif rest.endswith("incomplete"):
                growing.append(path)
            found[blob] = (whole, growing)
    return found


def _newest(paths) -> str:
    """The file that is being written; an earlier download may have left another one."""
    times = {}
    for path in paths:
        with contextlib.suppress(OSError):
            times[path] = os.stat(path).st_mtime
    return max(times, key=lambda path: times[path], default="")


def _size(path) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return -1


def _written(path) -> int:
    """Bytes at the beginning of a growing file that are surely there; xet writes files with holes."""
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        end = os.fstat(stream.fileno()).st_size
        hole = os.lseek(stream.fileno(), 0, os.SEEK_HOLE) if end else 0
        return end if hole >= end else max(0, hole - BLOCK)
    return 0


class Server(ThreadingHTTPServer):
    """HTTPS with the key of the run on both sides."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, told) -> None:
        self.context = context(told["identity"], ssl.PROTOCOL_TLS_SERVER)
        self.shelf = Shelf(told["models"])
        self.trees = {item["key"]: Tree(item["path"], item["parts"]) for item in told.get("compiled", ())}
        self._downloader = told.get("pid") and (told["pid"], started(told["pid"]))
        self._hosts = set(told["hosts"])
        self._asked = time.monotonic()
        self._busy = 0
        self._lock = threading.Lock()
        try:
            self._listen(told["address"], told["port"])
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            self._listen("", told["port"])  # an address by which others reach us, and which we do not have ourselves

    def _listen(self, address, port) -> None:
        everywhere = not address and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if everywhere or ":" in address else socket.AF_INET
        super().__init__((address, port), Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the name service who we are

    @property
    def fetching(self) -> bool:
        return bool(self._downloader) and started(self._downloader[0]) == self._downloader[1] is not None

    @contextlib.contextmanager
    def answering(self):
        """Around every answer: a server that answers is not idle."""
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                self._asked = time.monotonic()

    def forget(self, host) -> None:
        with self._lock:
            self._hosts.discard(host)

    def end_when_idle(self) -> None:
        while self._busy or self.fetching or (self._hosts and time.monotonic() - self._asked < IDLE_SECONDS):
            time.sleep(0.5)
        self.shutdown()

    def finish_request(self, request, client_address) -> None:
        """In the connection's own thread, so that a slow handshake keeps nobody else waiting."""
        request.settimeout(TIMEOUT_SECONDS)
        with self.context.wrap_socket(request, server_side=True) as secured:
            Handler(secured, client_address, self)

    def handle_error(self, request, client_address) -> None:
        """Connections break and strangers are refused; both are their business."""


class Handler(BaseHTTPRequestHandler):
    """One connection of one host."""

    protocol_version = "HTTP/1.1"
    server_version = "sglang-ops"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        with self.server.answering():
            blob = re.fullmatch(r"/blobs/([0-9a-f]+)", self.path)
            if self.path == "/state":
                fetching = self.server.fetching  # asked first: what ends in between is then seen whole
                state = {"fetching": fetching, "files": self.server.shelf.state(fresh=not fetching)}
                self._answer(200, json.dumps(state).encode())
            elif blob:
                self._send(blob.group(1))
            elif self.path.startswith("/models/"):
                found = self.server.shelf.listed(unquote(self.path[len("/models/"):]))
                self._answer(200 if found else 404, json.dumps(found).encode())
            elif self.path.startswith("/kernels/"):
                self._send_tree(self.server.trees.get(unquote(self.path[len("/kernels/"):])))
            elif self.path.startswith("/done/"):
                self.server.forget(unquote(self.path[len("/done/"):]))
                self._answer(200)
            else:
                self._answer(404)

    def _send(self, blob) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        there = self.server.shelf.state().get(blob, (0, False))[0]
        begin, end = (int(asked.group(1)), min(int(asked.group(2)) + 1, there)) if asked else (0, 0)
        stream = self.server.shelf.open(blob) if begin < end else None
        if stream is None:
            self._answer(416)
            return
        with stream:
            self.send_response(206)
            self.send_header("Content-Range", "bytes %d-%d/*" % (begin, end - 1))
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            stream.seek(begin)
            while begin < end:
                part = stream.read(min(SENT_AT_ONCE, end - begin))
                if not part:  # begun anew by its downloader
                    self.close_connection = True
                    return
                self.wfile.write(part)
                begin += len(part)

    def _send_tree(self, tree) -> None:
        if tree is None:
            self._answer(404)
            return
        self.close_connection = True
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        tree.send(self.wfile.write)  # what goes wrong ends the connection before the last line

    def _answer(self, status, body=b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments) -> None:  # noqa: A002 (the base class calls it that)
        """Nothing is logged."""


def started(pid):
    """When a process began, in clock ticks since boot: with its number that names it for good. None if it is gone."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as stream:
            fields = stream.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19]


def context(identity, protocol):
    """TLS that accepts and shows this one certificate. The key is in memory only: OpenSSL reads it from a memfd."""
    made = ssl.SSLContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.check_hostname = False  # whoever has the key of the run is the peer; addresses prove nothing
    made.verify_mode = ssl.CERT_REQUIRED
    certificate = identity[identity.index("-----BEGIN CERTIFICATE-----"):]
    made.load_verify_locations(cadata=certificate)
    handle = os.memfd_create("identity")
    try:
        os.write(handle, identity.encode())
        made.load_cert_chain("/proc/self/fd/%d" % handle)
    finally:
        os.close(handle)
    return made
